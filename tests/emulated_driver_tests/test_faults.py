from __future__ import annotations

import errno
import signal
import subprocess

import pytest

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.freezer import freezer
from tests.emulated_driver.scenario import Fault, Point
from tests.emulated_driver_tests.conftest import Client, client_argv
from tests.emulated_driver_tests.programs import creating, faults, vcpus, vsock
from tests.needs import missing


@pytest.mark.parametrize("at", list(Point))
def test_any_call_can_fail_anywhere(nitro_machine: MachineMaker, client: Client, at: Point) -> None:
    machine = nitro_machine(faults=(Fault("NE_CREATE_VM", nth=2, at=at, error=265),))
    assert client(machine, creating.create_many, 3) == [0, 265, 0]
    assert [entry.get("error") for entry in machine.log if entry.get("call") == "NE_CREATE_VM"] == [None, 265, None]
    machine.wait_for_event("closed", 3 if at is Point.RETURN else 2)
    assert machine.leaks() == []


@pytest.mark.parametrize("call", ["socket", "bind", "listen"])
def test_calls_on_sockets_can_fail_too(nitro_machine: MachineMaker, call: str) -> None:
    machine = nitro_machine(faults=(Fault(call, error="ENOBUFS"),))
    done = machine.run(client_argv(vsock.bind_and_listen))
    assert done.stdout == f"{errno.ENOBUFS}\n"


def test_opening_can_be_forbidden(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(faults=(Fault("open", nth=1, error="EACCES"),))
    assert client(machine, creating.open_device) == errno.EACCES
    assert client(machine, creating.open_device) == 0


def test_faults_come_and_go_while_it_runs(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    machine.control("fault", fault={"call": "open", "error": "EBUSY"})
    assert client(machine, creating.open_device) == errno.EBUSY
    machine.control("mend")
    assert client(machine, creating.open_device) == 0


def test_signals_neither_end_nor_repeat_a_call(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(faults=(Fault("NE_ADD_VCPU", at=Point.DEVICE, delay_s=0.5),))
    assert client(machine, faults.add_vcpu_under_signals) == [1, True]
    assert machine.calls("NE_ADD_VCPU") == ["NE_ADD_VCPU"]


@pytest.mark.parametrize("at", list(Point))
def test_who_is_killed_during_a_call_leaves_nothing(nitro_machine: MachineMaker, at: Point) -> None:
    machine = nitro_machine(faults=(Fault("NE_ADD_VCPU", nth=2, at=at, hold=True),))
    running = machine.start(client_argv(vcpus.choose_vcpus, 2))
    assert machine.wait_for_held("NE_ADD_VCPU") == running.pid
    running.kill()
    running.wait()
    machine.wait_for_event("closed")
    assert machine.leaks() == []
    machine.wait_for_call("NE_ADD_VCPU", 2)
    assert [entry["result"] for entry in machine.log if entry.get("call") == "NE_ADD_VCPU"] == [0, "killed"]


def test_who_waits_for_the_device_dies_only_when_it_answers(nitro_machine: MachineMaker) -> None:
    if freezer() is None:
        missing("freezer", "there is no freezer of cgroup version 1")
    fault = Fault("NE_ADD_VCPU", nth=1, at=Point.DEVICE, hold=True, uninterruptible=True)
    machine = nitro_machine(faults=(fault,))
    running = machine.start(client_argv(vcpus.choose_vcpus, 1))
    machine.wait_for_held("NE_ADD_VCPU")
    running.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.5)
    assert [enclave.cpus for enclave in machine.enclaves] == [[1, 5]]
    machine.control("release")
    assert running.wait(10) == -signal.SIGKILL
    machine.wait_for_event("closed")
    assert machine.leaks() == []


def test_a_held_call_goes_on_when_released_and_holds_up_nobody_else(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine(faults=(Fault("NE_ADD_VCPU", nth=1, hold=True),))
    running = machine.start(client_argv(vcpus.choose_vcpus, 1))
    machine.wait_for_held("NE_ADD_VCPU")
    assert client(machine, vcpus.choose_vcpus, 1) == [1]
    machine.control("release")
    assert machine.finish(running).stdout == "[1]\n"
