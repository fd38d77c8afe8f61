"""The CPU pool as sysfs shows it, and what is said when it is too small."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.errors import BackendError
from pyrune.ne.cpu_pool import CpuPool, add_vcpus, format_cpu_list, parse_cpu_list
from pyrune.ne.device import EnclaveVm, ioctl_error

POOL = CpuPool((2, 3, 6, 7), 2, 0)


class ScriptedVm:
    """Answers NE_ADD_VCPU from a list: a CPU's number, or an error's below zero."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []

    def add_vcpu(self, cpu_id: int = 0) -> int:
        self.asked.append(cpu_id)
        answer = self.answers.pop(0)
        if answer < 0:
            raise ioctl_error("a CPU cannot be given to the enclave (NE_ADD_VCPU)", -answer)
        return answer


def _add(vm: ScriptedVm, count: int, cpu_ids: tuple[int, ...] = ()) -> tuple[int, ...]:
    return add_vcpus(cast(EnclaveVm, vm), POOL, count, cpu_ids)


def _sysfs(tmp_path: Path, *, pool: str | None, siblings: str, nodes: int = 1) -> Path:
    if pool is not None:
        parameter = tmp_path / "module/nitro_enclaves/parameters/ne_cpus"
        parameter.parent.mkdir(parents=True)
        parameter.write_text(f"{pool}\n")
    topology = tmp_path / "devices/system/cpu/cpu0/topology"
    topology.mkdir(parents=True)
    (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    for node in range(nodes):
        (tmp_path / f"devices/system/node/node{node}").mkdir(parents=True)
    return tmp_path


def test_the_pool_is_read_from_the_drivers_parameter(tmp_path: Path) -> None:
    pool = CpuPool.read(_sysfs(tmp_path, pool="2-3,6-7", siblings="0,4"))
    assert pool == CpuPool((2, 3, 6, 7), 2, 0)
    assert pool.described == "the enclave CPU pool of 4 CPUs (2-3,6-7)"


def test_on_a_machine_of_many_nodes_the_cpus_link_tells_the_node(tmp_path: Path) -> None:
    sysfs = _sysfs(tmp_path, pool="2,3", siblings="0", nodes=2)
    assert CpuPool.read(sysfs).node is None
    (sysfs / "devices/system/cpu/cpu3/node1").mkdir(parents=True)
    assert CpuPool.read(sysfs).node == 1


def test_without_the_drivers_parameter_only_the_driver_can_tell(tmp_path: Path) -> None:
    pool = CpuPool.read(_sysfs(tmp_path, pool=None, siblings="0"))
    assert pool == CpuPool(None, 1, 0)
    pool.require(100, ())


@pytest.mark.parametrize(("threads", "count", "full"), [(1, 3, 3), (2, 1, 2), (2, 2, 2), (2, 3, 4)])
def test_a_count_is_rounded_up_to_full_cores(threads: int, count: int, full: int) -> None:
    assert CpuPool(None, threads, None).full_cores(count) == full


def test_more_than_the_pool_ever_has_is_refused_with_its_size() -> None:
    with pytest.raises(BackendError, match=r"6 vCPUs, more than the enclave CPU pool of 4 CPUs \(2-3,6-7\) has; say"):
        POOL.require(6, ())


def test_an_empty_pool_is_refused_with_how_to_fill_it() -> None:
    with pytest.raises(BackendError, match="which is empty has; raise cpu_count in"):
        CpuPool((), 2, 0).require(2, ())


def test_a_cpu_outside_the_pool_is_named() -> None:
    with pytest.raises(BackendError, match="CPU 4-5, which is not in the enclave CPU pool of 4 CPUs"):
        POOL.require(3, (2, 4, 5))


def test_the_driver_chooses_when_no_cpu_is_named() -> None:
    vm = ScriptedVm(2, 3)
    assert _add(vm, 2) == (2, 3)
    assert vm.asked == [0, 0]


def test_named_cpus_are_asked_for_by_number() -> None:
    vm = ScriptedVm(6, 7)
    assert _add(vm, 2, (6, 7)) == (6, 7)
    assert vm.asked == [6, 7]


@pytest.mark.parametrize("number", [257, 272])
def test_a_pool_that_is_used_up_half_way_says_what_was_free(number: int) -> None:
    with pytest.raises(BackendError, match=f"given 4 vCPUs, but only 2 are free in .*error {number}.*stop another"):
        _add(ScriptedVm(2, 3, -number), 4)


@pytest.mark.parametrize("number", [256, 257, 258, 271])
def test_a_named_cpu_that_is_refused_is_named_in_the_drivers_error(number: int) -> None:
    with pytest.raises(BackendError, match=rf"NE_ADD_VCPU\).*error {number}"):
        _add(ScriptedVm(2, -number), 2, (2, 3))


def test_an_error_of_the_device_keeps_its_own_words() -> None:
    with pytest.raises(BackendError, match="not answered within 120 s"):
        _add(ScriptedVm(2, -errno.ETIMEDOUT), 2)


@given(st.sets(st.integers(0, 300), max_size=40))
def test_cpu_lists_survive_a_round_trip(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(tuple(cpus))) == tuple(sorted(cpus))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("", ()), ("\n", ()), ("3\n", (3,)), ("1-3,5", (1, 2, 3, 5)), ("5,1", (1, 5)), ("2-2", (2,))],
)
def test_the_kernels_lists_are_read(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1--2", "0-9999999", "1-99999", "1 2"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpu_list(text)
