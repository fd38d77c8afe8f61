from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyrune.bundle import load_bundle
from pyrune.config import (
    Capabilities,
    Config,
    ConsoleSize,
    Device,
    Hook,
    Hooks,
    IdMapping,
    Linux,
    Mount,
    Namespace,
    Process,
    Resources,
    Rlimit,
    Root,
    User,
    read,
)
from pyrune.document import Document, Json, Node
from pyrune.errors import BundleError

WHOLE = """
{
  "ociVersion": "1.2.0",
  "process": {
    "terminal": true,
    "consoleSize": {"height": 25, "width": 80},
    "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
    "args": ["/bin/sh", "-c", "true"],
    "env": ["A=1", "B="],
    "cwd": "/home",
    "capabilities": {
      "bounding": ["CAP_KILL"], "effective": ["CAP_CHOWN"], "inheritable": ["CAP_FOWNER"],
      "permitted": ["CAP_SETUID"], "ambient": ["CAP_SETGID"]
    },
    "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615}],
    "noNewPrivileges": true,
    "apparmorProfile": "docker-default",
    "selinuxLabel": "system_u:system_r:container_t:s0",
    "oomScoreAdj": -999
  },
  "root": {"path": "rootfs", "readonly": true},
  "hostname": "enclave",
  "domainname": "example.org",
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "ro"]}],
  "hooks": {
    "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 5}],
    "createRuntime": [{"path": "/b"}],
    "createContainer": [{"path": "/c"}],
    "startContainer": [{"path": "/d"}],
    "poststart": [{"path": "/e"}],
    "poststop": [{"path": "/f"}, {"path": "/g"}]
  },
  "annotations": {"org.example": "yes"},
  "linux": {
    "namespaces": [{"type": "pid"}, {"type": "network", "path": "/proc/1/ns/net"}],
    "cgroupsPath": "/docker/1",
    "resources": {
      "memory": {"limit": 1048576, "reservation": 1024, "swap": -1},
      "cpu": {"shares": 512, "quota": -1, "period": 100000, "cpus": "0-1", "mems": "0"},
      "pids": {"limit": 99}
    },
    "devices": [{"path": "/dev/x", "type": "c", "major": 10, "minor": 200, "fileMode": 384, "uid": 5, "gid": 6}],
    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
    "gidMappings": [{"containerID": 1, "hostID": 2000, "size": 2}],
    "maskedPaths": ["/proc/kcore"],
    "readonlyPaths": ["/proc/sys"],
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}
  }
}
"""


def typed(tree: Json) -> Config:
    return read(Document("/bundle", Node("config.json", "", tree)))


def test_every_property_finds_its_place() -> None:
    assert typed(json.loads(WHOLE)) == Config(
        oci_version="1.2.0",
        process=Process(
            terminal=True,
            console_size=ConsoleSize(height=25, width=80),
            user=User(uid=1, gid=2, umask=0o22, additional_gids=(3, 4)),
            args=("/bin/sh", "-c", "true"),
            env=("A=1", "B="),
            cwd="/home",
            capabilities=Capabilities(
                bounding=("CAP_KILL",),
                effective=("CAP_CHOWN",),
                inheritable=("CAP_FOWNER",),
                permitted=("CAP_SETUID",),
                ambient=("CAP_SETGID",),
            ),
            rlimits=(Rlimit(type="RLIMIT_CORE", soft=0, hard=(1 << 64) - 1),),
            no_new_privileges=True,
            apparmor_profile="docker-default",
            selinux_label="system_u:system_r:container_t:s0",
            oom_score_adj=-999,
        ),
        root=Root(path="rootfs", readonly=True),
        hostname="enclave",
        domainname="example.org",
        mounts=(Mount(destination="/proc", type="proc", source="proc", options=("nosuid", "ro")),),
        hooks=Hooks(
            prestart=(Hook(path="/a", args=("a", "b"), env=("X=1",), timeout_s=5),),
            create_runtime=(Hook(path="/b"),),
            create_container=(Hook(path="/c"),),
            start_container=(Hook(path="/d"),),
            poststart=(Hook(path="/e"),),
            poststop=(Hook(path="/f"), Hook(path="/g")),
        ),
        annotations={"org.example": "yes"},
        linux=Linux(
            namespaces=(Namespace("pid"), Namespace("network", "/proc/1/ns/net")),
            cgroups_path="/docker/1",
            resources=Resources(
                memory_limit_bytes=1 << 20,
                memory_reservation_bytes=1024,
                memory_swap_bytes=-1,
                cpu_shares=512,
                cpu_quota_us=-1,
                cpu_period_us=100_000,
                cpuset_cpus="0-1",
                cpuset_mems="0",
                pids_limit=99,
            ),
            devices=(Device(path="/dev/x", type="c", major=10, minor=200, file_mode=0o600, uid=5, gid=6),),
            uid_mappings=(IdMapping(container_id=0, host_id=1000, size=1),),
            gid_mappings=(IdMapping(container_id=1, host_id=2000, size=2),),
            masked_paths=("/proc/kcore",),
            readonly_paths=("/proc/sys",),
            has_seccomp=True,
        ),
    )


def test_an_empty_document_has_the_defaults() -> None:
    assert typed({}) == Config()


def test_nulls_are_defaults() -> None:
    everything: dict[str, Json] = json.loads(WHOLE)
    assert typed(dict.fromkeys(everything)) == Config()
    process: dict[str, Json] = dict.fromkeys(json.loads(WHOLE)["process"])
    assert typed({"process": process}) == Config(process=Process())


def places(tree: Json, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place below `tree`."""
    items: list[tuple[str | int, Json]] = []
    if isinstance(tree, dict):
        items = [*tree.items()]
    elif isinstance(tree, list):
        items = [*enumerate(tree)]
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


def replaced(tree: Json, path: tuple[str | int, ...], value: Json) -> Json:
    """`tree` with another value at `path`."""
    if not path:
        return value
    if isinstance(tree, dict):
        return {key: replaced(item, path[1:], value) if key == path[0] else item for key, item in tree.items()}
    assert isinstance(tree, list)
    return [replaced(item, path[1:], value) if index == path[0] else item for index, item in enumerate(tree)]


def named(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


# What a filter for system calls says is runc's to read; annotations are looked at before.
READ = [path for path in places(json.loads(WHOLE)) if "seccomp" not in path and path[0] != "annotations"]


@pytest.mark.parametrize("path", READ, ids=named)
def test_a_value_of_the_wrong_kind_is_refused_by_its_place(path: tuple[str | int, ...]) -> None:
    with pytest.raises(BundleError) as caught:
        # No property is a number with a fraction.
        typed(replaced(json.loads(WHOLE), path, 0.5))
    assert caught.value.json_path == named(path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("process", "user", "uid"), -1),
        (("process", "user", "uid"), 1 << 32),
        (("process", "user", "additionalGids", 1), 1 << 32),
        (("process", "consoleSize", "height"), 1 << 16),
        (("process", "rlimits", 0, "hard"), 1 << 64),
        (("linux", "resources", "memory", "limit"), 1 << 63),
        (("linux", "resources", "cpu", "shares"), -1),
        (("linux", "devices", 0, "fileMode"), 1 << 32),
    ],
)
def test_a_number_that_does_not_fit_is_refused(path: tuple[str | int, ...], value: int) -> None:
    with pytest.raises(BundleError, match="out of range") as caught:
        typed(replaced(json.loads(WHOLE), path, value))
    assert caught.value.json_path == named(path)


def test_no_value_of_an_environment_is_in_a_repr(tmp_path: Path) -> None:
    secret = {"process": {"env": ["TOKEN=secret"]}, "hooks": {"poststop": [{"path": "/x", "env": ["TOKEN=secret"]}]}}
    (tmp_path / "config.json").write_text(json.dumps(secret))
    assert "secret" not in repr(load_bundle(str(tmp_path)))
