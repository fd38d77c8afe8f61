from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.scenario import UNCHECKED, Behaviour, Heartbeat
from tests.emulated_driver_tests.conftest import Client, client_argv
from tests.emulated_driver_tests.programs import ending

HANG_UP = 16
QUIET = (Behaviour(heartbeat=Heartbeat.NEVER),)


def test_an_exit_is_a_hang_up_alone_for_as_long_as_it_is_asked(nitro_machine: MachineMaker, client: Client) -> None:
    behaviour = Behaviour(heartbeat=Heartbeat.NEVER, exit_after_s=0.2)
    machine = nitro_machine(image=UNCHECKED, enclaves=(behaviour,), huge_pages_wanted=32)
    assert client(machine, ending.poll_an_exit) == [0, HANG_UP, HANG_UP, HANG_UP]
    assert machine.events("exit")[0]["reason"] == "by itself"


def test_an_enclave_exits_when_told_to(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=32)
    waiting = machine.start(client_argv(ending.poll_an_exit))
    machine.wait_for_event("image")
    machine.control("exit", enclave=1, reason="a test")
    assert machine.finish(waiting).stdout.split()[1:] == ["16,", "16,", "16]"]


def test_the_last_close_counts_wherever_the_copies_are(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), ending.close_last_of_copies) == [257, 257, 0]


def test_sigkill_is_a_close(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=32)
    running = machine.start(client_argv(ending.run_until_killed))
    machine.wait_for_event("image")
    assert [enclave.state for enclave in machine.enclaves] == ["running"]
    running.kill()
    running.wait()
    assert machine.leaks() == []
    assert machine.events("closed")[0]["cpus"] == [1, 5]


def test_an_enclave_lives_on_with_a_child_that_holds_it(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=32)
    owner = client(machine, ending.leave_to_child)
    assert [enclave.state for enclave in machine.enclaves] == ["running"]
    (child,) = machine.programs
    assert child != owner
    os.kill(child, signal.SIGKILL)
    machine.wait_for_event("closed")
    assert machine.leaks() == []


def test_an_exited_enclave_keeps_its_cpus_until_it_is_closed(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(
        image=UNCHECKED, enclaves=(Behaviour(heartbeat=Heartbeat.NEVER, exit_after_s=0),), huge_pages_wanted=32
    )
    running = machine.start(client_argv(ending.run_until_killed))
    machine.wait_for_event("exit")
    assert [(enclave.state, enclave.cpus) for enclave in machine.enclaves] == [("exited", [1, 5])]
    running.kill()
    running.wait()
    assert machine.leaks() == []


def test_what_ran_is_gone_when_the_test_is_over(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=32)
    running = machine.start(client_argv(ending.run_until_killed))
    machine.wait_for_event("image")
    machine.close()
    assert running.returncode == -signal.SIGKILL
    assert not Path(machine.control_path).exists()
