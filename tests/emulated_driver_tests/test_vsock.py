from __future__ import annotations

import errno

import pytest

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.scenario import UNCHECKED, Behaviour, Heartbeat
from tests.emulated_driver_tests.conftest import Client, client_argv
from tests.emulated_driver_tests.programs import ending, vsock

QUIET = Behaviour(heartbeat=Heartbeat.NEVER)


def test_the_enclave_says_that_it_is_up(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    assert client(machine, vsock.take_heartbeat) == {"cid": 16, "peer_cid": 16, "peer_port_is_high": True, "poll": 0}
    assert machine.wait_for_event("heartbeat")["answered"] is True


def test_it_may_do_so_before_the_start_returns(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(Behaviour(heartbeat=Heartbeat.BEFORE),), huge_pages_wanted=32)
    assert client(machine, vsock.take_heartbeat_before_start_returns) == [errno.EAGAIN, "b7", 16]


@pytest.mark.parametrize("heartbeat", [Heartbeat.BEFORE, Heartbeat.AFTER])
def test_it_exits_when_nobody_takes_its_heartbeat(
    nitro_machine: MachineMaker, client: Client, heartbeat: Heartbeat
) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(Behaviour(heartbeat=heartbeat),), huge_pages_wanted=32)
    client(machine, ending.poll_an_exit)
    assert machine.events("exit")[0]["reason"] == "heartbeat refused"


def test_a_boot_without_heartbeat_goes_on(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(QUIET,), huge_pages_wanted=32)
    machine.start(client_argv(vsock.take_heartbeat))
    machine.wait_for_event("image")
    with pytest.raises(AssertionError, match="no heartbeat"):
        machine.wait_for_event("heartbeat", timeout_s=0.5)
    assert [enclave.state for enclave in machine.enclaves] == ["running"]


def test_strangers_may_connect_from_other_cids(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(QUIET,), huge_pages_wanted=32)
    waiting = machine.start(client_argv(vsock.take_heartbeat))
    machine.wait_for_event("image")
    assert machine.control("connect", cid=99, port=9000, data="b7") == {"connected": True, "data": "b7"}
    assert '"peer_cid": 99' in machine.finish(waiting).stdout
    assert machine.control("connect", cid=99, port=9000, data="b7") == {"connected": False}


def test_sockets_say_that_they_are_vsock(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    assert client(machine, vsock.describe_sockets) == {
        "family": True,
        "listener": [0xFFFFFFFF, 9000],
        "no peer": errno.ENOTCONN,
        "peer": True,
        "peer cid": True,
        "peer name": [3, 9000],
        "local cid": 3,
    }


def test_the_log_tells_in_which_network_a_socket_was_made(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    assert client(machine, vsock.make_in_two_networks) == [0, 0]
    assert [entry["host_network"] for entry in machine.log if entry.get("call") == "socket"] == [True, False]


def test_a_port_is_bound_once_and_free_with_its_last_holder(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), vsock.bind_rules) == {
        "any": 0,
        "again": errno.EADDRINUSE,
        "own cid": errno.EADDRINUSE,
        "own cid, other port": 0,
        "another's cid": errno.EADDRNOTAVAIL,
        "hypervisor": errno.EADDRNOTAVAIL,
        "twice": errno.EINVAL,
        "datagrams": errno.ESOCKTNOSUPPORT,
        "after close": 0,
    }


def test_accept_waits_or_does_not_as_asked(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=64)
    assert client(machine, vsock.wait_for_connections) == [errno.EAGAIN, True, True, 17]


def test_one_listener_serves_many_processes_also_when_the_first_dies(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine(cpus=16, pool="1-6,9-14", slots=6, image=UNCHECKED, huge_pages_wanted=6 * 32)
    found = client(machine, vsock.share_listener, 6)
    assert isinstance(found, int)
    assert found >= 5
    machine.wait_for_enclaves(0)
    assert machine.leaks() == []


def test_a_listener_can_be_sent_to_another_process(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    assert client(machine, vsock.hand_over_listener) == [[0xFFFFFFFF, 9000], True]


def test_the_console_is_read_to_its_end(nitro_machine: MachineMaker, client: Client) -> None:
    text = "booting\n" * 1000
    behaviour = Behaviour(heartbeat=Heartbeat.NEVER, console=text, exit_after_s=0.3)
    machine = nitro_machine(image=UNCHECKED, enclaves=(behaviour,), huge_pages_wanted=32)
    assert client(machine, vsock.read_console, 1) == text


def test_what_a_test_prints_comes_out_of_the_console(nitro_machine: MachineMaker) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(QUIET,), huge_pages_wanted=32)
    reading = machine.start(client_argv(vsock.read_console, 1))
    machine.wait_for_call("connect")
    machine.control("print", enclave=1, text="more")
    machine.control("exit", enclave=1)
    assert machine.finish(reading).stdout == '"more"\n'


def test_without_debug_mode_there_is_no_console(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=(QUIET,), huge_pages_wanted=32)
    assert client(machine, vsock.read_console, 0) == errno.ECONNRESET


def test_a_connection_to_nobody_fails_for_who_waits_and_who_does_not(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine()
    assert client(machine, vsock.connect_and_wait, 77, 5000) == errno.ECONNRESET
    assert client(machine, vsock.connect_without_waiting, 77, 5000) == [
        errno.EINPROGRESS,
        True,
        [errno.ECONNRESET, 0],
        errno.ENOTCONN,
    ]
    # Not even the parent itself is there, as long as it has no loopback.
    assert client(machine, vsock.connect_and_wait, 3, 9000) == errno.ECONNRESET
