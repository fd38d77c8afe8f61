from __future__ import annotations

import errno

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.scenario import Fault, Point
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import vcpus


def test_id_0_completes_a_core_before_it_begins_the_lowest_free_one(
    nitro_machine: MachineMaker, client: Client
) -> None:
    assert client(nitro_machine(pool="2,6,1,5"), vcpus.choose_vcpus, 5) == [1, 5, 2, 6, -272]


def test_each_kind_of_wrong_id_has_its_error(nitro_machine: MachineMaker, client: Client) -> None:
    outcomes = client(nitro_machine(pool="1-2,5-6"), vcpus.add_vcpus, 1, 1, 5, 3, 4, 7, 8, 1 << 31)
    assert outcomes == [0, 256, 0, 257, 257, 257, 271, 271]


def test_a_thread_reserves_its_core_for_the_enclave(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), vcpus.take_sibling_of_another, 1, 5) == [257, 0]


def test_a_failed_call_from_a_child_ties_up_the_core_until_the_close(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine()
    assert client(machine, vcpus.tie_up_core_from_child, 1) == [errno.EIO, 257, 0]
    assert machine.leaks() == []


def test_a_device_that_refuses_a_vcpu_ties_up_the_core(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(faults=(Fault("NE_ADD_VCPU", nth=1, at=Point.DEVICE, error="ETIMEDOUT"),))
    # The vCPU was not added, so it may be tried again; its core is the enclave's already.
    assert client(machine, vcpus.choose_vcpus, 1) == [-errno.ETIMEDOUT]
    assert client(machine, vcpus.add_vcpus, 1, 1) == [0, 256]


def test_cpus_of_a_closed_enclave_are_free_at_once(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(pool="1,5"), vcpus.take_core_given_back) == [0] * 20
