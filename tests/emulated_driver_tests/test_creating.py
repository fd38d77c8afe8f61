from __future__ import annotations

import errno

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import creating, faults


def test_a_new_enclave_is_close_on_exec_and_has_a_slot(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    found = client(machine, creating.describe_new_enclave)
    assert isinstance(found, dict)
    assert found["close_on_exec"] is True
    assert found["slot"] != 0
    assert found["poll"] == 0
    assert machine.calls() == ["open", "NE_CREATE_VM"]
    assert machine.leaks() == []


def test_without_a_pool_nothing_is_created(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(pool=""), creating.create_many, 1) == [272]


def test_creating_takes_no_cpu(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(pool="1,5"), creating.create_many, 3) == [0, 0, 0]


def test_when_every_core_is_taken_nothing_is_created(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(pool="1,5")
    assert client(machine, creating.create_beside_all_cores) == [272, 0]


def test_slots_run_out(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(slots=2), creating.create_many, 3) == [0, 0, errno.ENOSPC]


def test_a_bad_pointer_is_efault_and_creates_nothing(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    assert client(machine, creating.create_with_bad_pointer) == [-1, errno.EFAULT]
    assert machine.leaks() == []


def test_other_ioctls_are_refused(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), creating.unknown_ioctls) == [errno.ENOTTY] * 3


def test_without_the_device_there_is_nothing_to_open(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(device=False), creating.open_device) == errno.ENOENT


def test_a_full_descriptor_table_is_emfile_and_leaves_no_enclave(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    assert client(machine, faults.create_when_table_is_full) == errno.EMFILE
    machine.wait_for_event("closed")
    assert machine.leaks() == []
