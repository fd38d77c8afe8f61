"""Enclave memory: huge pages mapped into this process, one mapping for each region that the driver will be told of.

Pages are reserved when they are mapped, but the reservation knows no NUMA node and no cgroup limit: a page that is
missing after all would end the process with SIGBUS at the first store. So nothing here stores. Pages are filled by
preadv, or called for with MADV_POPULATE_WRITE; both fail with an error instead.

The mappings are private, and kept from children of this process (MADV_DONTFORK): a page shared with a child would be
copied at the next write, and the enclave would go on with the other copy. Nothing in the monitor forks anyway.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Final

from pyrune.errors import BackendError
from pyrune.ne.hugepages import PageRun, free_pages, in_words, online_nodes, plan_runs, shortage

# From the kernel's uapi headers: mman.h and errno.h (asm-generic), mempolicy.h, and unistd.h of each architecture.
_MAP_HUGETLB: Final = 0x40000
_MAP_HUGE_SHIFT: Final = 26
_MADV_DONTFORK: Final = 10
_MADV_POPULATE_WRITE: Final = 23
_MPOL_BIND: Final = 2
_SYS_MBIND: Final = {"x86_64": 237, "aarch64": 235}
_EHWPOISON: Final = 133
_MAX_NODES: Final = 1024

# Others may take pages between looking and mapping; looking again finds what is left for us, or that nothing is.
_TRIES: Final = 16
# One call into the kernel populates so much at most, so that a signal that ends the process need not wait long.
_POPULATE_BYTES: Final = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class HugeRegion:
    """One mapping of huge pages of one size. Nothing is populated yet."""

    def __init__(self, run: PageRun, node: int | None) -> None:
        """`node` None leaves it to the kernel where the pages come from. Raises OSError."""
        self.run = run
        self.size_bytes = run.size_bytes
        self._node = node
        size_flag = (run.page_bytes.bit_length() - 1) << _MAP_HUGE_SHIFT
        self._map = mmap.mmap(
            -1, run.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | size_flag
        )
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._view = memoryview(self._map)
        try:
            self._map.madvise(_MADV_DONTFORK)
            if node is not None:
                bind_to_node(self.address, self.size_bytes, node)
        except OSError:
            self.close()
            raise

    def piece(self, start: int, end: int) -> memoryview:
        """The bytes from `start` to `end`. The caller releases it, before `close`."""
        return self._view[start:end]

    def populate(self, start: int, end: int) -> None:
        """Have every page from `start` to `end`, both multiples of the page size, which nobody has written to.

        Raises BackendError when there is no page.
        """
        while start < end:
            size = max(self.run.page_bytes, min(end - start, _POPULATE_BYTES))
            if _libc.madvise(ctypes.c_void_p(self.address + start), ctypes.c_size_t(size), _MADV_POPULATE_WRITE) != 0:
                number = ctypes.get_errno()
                if number == errno.EINVAL:
                    self._read_zeros(start, start + size)
                elif number not in (errno.EINTR, errno.EAGAIN):
                    raise self.failure(number)
                else:
                    continue
            start += size

    def failure(self, number: int) -> BackendError:
        """The error for a page of this region that could not be had."""
        if number in (errno.EFAULT, errno.ENOMEM):
            return shortage(self.size_bytes, self.run.page_bytes, self._node)
        if number == _EHWPOISON:
            return BackendError(
                "a huge page of this machine is broken hardware (EHWPOISON)", remedy="stop and start the instance"
            )
        return BackendError(
            f"{in_words(self.run.page_bytes)} huge pages cannot be populated (error {number})",
            remedy="see the kernel's log (dmesg)",
        )

    def close(self) -> None:
        """Unmap. The pages are free again once the enclave that was given them is closed, too."""
        self._view.release()
        self._map.close()

    def _read_zeros(self, start: int, end: int) -> None:
        """What MADV_POPULATE_WRITE does, for kernels before 5.14: the kernel writes, so a missing page is EFAULT."""
        with open("/dev/zero", "rb", buffering=0) as zeros:
            for page in range(start, end, self.run.page_bytes):
                with self.piece(page, page + 1) as byte:
                    try:
                        os.preadv(zeros.fileno(), [byte], 0)
                    except OSError as exc:
                        raise self.failure(exc.errno or 0) from exc


def bind_to_node(address: int, size_bytes: int, node: int) -> None:
    """Have the pages of a mapping come from one NUMA node only. Raises OSError."""
    number = _SYS_MBIND.get(os.uname().machine)
    if number is None:
        return
    words = (ctypes.c_ulong * (_MAX_NODES // 64))()
    words[node // 64] = 1 << node % 64
    arguments = (ctypes.c_void_p(address), ctypes.c_ulong(size_bytes), ctypes.c_long(_MPOL_BIND), words)
    if _libc.syscall(ctypes.c_long(number), *arguments, ctypes.c_ulong(_MAX_NODES), ctypes.c_uint(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mbind: {os.strerror(code)}")


class EnclaveMemory:
    """All regions of one enclave, in the order in which the driver is told of them: enclave memory is their sum."""

    def __init__(self, regions: Sequence[HugeRegion]) -> None:
        self.regions = tuple(regions)
        self.size_bytes = sum(region.size_bytes for region in regions)

    @classmethod
    def take(cls, wanted_bytes: int, node: int | None) -> EnclaveMemory:
        """Reserve at least `wanted_bytes`, from a NUMA node unless that is None. Raises BackendError."""
        # Where there is but one node, no policy is needed, and a container's seccomp profile may forbid it.
        binding = node if len(online_nodes()) > 1 else None
        for _ in range(_TRIES):
            runs = plan_runs(wanted_bytes, free_pages(node))
            if runs is None:
                break
            if (regions := _map_all(runs, binding)) is not None:
                return cls(regions)
        free = free_pages(node)
        raise shortage(wanted_bytes, min(free, default=2 << 20), node)

    def locate(self, offset: int, size_bytes: int) -> Iterator[tuple[HugeRegion, int, int]]:
        """The parts of regions (region, start, end) where `size_bytes` at `offset` of enclave memory lie."""
        for region in self.regions:
            if offset < region.size_bytes and size_bytes > 0:
                end = min(region.size_bytes, offset + size_bytes)
                yield region, offset, end
                size_bytes -= end - offset
                offset = end
            offset -= region.size_bytes

    def read(self, offset: int, size_bytes: int) -> bytes:
        """A copy of a few bytes of enclave memory that have been written."""
        found = bytearray()
        for region, start, end in self.locate(offset, size_bytes):
            with region.piece(start, end) as piece:
                found += piece
        return bytes(found)

    def close(self) -> None:
        """Unmap everything. May be called again."""
        regions, self.regions = self.regions, ()
        for region in regions:
            region.close()


def _map_all(runs: Sequence[PageRun], node: int | None) -> list[HugeRegion] | None:
    """All of `runs`, or None if there are not as many pages as there were."""
    with ExitStack() as undo:
        regions = []
        for run in runs:
            try:
                region = HugeRegion(run, node)
            except OSError as exc:
                if exc.errno == errno.ENOMEM:
                    return None
                raise _mapping_error(run, node, exc.errno or 0) from exc
            undo.callback(region.close)
            regions.append(region)
        undo.pop_all()
        return regions


def _mapping_error(run: PageRun, node: int | None, number: int) -> BackendError:
    where = "" if node is None else f" on NUMA node {node}"
    hints = {
        errno.EINVAL: "the kernel knows no pages of that size, or no such node",
        errno.EPERM: "let this process call mbind: a container needs the capability SYS_NICE for it",
        errno.EAGAIN: "raise the limit on locked memory",
        errno.EMFILE: "raise the limit on mappings, vm.max_map_count",
    }
    return BackendError(
        f"{run.count} huge pages of {in_words(run.page_bytes)}{where} cannot be mapped (error {number})",
        remedy=hints.get(number, "see the kernel's log (dmesg)"),
    )
