"""Real huge pages of 2 MiB for a test: added to the machine's pool, and taken away again.

Other tests on the machine may want to do the same: they wait for each other (tests/emulated_driver has the same lock).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import missing

PAGE_BYTES = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
LOCK = Path(tempfile.gettempdir()) / "pyrune-huge-pages.lock"


def pool_number(name: str) -> int:
    """One of the pool's numbers, such as free_hugepages."""
    return int((POOL / name).read_text())


@contextmanager
def added_pages(count: int) -> Iterator[None]:
    """`count` more pages in the pool; skips the test where this user or machine cannot have them."""
    if os.geteuid() != 0:
        missing("root", "huge pages can only be added by root")
    if not POOL.is_dir():
        missing("hugepages", "this kernel has no huge pages of 2 MiB")
    with open(LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = pool_number("nr_hugepages")
        (POOL / "nr_hugepages").write_text(str(before + count))
        try:
            if (added := pool_number("nr_hugepages") - before) < count:
                missing("hugepages", f"only {added} of {count} huge pages could be added")
            yield
        finally:
            (POOL / "nr_hugepages").write_text(str(before))


@contextmanager
def hugetlb_cgroup() -> Iterator[Path]:
    """An empty cgroup (version 2) with the hugetlb controller; skips the test where none can be made."""
    top = next(
        (Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line), None
    )
    if top is None or "hugetlb" not in (top / "cgroup.controllers").read_text().split():
        missing("hugepages", "there is no hugetlb controller in a cgroup hierarchy of version 2")
    group = top / f"pyrune-test-{os.getpid()}"
    had_controller = "hugetlb" in (top / "cgroup.subtree_control").read_text().split()
    try:
        (top / "cgroup.subtree_control").write_text("+hugetlb")
        group.mkdir()
    except OSError as exc:
        missing("root", f"no cgroup can be made (error {exc.errno})")
    try:
        yield group
    finally:
        group.rmdir()
        if not had_controller:
            (top / "cgroup.subtree_control").write_text("-hugetlb")
