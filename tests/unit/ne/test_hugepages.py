"""Which huge pages are chosen, from pools that this machine need not have."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.ne.hugepages import (
    MAX_REGION_BYTES,
    HugePageShortage,
    PageRun,
    free_pages,
    in_words,
    online_nodes,
    plan_runs,
)

MIB = 1 << 20
SMALL, MIDDLE, LARGE = 2 * MIB, 32 * MIB, 1024 * MIB


def test_large_pages_come_first_where_they_fit_exactly() -> None:
    assert plan_runs(1536 * MIB, {SMALL: 1000, LARGE: 4}) == (PageRun(LARGE, 1), PageRun(SMALL, 256))


def test_no_large_page_is_taken_for_a_small_enclave() -> None:
    assert plan_runs(512 * MIB, {SMALL: 256, LARGE: 4}) == (PageRun(SMALL, 256),)


def test_a_large_page_is_taken_when_small_ones_are_short() -> None:
    assert plan_runs(512 * MIB, {SMALL: 255, LARGE: 1}) == (PageRun(LARGE, 1),)


def test_too_few_pages_are_no_plan() -> None:
    assert plan_runs(512 * MIB, {SMALL: 255}) is None
    assert plan_runs(512 * MIB, {SMALL: 0, LARGE: 0}) is None
    assert plan_runs(512 * MIB, {}) is None


def test_four_gibibytes_of_small_pages_are_one_region() -> None:
    assert plan_runs(4 << 30, {SMALL: 4096}) == (PageRun(SMALL, 2048),)


def test_a_huge_enclave_is_a_few_regions_and_each_stays_below_the_limit() -> None:
    runs = plan_runs(150 << 30, {SMALL: 150 << 9})
    assert runs is not None
    assert sum(run.size_bytes for run in runs) == 150 << 30
    assert max(run.size_bytes for run in runs) == MAX_REGION_BYTES
    assert len(runs) == 38


def test_a_page_above_the_limit_is_a_region_of_its_own() -> None:
    assert plan_runs(32 << 30, {16 << 30: 2}) == (PageRun(16 << 30, 1), PageRun(16 << 30, 1))


@given(
    wanted=st.integers(1, 60),
    free=st.fixed_dictionaries({2: st.integers(0, 6), 4: st.integers(0, 4), 16: st.integers(0, 3)}),
)
def test_no_choice_of_pages_has_a_smaller_excess_or_with_the_same_excess_fewer_pages(
    wanted: int, free: dict[int, int]
) -> None:
    choices = itertools.product(*(range(count + 1) for count in free.values()))
    sums = [(sum(size * n for size, n in zip(free, choice, strict=True)), sum(choice)) for choice in choices]
    best = min((entry for entry in sums if entry[0] >= wanted), default=None)
    runs = plan_runs(wanted, free)
    if runs is None:
        assert best is None
    else:
        assert (sum(run.size_bytes for run in runs), sum(run.count for run in runs)) == best
        assert [run.page_bytes for run in runs] == sorted((run.page_bytes for run in runs), reverse=True)
        assert all(sum(run.count for run in runs if run.page_bytes == size) <= n for size, n in free.items())


def _pools(sysfs: Path, pools: dict[int, tuple[str, str]], nodes: dict[int, dict[int, str]]) -> None:
    for size, (free, reserved) in pools.items():
        pool = sysfs / f"kernel/mm/hugepages/hugepages-{size >> 10}kB"
        pool.mkdir(parents=True)
        (pool / "free_hugepages").write_text(f"{free}\n")
        (pool / "resv_hugepages").write_text(f"{reserved}\n")
    for node, sizes in nodes.items():
        for size, free in sizes.items():
            pool = sysfs / f"devices/system/node/node{node}/hugepages/hugepages-{size >> 10}kB"
            pool.mkdir(parents=True)
            (pool / "free_hugepages").write_text(f"{free}\n")


def test_reserved_pages_and_those_of_other_nodes_are_not_free(tmp_path: Path) -> None:
    _pools(tmp_path, {SMALL: ("100", "10"), LARGE: ("3", "0")}, {0: {SMALL: "95", LARGE: "0"}, 1: {SMALL: "5"}})
    assert free_pages(None, tmp_path) == {SMALL: 90, LARGE: 3}
    assert free_pages(0, tmp_path) == {SMALL: 90, LARGE: 0}
    assert free_pages(1, tmp_path) == {SMALL: 5, LARGE: 0}
    assert online_nodes(tmp_path) == (0, 1)


def test_pages_below_two_mebibytes_are_left_out(tmp_path: Path) -> None:
    _pools(tmp_path, {64 << 10: ("100", "0"), SMALL: ("1", "0")}, {})
    assert free_pages(None, tmp_path) == {SMALL: 1}


def test_a_reservation_count_below_zero_is_read_as_one(tmp_path: Path) -> None:
    _pools(tmp_path, {SMALL: ("7", str(2**64 - 3))}, {})
    assert free_pages(None, tmp_path) == {SMALL: 10}


def test_a_machine_without_huge_pages_has_none(tmp_path: Path) -> None:
    assert free_pages(None, tmp_path) == {}
    assert online_nodes(tmp_path) == ()


@pytest.mark.parametrize(("node", "place"), [(None, ""), (1, " on NUMA node 1")])
def test_a_shortage_names_node_pool_service_and_file(node: int | None, place: str) -> None:
    text = str(HugePageShortage(512 * MIB, node, {SMALL: 12, LARGE: 0}))
    assert text.startswith(f"the enclave needs 512 MiB in huge pages{place}; free there: 12 of 2 MiB; ")
    assert "nitro-enclaves-allocator.service" in text
    assert "/etc/nitro_enclaves/allocator.yaml" in text
    assert "hugepages-2048kB/nr_hugepages" in text
    assert ("/node1/" in text) == (node == 1)


def test_sizes_are_told_in_round_units() -> None:
    assert [in_words(size) for size in (SMALL, MIDDLE, LARGE, 16 << 30)] == ["2 MiB", "32 MiB", "1 GiB", "16 GiB"]
