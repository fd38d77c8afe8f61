"""Paths that this machine has not: the device, its module's parameters, the CPUs of another machine.

They are real files below a directory of the supervisor's own. A call with a path below one of ROOTS is carried out
there instead, and its result given to the caller: a descriptor, a struct stat, the target of a link. What follows from
a descriptor (reading it, listing a directory, opening relative to one) needs no help.

Whatever cannot be faked this way is refused: these files are for reading.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
from pathlib import Path
from typing import Final

from tests.emulated_driver.cpu_pool import CpuPool, format_cpu_list
from tests.emulated_driver.kernel import raw_stat, raw_statx
from tests.emulated_driver.notification import LET_THROUGH, Answer, NewDescriptor, Notification, Value
from tests.emulated_driver.scenario import Scenario
from tests.emulated_driver.task import FileIdentity, Task

DEVICE: Final = "/dev/nitro_enclaves"
VSOCK_DEVICE: Final = "/dev/vsock"
PARAMETER: Final = "/sys/module/nitro_enclaves/parameters/ne_cpus"
ROOTS: Final = (
    DEVICE,
    VSOCK_DEVICE,
    "/sys/module/nitro_enclaves",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
)
# Both are read of every path that anyone opens: most paths end here.
_FIRST_PARTS: Final = ("/dev/", "/sys/")

_MISC_MAJOR: Final = 10
_DEVICE_MINOR: Final = 124
_NULL_DEVICE: Final = os.makedev(1, 3)
_AT_FDCWD: Final = 0xFFFFFF9C
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_ACCESS_WRITE: Final = 2
_REAL_NODES: Final = Path("/sys/devices/system/node")

# Which argument is the path; the call before it has its directory, where it has one.
PATH_ARGUMENT: Final = {
    "open": 0,
    "stat": 0,
    "lstat": 0,
    "access": 0,
    "readlink": 0,
    "openat": 1,
    "openat2": 1,
    "newfstatat": 1,
    "statx": 1,
    "faccessat": 1,
    "faccessat2": 1,
    "readlinkat": 1,
}


class Files:
    """The tree, and calls on it. `directory` is empty, the supervisor's own, on a file system that takes devices."""

    def __init__(self, directory: Path, scenario: Scenario, pool: CpuPool) -> None:
        self._directory = directory
        self._scenario = scenario
        self._pool = pool
        # stat sees the first, open gets the second: a device that nobody drives cannot be opened.
        self._openable = directory / "openable"
        os.mknod(self._openable, stat.S_IFCHR | 0o600, _NULL_DEVICE)
        if not _can_be_opened(self._openable):
            raise RuntimeError(f"no device can be opened on the file system of {directory}: set TMPDIR to another one")
        if scenario.device:
            self._add_device(DEVICE, int(scenario.device_mode, 8))
        self._add_device(VSOCK_DEVICE, 0o666)
        self.refresh()

    def refresh(self) -> None:
        """Show the pool as it is now."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / "sys")
        if self._scenario.device:
            self._add(PARAMETER, f"{self._pool.text}\n")
        self._add_cpus()
        self._add_nodes()

    def resolve(self, task: Task, note: Notification) -> str | None:
        """The path that a call means if it is below one of ROOTS. Raises OSError when it cannot be read."""
        index = PATH_ARGUMENT[note.name]
        path = task.read_path(note.arguments[index])
        if not path.startswith(_FIRST_PARTS):
            return None
        path = os.path.normpath(path)
        return next((path for root in ROOTS if path == root or path.startswith(f"{root}/")), None)

    def is_device(self, identity: FileIdentity | None) -> bool:
        """Whether a descriptor is the opened device."""
        found = self._openable.stat()
        return identity == FileIdentity(found.st_dev, found.st_ino)

    def open_device(self, flags: int) -> Answer:
        """What opening DEVICE gives. Raises OSError where the scenario has none."""
        if not self._scenario.device:
            raise FileNotFoundError(errno.ENOENT, DEVICE)
        fd = os.open(self._openable, (flags & os.O_ACCMODE) | os.O_CLOEXEC)
        return NewDescriptor(fd, bool(flags & os.O_CLOEXEC))

    def carry_out(self, task: Task, note: Notification, path: str) -> Answer:
        """Carry out a call on a path that `resolve` gave. Raises OSError."""
        place = f"{self._directory}{path}"
        arguments = note.arguments
        match note.name:
            case "open" | "openat" | "openat2":
                return self._open(place, open_flags(task, note))
            case "stat" | "lstat":
                task.write(arguments[1], raw_stat(place, follow=note.name == "stat"))
            case "newfstatat":
                task.write(arguments[2], raw_stat(place, follow=not arguments[3] & _AT_SYMLINK_NOFOLLOW))
            case "statx":
                task.write(arguments[4], raw_statx(place, arguments[2] & 0xFFFFFFFF, arguments[3] & 0xFFFFFFFF))
            case "access" | "faccessat" | "faccessat2":
                self._check_access(place, arguments[PATH_ARGUMENT[note.name] + 1])
            case "readlink" | "readlinkat":
                buffer, size = arguments[PATH_ARGUMENT[note.name] + 1 :][:2]
                target = os.fsencode(os.readlink(place))[:size]
                task.write(buffer, target)
                return Value(len(target))
            case _:
                return LET_THROUGH
        return Value()

    def _open(self, place: str, flags: int) -> Answer:
        if flags & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC):
            # Except where the tree leads back to the machine's own files.
            if os.path.realpath(place).startswith(f"{self._directory}/"):
                raise PermissionError(errno.EACCES, "these files are for reading")
            flags &= ~(os.O_CREAT | os.O_TRUNC)
        if os.path.realpath(place).startswith(f"{self._directory}/dev/"):
            place = str(self._openable)
        return NewDescriptor(os.open(place, flags | os.O_CLOEXEC), bool(flags & os.O_CLOEXEC))

    def _check_access(self, place: str, mode: int) -> None:
        os.stat(place)
        if not os.access(place, mode & 7) or (mode & _ACCESS_WRITE and "/sys/" in place and not os.path.islink(place)):
            raise PermissionError(errno.EACCES, place)

    # --- what is in the tree ---------------------------------------------------------------------------------------

    def _add(self, path: str, content: str) -> None:
        place = Path(f"{self._directory}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)

    def _add_device(self, path: str, mode: int) -> None:
        place = Path(f"{self._directory}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(place, stat.S_IFCHR, os.makedev(_MISC_MAJOR, _DEVICE_MINOR))
        place.chmod(mode)

    def _link(self, path: str, target: str) -> None:
        place = Path(f"{self._directory}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def _add_cpus(self) -> None:
        """Offline CPUs, those of the pool, have no topology."""
        top = "/sys/devices/system/cpu"
        every = set(range(self._scenario.cpus))
        online = every - self._pool.members
        for name, cpus in (("online", online), ("offline", every - online), ("possible", every), ("present", every)):
            self._add(f"{top}/{name}", format_cpu_list(cpus) + "\n")
        for cpu in sorted(every):
            self._link(f"{top}/cpu{cpu}/node{self._node}", f"../../node/node{self._node}")
            if cpu:
                self._add(f"{top}/cpu{cpu}/online", f"{int(cpu in online)}\n")
            if cpu in online:
                self._add_topology(f"{top}/cpu{cpu}/topology", cpu)

    def _add_topology(self, place: str, cpu: int) -> None:
        core = self._pool.core_of(cpu)
        siblings = format_cpu_list(self._pool.siblings(core)) + "\n"
        contents = {"core_id": f"{core}\n", "physical_package_id": "0\n"}
        contents |= {"thread_siblings_list": siblings, "core_cpus_list": siblings}
        for name, content in contents.items():
            self._add(f"{place}/{name}", content)

    @property
    def _node(self) -> int:
        return self._scenario.numa_node

    def _add_nodes(self) -> None:
        """The nodes with their real memory; the CPUs are all on the pool's."""
        top = "/sys/devices/system/node"
        real = {int(place.name[4:]) for place in _REAL_NODES.glob("node[0-9]*")}
        nodes = real | {self._node}
        for name in ("online", "possible", "has_memory", "has_cpu"):
            self._add(f"{top}/{name}", format_cpu_list({self._node} if name == "has_cpu" else nodes) + "\n")
        online = set(range(self._scenario.cpus)) - self._pool.members
        for node in nodes:
            here = online if node == self._node else set()
            self._add(f"{top}/node{node}/cpulist", format_cpu_list(here) + "\n")
            for name in ("hugepages", "meminfo"):
                if node in real:
                    self._link(f"{top}/node{node}/{name}", f"{_REAL_NODES}/node{node}/{name}")
        for cpu in range(self._scenario.cpus):
            self._link(f"{top}/node{self._node}/cpu{cpu}", f"../../cpu/cpu{cpu}")


def _can_be_opened(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def open_flags(task: Task, note: Notification) -> int:
    """The flags of a call that opens something."""
    match note.name:
        case "open":
            return note.arguments[1] & 0xFFFFFFFF
        case "openat2":
            (flags,) = struct.unpack("=Q", task.read(note.arguments[2], 8))
            return int(flags)
        case _:
            return note.arguments[2] & 0xFFFFFFFF
