"""The thread behind an intercepted call: its memory, its descriptors and what they are.

Every look at it is by its thread id, which is its own only while its call waits.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.emulated_driver.kernel import copy_descriptor, read_memory, read_string_bytes, write_memory

_PATH_LIMIT = 4096


class FileIdentity(NamedTuple):
    """What a descriptor stands for, however often it was copied or passed on."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class Task:
    """A stopped thread."""

    tid: int

    @property
    def pid(self) -> int:
        """The process that the thread belongs to. Raises OSError when it is gone."""
        for line in Path(f"/proc/{self.tid}/status").read_bytes().splitlines():
            if line.startswith(b"Tgid:"):
                return int(line[5:])
        raise ProcessLookupError(errno.ESRCH, "no such task")

    def read(self, address: int, size: int) -> bytes:
        return read_memory(self.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        write_memory(self.tid, address, data)

    def read_path(self, address: int) -> str:
        """The path that an argument points to."""
        # Most paths are short, and a read that leaves the page costs a second look at the memory map.
        for limit in (256, _PATH_LIMIT):
            found = read_string_bytes(self.tid, address, limit)
            end = found.find(b"\0")
            if end >= 0:
                return os.fsdecode(found[:end])
        raise OSError(errno.ENAMETOOLONG, "path without an end")

    def identify(self, fd: int) -> FileIdentity | None:
        """What a descriptor is; None if it is none."""
        try:
            found = os.stat(f"/proc/{self.tid}/fd/{_signed(fd)}")
        except OSError:
            return None
        return FileIdentity(found.st_dev, found.st_ino)

    @property
    def is_in_own_network(self) -> bool:
        """Whether the thread is in the supervisor's network namespace."""
        return os.stat(f"/proc/{self.tid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino

    def copy(self, fd: int) -> int:
        """A copy of a descriptor, which the caller of this closes."""
        return copy_descriptor(self.pid, _signed(fd))


def identify_own(fd: int) -> FileIdentity:
    """What one of the supervisor's own descriptors is."""
    found = os.fstat(fd)
    return FileIdentity(found.st_dev, found.st_ino)


def _signed(fd: int) -> int:
    """A descriptor argument is an int in a register of 64 bits."""
    low = fd & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low
