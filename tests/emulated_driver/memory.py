"""Regions of an enclave's memory, as the device sees them: physical pages, not what a process maps later.

A page is known by its frame number at registration. Its content is read when the enclave starts, through the memory
map of the process that registered it; where that map has another frame by then (a fork and a write in between made a
copy), the device would see the old page, which held what was there before the write: that page reads as zeros here.

Sources: the driver's ne_set_user_memory_region_ioctl; the kernel's Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.emulated_driver.kernel import fault_in, nodes_of_pages, same_memory_map
from tests.emulated_driver.task import Task

ERR_INVALID_MEM_REGION_SIZE: Final = 259
ERR_INVALID_MEM_REGION_ADDR: Final = 260
ERR_UNALIGNED_MEM_REGION_ADDR: Final = 261
ERR_MEM_REGION_ALREADY_USED: Final = 262
ERR_MEM_NOT_HUGE_PAGE: Final = 263
ERR_MEM_DIFFERENT_NUMA_NODE: Final = 264
ERR_INVALID_PAGE_SIZE: Final = 273

MIN_REGION_BYTES: Final = 2 << 20
_GIB: Final = 1 << 30
_BASE_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_FRAME_MASK: Final = (1 << 55) - 1
_PRESENT: Final = 1 << 63
# Bits of /proc/kpageflags.
_TAIL: Final = 1 << 16
_HUGETLB: Final = 1 << 17


class MemoryMap:
    """The memory map of a process at a time: not the process, which may exec or end."""

    def __init__(self, task: Task) -> None:
        self.pid = task.pid
        self._memory = os.open(f"/proc/{task.tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._pagemap = os.open(f"/proc/{task.tid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._pagemap)

    @property
    def is_alive(self) -> bool:
        """Whether any process still runs on it."""
        try:
            return os.pread(self._memory, 1, 0) != b""
        except OSError:
            # Nothing is mapped at 0, but somebody was there to look for it.
            return True

    def is_of(self, task: Task) -> bool:
        try:
            return self.is_alive and same_memory_map(task.tid, self.pid)
        except ProcessLookupError:
            return False

    def frame(self, address: int) -> int | None:
        """The frame number of the page at `address`; None where there is no page."""
        raw = os.pread(self._pagemap, 8, address // _BASE_PAGE_BYTES * 8)
        entry = struct.unpack("=Q", raw)[0] if len(raw) == 8 else 0
        return entry & _FRAME_MASK if entry & _PRESENT else None

    def read(self, address: int, size: int) -> bytes:
        """Raises OSError where that cannot be read."""
        found = b""
        while len(found) < size and (part := os.pread(self._memory, size - len(found), address + len(found))):
            found += part
        if len(found) < size:
            raise OSError(errno.EFAULT, "memory is gone")
        return found


@dataclass(frozen=True, slots=True)
class Page:
    """A huge page, or a larger one, that an enclave has been given."""

    address: int
    frame: int
    size: int


@dataclass(frozen=True, slots=True)
class Region:
    """What one registration gave. `size` is what was asked for; the pages may be more."""

    address: int
    size: int
    pages: tuple[Page, ...]

    def overlaps(self, address: int, size: int) -> bool:
        # The driver's comparison: an empty region inside another overlaps it.
        return self.address <= address < self.address + self.size or address <= self.address < address + size


@dataclass(slots=True)
class EnclaveMemory:
    """All regions of an enclave in the order of registration, which is the order of its addresses."""

    map: MemoryMap
    numa_node: int
    regions: list[Region] = field(default_factory=list)
    # Those that the device has taken, too.
    donated: list[Region] = field(default_factory=list)
    moved_pages: int = 0

    def examine(self, task: Task, address: int, size: int) -> Region:
        """The driver's checks of a new region. Raises OSError."""
        if size % MIN_REGION_BYTES:
            raise OSError(ERR_INVALID_MEM_REGION_SIZE, "size")
        if address % MIN_REGION_BYTES:
            raise OSError(ERR_UNALIGNED_MEM_REGION_ADDR, "alignment")
        if address + size >= 1 << 63:
            raise OSError(ERR_INVALID_MEM_REGION_ADDR, "address")
        if any(region.overlaps(address, size) for region in self.regions):
            raise OSError(ERR_MEM_REGION_ALREADY_USED, "overlap")
        if size == 0:
            raise OSError(errno.ENOMEM, "nothing")
        return Region(address, size, tuple(self._pages(task, address, size)))

    def _pages(self, task: Task, address: int, size: int) -> Iterator[Page]:
        flags_fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = address + size
            while address < end:
                page = self._page(task, flags_fd, address)
                yield page
                address += page.size
        finally:
            os.close(flags_fd)

    def _page(self, task: Task, flags_fd: int, address: int) -> Page:
        fault_in(task.tid, [address])
        frame = self.map.frame(address)
        if frame is None:
            raise OSError(errno.EFAULT, "no page")
        flags = _page_flags(flags_fd, frame)
        if not flags & _HUGETLB:
            raise OSError(ERR_MEM_NOT_HUGE_PAGE, "small page")
        if flags & _TAIL:
            raise OSError(ERR_INVALID_PAGE_SIZE, "inside a larger page")
        if nodes_of_pages(self.map.pid, [address]) != [self.numa_node]:
            raise OSError(ERR_MEM_DIFFERENT_NUMA_NODE, "node")
        beyond = _page_flags(flags_fd, frame + MIN_REGION_BYTES // _BASE_PAGE_BYTES)
        return Page(address, frame, _GIB if beyond & _TAIL else MIN_REGION_BYTES)

    @property
    def donated_bytes(self) -> int:
        return sum(page.size for region in self.donated for page in region.pages)

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """What the enclave finds at `offset` of its memory, in pieces of a page at most; short where memory ends.

        Counts the pages that have moved since their registration.
        """
        begin = 0
        for page in (page for region in self.donated for page in region.pages):
            first = max(offset, begin) - begin
            last = min(offset + size, begin + page.size) - begin
            if first < last:
                yield from self._read_page(page, first, last)
            begin += page.size

    def _read_page(self, page: Page, first: int, last: int) -> Iterator[bytes]:
        if self.map.frame(page.address) != page.frame:
            self.moved_pages += 1
            yield bytes(last - first)
            return
        for start in range(first, last, MIN_REGION_BYTES):
            size = min(MIN_REGION_BYTES, last - start)
            content = bytes(size)
            with contextlib.suppress(OSError):
                content = self.map.read(page.address + start, size)
            yield content


def _page_flags(flags_fd: int, frame: int) -> int:
    raw = os.pread(flags_fd, 8, frame * 8)
    return int(struct.unpack("=Q", raw)[0]) if len(raw) == 8 else 0
