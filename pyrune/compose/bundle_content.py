"""What of an OCI bundle goes into an enclave: its root file system and its process.

Much of a config.json is about the machine that a container shares with others, and has no meaning in an enclave of
its own; some of it is not done by the guest's init yet. The latter is listed, so that nobody takes it for enforced.
What would make the process see other files than the bundle says is refused.
"""

from __future__ import annotations

from typing import Final

from pyrune.bundle import Bundle
from pyrune.compose.process_spec import ProcessSpec
from pyrune.config import Process

# What engines mount into every container: new file systems where the guest has its own, ...
_GUESTS_OWN: Final = frozenset(
    ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/run", "/tmp"]
)
# ... and files of the parent that are about the engine's network, or about the container.
_ENGINES_FILES: Final = frozenset(
    ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/run/.containerenv", "/run/secrets", "/dev/shm"]
)
_GUESTS_UMASK: Final = 0o022


def process_of(bundle: Bundle) -> ProcessSpec:
    """The process of a bundle, as config.json has it. Raises BundleError for what no enclave of today can give it."""
    process = bundle.process
    for index, mount in enumerate(bundle.config.mounts):
        of_parent = mount.type == "bind" or bool({"bind", "rbind"} & set(mount.options))
        if mount.destination.rstrip("/") not in (_ENGINES_FILES if of_parent else _GUESTS_OWN):
            place = bundle.place(f"mounts[{index}].destination")
            raise place.error("an enclave has no mounts of its parent", "put its files into the root file system")
    if process.user.umask not in (None, _GUESTS_UMASK):
        raise bundle.place("process.user.umask").error("the guest's init sets 022", "leave it out")
    user = process.user
    return ProcessSpec(process.args, process.env, process.cwd, user.uid, user.gid, user.additional_gids)


def not_enforced(bundle: Bundle) -> tuple[str, ...]:
    """The properties of config.json that the guest's init does not carry out."""
    process, linux = bundle.process, bundle.config.linux
    present = {
        "process.terminal": process.terminal,
        "process.user.additionalGids": set(process.user.additional_gids) - {process.user.gid},
        "process.capabilities": process.capabilities is not None,
        "process.rlimits": process.rlimits,
        "process.noNewPrivileges": process.no_new_privileges,
        **_labels(process),
        "root.readonly": bundle.root.readonly,
        "hostname": bundle.config.hostname,
        "linux.maskedPaths": linux.masked_paths,
        "linux.readonlyPaths": linux.readonly_paths,
        "linux.seccomp": linux.has_seccomp,
        "linux.devices": linux.devices,
        "linux.resources": linux.resources != type(linux.resources)(),
    }
    return tuple(name for name, value in present.items() if value)


def _labels(process: Process) -> dict[str, bool]:
    return {
        "process.apparmorProfile": bool(process.apparmor_profile),
        "process.selinuxLabel": bool(process.selinux_label),
    }
