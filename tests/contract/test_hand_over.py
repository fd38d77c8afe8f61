"""Ordinary containers are runc's: it is called as pyrune was called, and pyrune is gone from the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.oracle import Program
from tests.support.command import COMMAND, Pyrune, wait_until

pytestmark = pytest.mark.timeout(120)

RECORDING_RUNTIME = Path(__file__).with_name("recording_runtime.sh")


@pytest.fixture
def ordinary(tmp_path: Path, pyrune: Pyrune) -> Path:
    """A bundle as `pyrune spec` writes it."""
    bundle = tmp_path / "ordinary"
    bundle.mkdir()
    pyrune.ok("spec", "--bundle", str(bundle))
    return bundle


@pytest.fixture
def record(tmp_path: Path, pyrune: Pyrune) -> Path:
    """Where the runtime that only writes down how it is called does so; `pyrune` knows of no other."""
    directory = tmp_path / "record"
    directory.mkdir()
    pyrune.environment = {
        **pyrune.environment,
        "PYRUNE_RUNC": str(RECORDING_RUNTIME),
        "RECORD": str(directory),
        "SECRET": "of the caller",
    }
    return directory


def _arguments(record: Path) -> list[str]:
    return (record / "arguments").read_text().split("\0")[:-1]


@pytest.mark.parametrize(
    "words",
    [
        "create --bundle {bundle} --pid-file {bundle}/pid one",
        "create -bundle={bundle} -pid-file {bundle}/pid one",
        "create one -b {bundle} --no-pivot --no-new-keyring --preserve-fds 3 --console-socket /s",
        "run -d --keep --no-subreaper --bundle {bundle} -- one",
        "state nosuch",
        "start nosuch",
        "kill -a nosuch KILL",
        "kill nosuch no-signal-that-we-know",
        "delete --force nosuch",
        "ps nosuch -o pid,comm --sort=pid",
        "exec --process /p -d nosuch",
        "exec -t nosuch sh -c exit~3",
        "update --resources - nosuch",
        "pause nosuch",
        "resume nosuch",
        "events --stats nosuch",
        "checkpoint --image-path /i nosuch",
        "restore --bundle {bundle} nosuch",
        "features",
    ],
)
def test_the_runtime_gets_the_very_same_arguments(pyrune: Pyrune, ordinary: Path, record: Path, words: str) -> None:
    given = [word.replace("{bundle}", str(ordinary)).replace("~", " ") for word in words.split()]
    global_options = ["--log", str(record / "log"), "--log-format=json", "-debug", "--systemd-cgroup"]
    done = pyrune(*global_options, *given)
    assert done.returncode == 7
    assert _arguments(record) == ["--root", str(pyrune.root), *global_options, *given]
    assert (record / "log").read_text() == ""


def test_the_runtime_takes_the_process_with_all_that_it_has(pyrune: Pyrune, ordinary: Path, record: Path) -> None:
    read_end, write_end = os.pipe()
    try:
        as_5 = "import os, sys; os.dup2(int(sys.argv[1]), 5); os.execv(sys.argv[2], sys.argv[2:])"
        process = subprocess.Popen(
            [sys.executable, "-c", as_5, str(read_end), *pyrune.argv("run", "-b", str(ordinary), "one")],
            env=pyrune.environment,
            pass_fds=[read_end],
        )
        assert process.wait(timeout=60) == 7
        assert (record / "pid").read_text() == str(process.pid)
        assert (record / "descriptor5").read_text().startswith("pipe:")
        assert "SECRET=of the caller" in (record / "environment").read_text().split("\0")
        # Python ignores SIGPIPE; a container must not.
        assert int((record / "ignored").read_text().split()[1], 16) & (1 << 12) == 0
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"annotations": {"enclave.type": "intelSgx"}}, "'intelSgx' is no type of enclave that pyrune runs"),
        ({"annotations": {"enclave.runtime.args": "image=/i"}}, "given without enclave.type"),
        ({"annotations": {"enclave.typo": "AwsNitroEnclaves"}}, "unknown annotation"),
        ({"process": {"env": ["ENCLAVE_RUNTIME_ARGS=image=/i"]}}, "given without enclave.type"),
        ({"process": {"env": ["ENCLAVE_TYPE=awsnitroenclaves"]}}, "no type of enclave that pyrune runs"),
        ({"Annotations": {"enclave.type": "AwsNitroEnclaves"}}, "spell it in lower case"),
    ],
)
def test_what_asks_for_an_enclave_wrongly_is_never_an_ordinary_container(
    pyrune: Pyrune, ordinary: Path, record: Path, change: dict[str, object], text: str
) -> None:
    config = json.loads((ordinary / "config.json").read_text())
    (ordinary / "config.json").write_text(json.dumps(config | change))
    for verb in ("create", "run"):
        done = pyrune(verb, "--bundle", str(ordinary), "one")
        assert done.returncode == 1
        assert text in done.stderr
    assert list(record.iterdir()) == []


def test_an_empty_type_is_an_ordinary_container(pyrune: Pyrune, ordinary: Path, record: Path) -> None:
    config = json.loads((ordinary / "config.json").read_text())
    (ordinary / "config.json").write_text(json.dumps(config | {"annotations": {"enclave.type": "", "other": "x"}}))
    assert pyrune("create", "--bundle", str(ordinary), "one").returncode == 7


def test_what_is_wrong_with_an_ordinary_bundle_is_runcs_to_say(pyrune: Pyrune, ordinary: Path, record: Path) -> None:
    (ordinary / "config.json").write_text('{"process": {"args": "sh", "rlimits": 3}, "root": {"path": 7}}')
    assert pyrune("create", "--bundle", str(ordinary), "one").returncode == 7


def test_enclaves_are_never_handed_over(pyrune: Pyrune, sleeper: Path, record: Path) -> None:
    pyrune.ok("create", "--bundle", str(sleeper), "mine")
    for words in (["state", "mine"], ["ps", "-f", "json", "mine"], ["kill", "mine", "WINCH"], ["list"]):
        pyrune.ok(*words)
    for verb in ("exec", "pause", "resume", "update", "events", "checkpoint", "restore"):
        done = pyrune(verb, "mine", "sh")
        assert done.returncode == 1
        assert f"{verb} is not possible: the container mine is an enclave" in done.stderr
    pyrune.ok("delete", "mine")
    assert list(record.iterdir()) == []


@pytest.mark.parametrize("runtime", ["", "/nonexistent/runtime", "/etc/passwd"])
def test_without_a_runtime_the_error_says_what_to_do(pyrune: Pyrune, ordinary: Path, runtime: str) -> None:
    pyrune.environment = {**pyrune.environment, "PYRUNE_RUNC": runtime}
    done = pyrune("run", "--bundle", str(ordinary), "one")
    assert done.returncode == 1
    assert (f"the runtime {runtime} does not start" if runtime else "install runc, or name another") in done.stderr
    # Docker would read these as a command that is missing in the container.
    assert not any(text in done.stderr for text in ("not found", "no such file", "permission denied"))


def test_pyrune_does_not_call_itself_for_ever(pyrune: Pyrune, ordinary: Path, tmp_path: Path) -> None:
    (tmp_path / "runc").symlink_to(COMMAND)
    pyrune.environment = {"PATH": str(tmp_path)}
    done = pyrune("run", "--bundle", str(ordinary), "one")
    assert done.returncode == 1
    assert "is pyrune; name another with PYRUNE_RUNC" in done.stderr


@pytest.fixture
def real(runc: Program, pyrune: Pyrune) -> Iterator[Path]:
    """A bundle for the real runc, found on PATH; its containers are below pyrune's root, and end with the test."""
    pyrune.environment = {"PATH": runc.environment["PATH"]}
    yield runc.bundle
    for container in sorted(pyrune.root.glob("*")):
        subprocess.run(["runc", "--root", pyrune.root, "delete", "--force", container.name], timeout=60, check=False)


def test_runc_runs_an_ordinary_bundle_through_pyrune(pyrune: Pyrune, real: Path) -> None:
    config = json.loads((real / "config.json").read_text())
    config["process"]["args"] = ["/bin/busybox", "sh", "-c", "echo hello; exit 3"]
    (real / "config.json").write_text(json.dumps(config))
    done = pyrune("run", "--bundle", str(real), "ordinary")
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello\n", "")


def test_enclaves_and_ordinary_containers_live_below_one_root(pyrune: Pyrune, real: Path, sleeper: Path) -> None:
    pyrune.ok("create", "--bundle", str(sleeper), "enclave")
    pyrune.ok("run", "--detach", "--bundle", str(real), "ordinary")
    assert pyrune.status("enclave") == "created"
    assert pyrune.status("ordinary") == "running"
    assert pyrune.ok("exec", "ordinary", "/bin/busybox", "echo", "enclave-less") == "enclave-less\n"
    # runc's own list is runc's to give.
    assert pyrune.ok("list", "-q") == "enclave\n"
    assert "already exists" in pyrune("create", "--bundle", str(sleeper), "ordinary").stderr
    assert "already exists" in pyrune("create", "--bundle", str(real), "enclave").stderr
    pyrune.ok("kill", "ordinary", "KILL")
    wait_until(lambda: pyrune.status("ordinary") == "stopped", "the ordinary container does not stop")
    pyrune.ok("delete", "ordinary")
    pyrune.ok("delete", "--force", "ordinary")
    pyrune.ok("delete", "enclave")
    assert shutil.which("runc", path=pyrune.environment["PATH"])
    assert list(pyrune.root.iterdir()) == []
