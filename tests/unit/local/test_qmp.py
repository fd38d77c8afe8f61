"""The QMP client against a peer that says anything."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.errors import BackendError
from pyrune.local.qmp import QmpClient, QmpEvent
from pyrune.reactor import Reactor
from tests.support.programs import TIMEOUT_S
from tests.support.rounds import run_until

# As QEMU 7.2 says it.
GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n'
)
DONE = b'{"return": {}}\r\n'


@pytest.fixture
def ends() -> Iterator[tuple[QmpClient, socket.socket]]:
    ours, theirs = socket.socketpair()
    client = QmpClient(ours)
    with theirs:
        theirs.settimeout(TIMEOUT_S)
        yield client, theirs
    client.close()


def shaken(
    client: QmpClient, *said: bytes, then_close: bool = False, qemu: socket.socket, timeout_s: float = 5
) -> None:
    """The handshake, of which QEMU says all its part in advance."""
    for piece in said:
        qemu.sendall(piece)
    if then_close:
        qemu.shutdown(socket.SHUT_WR)
    client.handshake(timeout_s)


def test_the_handshake_leaves_the_negotiation(ends: tuple[QmpClient, socket.socket]) -> None:
    client, qemu = ends
    shaken(client, GREETING, DONE, qemu=qemu)
    assert json.loads(qemu.recv(1000)) == {"execute": "qmp_capabilities"}
    client.send("cont")
    assert json.loads(qemu.recv(1000)) == {"execute": "cont"}


def test_the_handshake_is_understood_byte_by_byte_and_among_events(ends: tuple[QmpClient, socket.socket]) -> None:
    client, qemu = ends
    event = b'{"event": "RTC_CHANGE", "data": {}}\r\n'
    text = GREETING + event + DONE

    def drip() -> None:
        for byte in text:
            qemu.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    client.handshake(TIMEOUT_S)
    thread.join()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ((GREETING, b'{"error": {"class": "CommandNotFound", "desc": "x"}}\n'), "qemu refused the control connection"),
        ((), "qemu ended before it was ready"),
        ((GREETING,), "qemu ended before it was ready"),
        ((GREETING[:20],), "qemu ended before it was ready"),
        ((b"garbage\n",), "qemu's control connection makes no sense"),
        ((b"\xff\xfe\n",), "qemu's control connection makes no sense"),
        ((b"[" * 100_000 + b"\n",), "qemu's control connection makes no sense"),
        ((b"[]\n7\nnull\n",), "qemu ended before it was ready"),
    ],
)
def test_a_handshake_that_fails_says_how(
    said: tuple[bytes, ...], problem: str, ends: tuple[QmpClient, socket.socket]
) -> None:
    with pytest.raises(BackendError) as caught:
        shaken(ends[0], *said, then_close=True, qemu=ends[1])
    assert str(caught.value) == problem


def test_a_handshake_without_an_answer_is_over_in_time(ends: tuple[QmpClient, socket.socket]) -> None:
    with pytest.raises(BackendError, match="qemu did not answer on its control connection in time"):
        shaken(ends[0], GREETING, qemu=ends[1], timeout_s=0.05)


def test_a_line_without_end_is_not_kept(ends: tuple[QmpClient, socket.socket]) -> None:
    client, qemu = ends

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                qemu.sendall(b"x" * 65536)

    thread = threading.Thread(target=flood)
    thread.start()
    with pytest.raises(BackendError, match="qemu's control connection makes no sense"):
        client.handshake(TIMEOUT_S)
    client.close()
    thread.join()


class Attached:
    """A client past its handshake, its reactor, and the events that it reported."""

    def __init__(self, client: QmpClient, qemu: socket.socket) -> None:
        shaken(client, GREETING, DONE, qemu=qemu)
        qemu.recv(1000)
        self.client, self.qemu = client, qemu
        self.reactor = Reactor()
        self.events: list[QmpEvent] = []
        client.attach(self.reactor, self.events.append)

    def serve_some(self) -> None:
        over: list[None] = []
        self.reactor.call_later(0.02, lambda: over.append(None))
        run_until(self.reactor, lambda: bool(over))


@pytest.fixture
def attached(ends: tuple[QmpClient, socket.socket]) -> Iterator[Attached]:
    made = Attached(*ends)
    yield made
    made.client.close()
    made.reactor.close()


SHUTDOWN = b'{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\r\n'


def test_events_are_reported_with_their_reason(attached: Attached) -> None:
    attached.qemu.sendall(DONE + b'{"event": "RESUME"}\r\n' + SHUTDOWN + b"\r\n" + b'{"event": "STOP", "data": 7}\r\n')
    run_until(attached.reactor, lambda: len(attached.events) == 3)
    assert attached.events == [QmpEvent("RESUME", ""), QmpEvent("SHUTDOWN", "guest-shutdown"), QmpEvent("STOP", "")]


def test_an_event_split_over_reads_is_one_event(attached: Attached) -> None:
    for byte in SHUTDOWN:
        attached.qemu.sendall(bytes([byte]))
        if byte in b'{":':
            attached.serve_some()
    run_until(attached.reactor, lambda: bool(attached.events))
    assert attached.events == [QmpEvent("SHUTDOWN", "guest-shutdown")]


def test_what_is_no_event_is_nothing(attached: Attached) -> None:
    attached.qemu.sendall(b'[]\n7\nnull\n"x"\n{}\n{"event": 7}\n{"event": null}\n' + SHUTDOWN)
    run_until(attached.reactor, lambda: bool(attached.events))
    assert len(attached.events) == 1


@pytest.mark.parametrize("said", [b"garbage\n", b"\xff\n", b"[" * 100_000 + b"\n", b"x" * 2_000_000])
def test_garbage_ends_the_connection_and_nothing_else(said: bytes, attached: Attached) -> None:
    def send() -> None:
        with contextlib.suppress(OSError):
            attached.qemu.sendall(said + SHUTDOWN)

    thread = threading.Thread(target=send)
    thread.start()
    attached.serve_some()
    thread.join()
    attached.serve_some()
    attached.client.send("cont")
    attached.client.catch_up()
    assert attached.events == []


def test_no_event_follows_a_close_even_of_the_same_read(attached: Attached) -> None:
    def note_and_close(event: QmpEvent) -> None:
        attached.events.append(event)
        attached.client.close()

    attached.client.attach(attached.reactor, note_and_close)
    attached.qemu.sendall(b'{"event": "STOP"}\n{"event": "STOP"}\n')
    attached.serve_some()
    assert attached.events == [QmpEvent("STOP", "")]


def test_what_has_arrived_can_be_caught_up_with(attached: Attached) -> None:
    attached.qemu.sendall(SHUTDOWN)
    attached.client.catch_up()
    assert attached.events == [QmpEvent("SHUTDOWN", "guest-shutdown")]
    attached.client.catch_up()
    attached.client.close()
    attached.client.catch_up()


def test_a_connection_that_qemu_has_closed_takes_commands_in_silence(attached: Attached) -> None:
    attached.qemu.close()
    for _ in range(3):
        attached.client.send("cont")
    attached.serve_some()
    attached.client.send("cont")


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_raise_anything(pieces: list[bytes]) -> None:
    ours, theirs = socket.socketpair()
    reactor = Reactor()
    client = QmpClient(ours)
    client.attach(reactor, lambda event: None)
    with theirs:
        for piece in pieces:
            # After a first one that makes no sense, nobody listens any more.
            with contextlib.suppress(BrokenPipeError):
                theirs.sendall(piece)
            client.catch_up()
    client.close()
    reactor.close()
