"""The machine's huge pages: what is free, and which to take for an enclave. Nothing is taken here.

Pages come in a few sizes, each a multiple of the next smaller one (2 MiB and 1 GiB on x86_64; up to 16 GiB on
aarch64), each with a pool of its own on every NUMA node. The driver wants them from the node of its CPU pool.

Source of the files: the kernel's Documentation/admin-guide/mm/hugetlbpage.rst and cgroup-v2.rst (HugeTLB).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyrune.errors import BackendError
from pyrune.ne.uapi import ALLOCATOR_FILE, ALLOCATOR_SERVICE, MIN_REGION_BYTES

SYSFS: Final = Path("/sys")

# For every region the driver allocates two arrays, with 8 and 16 bytes for each 2 MiB, in one piece: up to this size
# they stay within what the kernel can always find (8 pages in a row), however fragmented its memory is.
MAX_REGION_BYTES: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class PageRun:
    """So many huge pages of one size, to be mapped in one piece."""

    page_bytes: int
    count: int

    @property
    def size_bytes(self) -> int:
        return self.page_bytes * self.count


def plan_runs(wanted_bytes: int, free: Mapping[int, int]) -> tuple[PageRun, ...] | None:
    """Which pages to take for at least `wanted_bytes`, largest first; None if there are not enough.

    `free` is the number of free pages by size in bytes. The sum exceeds what is wanted by as little as any choice
    could; of those choices, it is the one with the fewest pages.
    """
    sizes = sorted(size for size, count in free.items() if count > 0)
    # The least sum that can be had is what is wanted, rounded up to one of the sizes: from a sum that is not, a page
    # of its smallest size could be left out. And the sums grow with the sizes.
    for size in sizes:
        total = -(-wanted_bytes // size) * size
        if (counts := _exactly(total, free, sizes)) is not None:
            return tuple(run for page in reversed(sizes) for run in _runs(page, counts[page]))
    return None


def _exactly(total: int, free: Mapping[int, int], sizes: list[int]) -> dict[int, int] | None:
    """How many pages of each size make up `total`, taking the largest first: if any choice does, then this one."""
    counts = {}
    for size in reversed(sizes):
        counts[size] = min(free[size], total // size)
        total -= counts[size] * size
    return counts if total == 0 else None


def _runs(page_bytes: int, count: int) -> Iterator[PageRun]:
    most = max(1, MAX_REGION_BYTES // page_bytes)
    while count > 0:
        yield PageRun(page_bytes, min(count, most))
        count -= most


def free_pages(node: int | None, sysfs: Path = SYSFS) -> dict[int, int]:
    """The number of pages by size that can be taken on a NUMA node, or on the whole machine for None.

    Sizes that the driver does not take are left out. Pages that others have reserved and not touched yet count as
    taken, although the kernel does not say on which node it will find them.
    """
    found = {}
    for path in (sysfs / "kernel/mm/hugepages").glob("hugepages-*kB"):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        if size % MIN_REGION_BYTES:
            continue
        unreserved = _number(path / "free_hugepages") - _signed(_number(path / "resv_hugepages"))
        if node is not None:
            unreserved = min(unreserved, _number(_node_pool(node, size, sysfs) / "free_hugepages"))
        found[size] = max(0, unreserved)
    return found


def online_nodes(sysfs: Path = SYSFS) -> tuple[int, ...]:
    """The machine's NUMA nodes; a kernel without NUMA has none."""
    return tuple(sorted(int(path.name[4:]) for path in (sysfs / "devices/system/node").glob("node[0-9]*")))


class HugePageShortage(BackendError):
    """There are not enough huge pages. The text says where, and how there would be more."""

    def __init__(self, wanted_bytes: int, node: int | None, free: Mapping[int, int]) -> None:
        self.wanted_bytes = wanted_bytes
        where = "" if node is None else f" on NUMA node {node}"
        some = [f"{count} of {in_words(size)}" for size, count in sorted(free.items()) if count]
        pool = _pool_directory(node, min(free, default=MIN_REGION_BYTES), SYSFS)
        super().__init__(
            f"the enclave needs {wanted_bytes >> 20} MiB in huge pages{where}; free there: {', '.join(some) or 'none'}",
            remedy=f"raise memory_mib in {ALLOCATOR_FILE} and restart {ALLOCATOR_SERVICE}, or raise the number in "
            f"{pool}/nr_hugepages, or stop what uses them",
        )


class HugePageCgroupLimit(BackendError):
    """A hugetlb cgroup allows no more of them."""

    def __init__(self, wanted_bytes: int, file: Path, limit_bytes: int, used_bytes: int) -> None:
        super().__init__(
            f"the enclave needs {wanted_bytes >> 20} MiB in huge pages, and its cgroup allows {limit_bytes >> 20} MiB, "
            f"of which {used_bytes >> 20} MiB are in use",
            remedy=f"raise {file}, or start the container in another cgroup",
        )


def shortage(wanted_bytes: int, page_bytes: int, node: int | None) -> BackendError:
    """Why `wanted_bytes` in pages of one size cannot be had: the cgroup's limit, or the pages themselves."""
    for limit_file, usage_file in _cgroup_files(page_bytes):
        limit, used = _limit(limit_file), _limit(usage_file)
        if limit is not None and used is not None and limit - used < wanted_bytes:
            return HugePageCgroupLimit(wanted_bytes, limit_file, limit, used)
    return HugePageShortage(wanted_bytes, node, free_pages(node))


def _cgroup_files(page_bytes: int) -> Iterator[tuple[Path, Path]]:
    """Limit and usage of this process's hugetlb cgroup and those above it, with and without reservations."""
    name = f"hugetlb.{in_words(page_bytes).replace(' ', '').replace('iB', 'B')}"
    tops = _cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        version = 2 if not controllers else 1 if "hugetlb" in controllers.split(",") else None
        if version is None or version not in tops:
            continue
        limit, usage = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
        group = tops[version] / path.lstrip("/")
        while group.is_relative_to(tops[version]):
            for kind in (name, f"{name}.rsvd"):
                yield group / f"{kind}.{limit}", group / f"{kind}.{usage}"
            group = group.parent


def _cgroup_mounts(mountinfo: str) -> dict[int, Path]:
    """Where the hierarchy of the hugetlb controller may be mounted, by cgroup version; the fields are proc(5)'s."""
    found = {}
    for line in mountinfo.splitlines():
        mount, _, file_system = line.partition(" - ")
        kind, _, options = file_system.split(" ", 2)
        if kind == "cgroup2":
            found[2] = Path(mount.split()[4])
        elif kind == "cgroup" and "hugetlb" in options.split(","):
            found[1] = Path(mount.split()[4])
    return found


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if re.fullmatch("[0-9]+", text) else None


def in_words(size_bytes: int) -> str:
    """A page size, as "2 MiB" or "1 GiB"."""
    return f"{size_bytes >> 30} GiB" if size_bytes >= 1 << 30 else f"{size_bytes >> 20} MiB"


def _pool_directory(node: int | None, page_bytes: int, sysfs: Path) -> Path:
    name = f"hugepages-{page_bytes >> 10}kB"
    return sysfs / "kernel/mm/hugepages" / name if node is None else _node_pool(node, page_bytes, sysfs)


def _node_pool(node: int, page_bytes: int, sysfs: Path) -> Path:
    return sysfs / f"devices/system/node/node{node}/hugepages/hugepages-{page_bytes >> 10}kB"


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except OSError:
        return 0


def _signed(value: int) -> int:
    # Between unmapping and the enclave's end the kernel's count can fall below zero, and is shown as 2^64 - N.
    return value - (1 << 64) if value >= 1 << 63 else value
