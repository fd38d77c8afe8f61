"""The config.json that `pyrune spec` writes: a template for an ordinary container, or for an enclave.

The template is `runc spec`'s of the 1.1 series, byte for byte but for ociVersion, so that people and programs may use
either command: tabs, the order of Go's struct fields, no newline at the end. It depends on the machine as runc's does:
a cgroup namespace is added where only cgroup 2 is mounted, and the rootless form names the caller's ids. (runc 1.2 and
later differ in that they leave out the ambient capabilities.) Measured with runc 1.1.5.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from pyrune.annotations import enclave_request
from pyrune.document import CONFIG_NAME, OCI_VERSION, Json, config_failure, shown_config
from pyrune.enclave_type import ARGS, NITRO, TYPE
from pyrune.errors import AnnotationError, BundleError

_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount")

# destination, type, source, options
_MOUNTS: Final = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")),
)
# A user namespace that maps one id has no tty group, and may not mount a sysfs of the host's network.
_ROOTLESS_MOUNTS: Final = {
    "/dev/pts": ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")),
    "/sys": ("/sys", "none", "/sys", ("rbind", "nosuid", "noexec", "nodev", "ro")),
}

_MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
_READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class EnclaveArguments:
    """What goes into enclave.runtime.args, as the user wrote it; None is left out."""

    image: str | None = None
    memory: str | None = None
    vcpus: str | None = None


def default_spec(
    *, rootless: bool = False, enclave: EnclaveArguments | None = None, unified_cgroup: bool | None = None
) -> str:
    """The text of a new config.json. `unified_cgroup`: whether the machine has only cgroup 2; None looks.

    Raises AnnotationError for arguments that `pyrune create` would refuse.
    """
    if unified_cgroup is None:
        unified_cgroup = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    document: dict[str, Json] = {
        "ociVersion": OCI_VERSION,
        "process": _process(terminal=enclave is None),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "runc",
        "mounts": _mounts(rootless),
    }
    if enclave is not None:
        document["annotations"] = _annotations(enclave)
    document["linux"] = _linux(rootless, unified_cgroup)
    return json.dumps(document, indent="\t", ensure_ascii=False)


def write_spec(bundle: str, text: str) -> None:
    """Write `text` as the config.json of the directory `bundle`, which must not have one. Raises BundleError."""
    path = os.path.join(bundle, CONFIG_NAME)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as exc:
        raise BundleError(shown_config(bundle), f"File {CONFIG_NAME} exists. Remove it first") from exc
    except OSError as exc:
        raise config_failure(bundle, exc, "written") from exc


def _process(*, terminal: bool) -> Json:
    kinds = ("bounding", "effective", "permitted", "ambient")
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": ["sh"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {kind: list(_CAPABILITIES) for kind in kinds},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _mounts(rootless: bool) -> Json:
    rows = [_ROOTLESS_MOUNTS.get(row[0], row) if rootless else row for row in _MOUNTS]
    return [_mount(*row) for row in rows]


def _mount(destination: str, kind: str, source: str, options: tuple[str, ...]) -> Json:
    mount: dict[str, Json] = {"destination": destination, "type": kind, "source": source}
    if options:
        mount["options"] = list(options)
    return mount


def _annotations(enclave: EnclaveArguments) -> Json:
    given = {"image": enclave.image, "memory": enclave.memory, "vcpus": enclave.vcpus}
    for name, value in given.items():
        if value is not None and not {" ", ","}.isdisjoint(value):
            raise AnnotationError(ARGS, f"{name}= cannot hold a space or comma", remedy="they separate arguments")
    args = " ".join(f"{name}={value}" for name, value in given.items() if value is not None)
    annotations = {TYPE: NITRO} | ({ARGS: args} if args else {})
    enclave_request(annotations, ())
    return {**annotations}


def _linux(rootless: bool, unified_cgroup: bool) -> Json:
    linux: dict[str, Json] = {}
    namespaces = [*_NAMESPACES, "cgroup"] if unified_cgroup else [*_NAMESPACES]
    if rootless:
        namespaces.remove("network")
        namespaces.append("user")
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    linux["namespaces"] = [{"type": namespace} for namespace in namespaces]
    linux["maskedPaths"] = list(_MASKED_PATHS)
    linux["readonlyPaths"] = list(_READONLY_PATHS)
    return linux
