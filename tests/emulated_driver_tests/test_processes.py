from __future__ import annotations

import errno

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.scenario import UNCHECKED
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import processes


def test_threads_of_the_creator_may_do_everything(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(huge_pages_wanted=1), processes.work_from_thread) == [0, 0]


def test_a_child_may_add_neither_vcpus_nor_memory(nitro_machine: MachineMaker, client: Client) -> None:
    outcomes = client(nitro_machine(huge_pages_wanted=1), processes.work_from_child)
    assert outcomes == [errno.EIO, errno.EIO, 0]


def test_who_was_sent_the_descriptor_may_not_either(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), processes.work_from_receiver) == [errno.EIO, 0]


def test_who_execs_has_another_memory_map(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), processes.work_after_exec) == [errno.EIO, 0]


def test_a_child_may_start(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    assert client(machine, processes.start_from_child) == [0, 270]
