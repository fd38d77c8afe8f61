"""The console of an enclave, with unix sockets in the place of vsock."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pyrune.ne import console as console_module
from pyrune.ne.console import EnclaveConsole
from pyrune.reactor import Reactor
from tests.unit.ne.loop import new_reactor, run_for, run_until
from tests.unit.ne.unix_vsock import UnixVsock

CID = 21


class Reader:
    """A console, and what came of it."""

    def __init__(self, vsock: UnixVsock, reactor: Reactor) -> None:
        self.reactor = reactor
        self.data = b""
        self.lost: list[str] = []
        self.over = False
        self.console = EnclaveConsole(vsock, reactor, self._on_data, self.lost.append)

    def _on_data(self, data: bytes) -> None:
        self.data += data

    def on_over(self) -> None:
        self.over = True

    def wait_for(self, data: bytes) -> None:
        run_until(self.reactor, lambda: self.data.endswith(data))


@pytest.fixture
def vsock() -> UnixVsock:
    return UnixVsock()


@pytest.fixture
def reader(vsock: UnixVsock) -> Iterator[Reader]:
    with new_reactor() as reactor:
        reader = Reader(vsock, reactor)
        yield reader
        reader.console.close()
        run_for(reactor, 0.1)


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _connected(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> socket.socket:
    listener = cleanup.enter_context(vsock.serve(0, 10000 + CID))
    listener.settimeout(20)
    reader.console.connect(CID)
    enclave = cleanup.enter_context(listener.accept()[0])
    enclave.sendall(b"first")
    reader.wait_for(b"first")
    return enclave


def test_it_is_read_from_its_first_byte(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> None:
    enclave = _connected(reader, vsock, cleanup)
    enclave.sendall(b" second")
    reader.wait_for(b"first second")


def test_a_console_that_appears_late_is_found(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> None:
    reader.console.connect(CID)
    run_for(reader.reactor, 0.2)
    with vsock.serve(0, 10000 + CID) as listener:
        listener.settimeout(20)
        with listener.accept()[0] as enclave:
            enclave.sendall(b"late")
            reader.wait_for(b"late")
    assert reader.lost == []


def test_a_console_that_never_appears_is_reported_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "CONNECT_PATIENCE_S", 0.2)
    reader.console.connect(CID)
    run_until(reader.reactor, lambda: bool(reader.lost))
    [sentence] = reader.lost
    assert "console cannot be read" in sentence


def test_while_paused_nothing_is_read(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> None:
    enclave = _connected(reader, vsock, cleanup)
    reader.console.pause()
    enclave.sendall(b" more")
    run_for(reader.reactor, 0.1)
    assert reader.data == b"first"
    reader.console.resume()
    reader.wait_for(b"first more")


@pytest.mark.parametrize("within_s", [0.0, 5.0])
def test_the_last_words_are_handed_over_although_paused(
    reader: Reader, vsock: UnixVsock, cleanup: ExitStack, within_s: float
) -> None:
    enclave = _connected(reader, vsock, cleanup)
    reader.console.pause()
    enclave.sendall(b" last words")
    enclave.close()
    reader.console.finish(within_s, reader.on_over)
    run_until(reader.reactor, lambda: reader.over)
    assert reader.data == b"first last words"


def test_an_enclave_that_keeps_its_console_open_is_not_waited_for(
    reader: Reader, vsock: UnixVsock, cleanup: ExitStack
) -> None:
    _connected(reader, vsock, cleanup)
    reader.console.finish(0.1, reader.on_over)
    run_until(reader.reactor, lambda: reader.over)


def test_the_last_words_are_bounded(
    reader: Reader, vsock: UnixVsock, cleanup: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "_LAST_BYTES", 100_000)
    enclave = _connected(reader, vsock, cleanup)
    enclave.settimeout(0)
    reader.console.finish(20.0, reader.on_over)

    def print_more() -> bool:
        try:
            enclave.send(b"x" * 65536)
        except OSError:
            pass
        return reader.over

    run_until(reader.reactor, print_more)
    assert 100_000 < len(reader.data) < 1_000_000


def test_a_console_that_has_ended_before_finishes_at_once(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> None:
    _connected(reader, vsock, cleanup).close()
    run_for(reader.reactor, 0.1)
    reader.console.finish(20.0, reader.on_over)
    run_until(reader.reactor, lambda: reader.over)


def test_a_console_still_being_connected_may_yet_be_heard(reader: Reader, vsock: UnixVsock, cleanup: ExitStack) -> None:
    reader.console.connect(CID)
    reader.console.finish(20.0, reader.on_over)
    listener = cleanup.enter_context(vsock.serve(0, 10000 + CID))
    listener.settimeout(20)
    with listener.accept()[0] as enclave:
        enclave.sendall(b"all it said")
    run_until(reader.reactor, lambda: reader.over)
    assert reader.data == b"all it said"


def test_closing_while_connecting_leaves_the_socket_to_the_thread(reader: Reader) -> None:
    reader.console.connect(CID)
    reader.console.close()
    reader.console.close()
    run_until(reader.reactor, lambda: reader.console._sock is None)
    assert reader.lost == []
