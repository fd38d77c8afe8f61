"""Enclave memory in real huge pages, which the fixture adds to the machine's pool and takes away again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.ne.hugepages import PageRun, free_pages
from pyrune.ne.memory import EnclaveMemory, HugeRegion, bind_to_node
from tests.needs import missing
from tests.support.huge_pages import PAGE_BYTES, added_pages, hugetlb_cgroup, pool_number

PAGES = 12


@pytest.fixture(autouse=True)
def pages() -> Iterator[None]:
    with added_pages(PAGES):
        yield


def _resident(address: int) -> int:
    """How many bytes of huge pages the kernel has given to the mapping at `address`, from smaps."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            found = line.startswith(f"{address:x}-")
        elif found and line.startswith("Private_Hugetlb"):
            return int(line.split()[1]) << 10
    raise AssertionError("there is no such mapping")


def test_mapping_reserves_pages_and_populating_takes_them() -> None:
    with closing(HugeRegion(PageRun(PAGE_BYTES, 3), None)) as region:
        assert region.address % PAGE_BYTES == 0
        assert _resident(region.address) == 0
        region.populate(PAGE_BYTES, 3 * PAGE_BYTES)
        assert _resident(region.address) == 2 * PAGE_BYTES


def test_where_the_kernel_cannot_populate_the_pages_are_read_into(monkeypatch: pytest.MonkeyPatch) -> None:
    # A number that no kernel knows: what MADV_POPULATE_WRITE is to those before 5.14.
    monkeypatch.setattr("pyrune.ne.memory._MADV_POPULATE_WRITE", 77)
    with closing(HugeRegion(PageRun(PAGE_BYTES, 3), None)) as region:
        region.populate(0, 2 * PAGE_BYTES)
        assert _resident(region.address) == 2 * PAGE_BYTES


def test_the_mapping_is_kept_from_children() -> None:
    with closing(HugeRegion(PageRun(PAGE_BYTES, 1), None)) as region:
        smaps = Path("/proc/self/smaps").read_text()
        mapping = smaps[smaps.index(f"{region.address:x}-") :]
        assert "dc" in mapping[mapping.index("VmFlags:") :].split("\n")[0].split()


def test_pages_can_be_bound_to_a_node() -> None:
    if not Path("/sys/devices/system/node/node0").is_dir():
        missing("numa", "this kernel has no NUMA")
    with closing(HugeRegion(PageRun(PAGE_BYTES, 1), None)) as region:
        bind_to_node(region.address, region.size_bytes, 0)
        region.populate(0, PAGE_BYTES)
        with pytest.raises(OSError):
            bind_to_node(region.address, region.size_bytes, 999)


def test_a_node_that_is_not_there_is_an_error_with_a_remedy() -> None:
    with pytest.raises(OSError):
        HugeRegion(PageRun(PAGE_BYTES, 1), 999)


def test_memory_is_taken_rounded_up_to_pages_and_given_back() -> None:
    with closing(EnclaveMemory.take(3 * PAGE_BYTES - 5, None)) as memory:
        assert memory.size_bytes == 3 * PAGE_BYTES
        assert [region.run for region in memory.regions] == [PageRun(PAGE_BYTES, 3)]
        memory.regions[0].populate(0, memory.size_bytes)
    memory.close()
    assert memory.regions == ()


def test_more_than_is_free_is_refused_and_nothing_stays_taken() -> None:
    before = pool_number("resv_hugepages")
    wanted = sum(size * count for size, count in free_pages(None).items()) + PAGE_BYTES
    with pytest.raises(BackendError, match=f"needs {wanted >> 20} MiB in huge pages"):
        EnclaveMemory.take(wanted, None)
    assert pool_number("resv_hugepages") <= before


def test_places_are_found_across_the_borders_of_regions() -> None:
    regions = [HugeRegion(PageRun(PAGE_BYTES, count), None) for count in (1, 2, 1)]
    with closing(EnclaveMemory(regions)) as memory:
        found = list(memory.locate(PAGE_BYTES - 1, 2 * PAGE_BYTES + 2))
        assert [(regions.index(region), start, end) for region, start, end in found] == [
            (0, PAGE_BYTES - 1, PAGE_BYTES),
            (1, 0, 2 * PAGE_BYTES),
            (2, 0, 1),
        ]
        assert list(memory.locate(PAGE_BYTES, 0)) == []
        assert [start for _, start, _ in memory.locate(PAGE_BYTES, 1)] == [0]


def test_a_few_bytes_are_read_back_across_a_border() -> None:
    regions = [HugeRegion(PageRun(PAGE_BYTES, 1), None) for _ in range(2)]
    with closing(EnclaveMemory(regions)) as memory:
        for region, start, end in memory.locate(PAGE_BYTES - 3, 6):
            with region.piece(start, end) as piece:
                piece[:] = b"abc" if start else b"def"
        assert memory.read(PAGE_BYTES - 3, 6) == b"abcdef"


LIMITED = """
import os, sys
from pyrune.errors import BackendError
from pyrune.ne.memory import EnclaveMemory
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
try:
    memory = EnclaveMemory.take(4 << 20, None)
    memory.regions[0].populate(0, 4 << 20)
except BackendError as exc:
    print(exc)
"""


@pytest.mark.parametrize("kind", ["max", "rsvd.max"])
def test_a_cgroups_limit_is_told_from_a_lack_of_pages(tmp_path: Path, kind: str) -> None:
    with hugetlb_cgroup() as group:
        (group / f"hugetlb.2MB.{kind}").write_text(str(PAGE_BYTES))
        script = tmp_path / "limited.py"
        script.write_text(LIMITED)
        run = [sys.executable, str(script), str(group)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=30, env={"PYTHONPATH": os.getcwd()})
        assert done.stderr == ""
        assert "and its cgroup allows 2 MiB, of which" in done.stdout
        assert f"raise {group}/hugetlb.2MB.{kind}" in done.stdout
