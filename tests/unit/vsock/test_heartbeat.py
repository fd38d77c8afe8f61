"""The heartbeat's answer to peers of every kind, over real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrune.linux import bind_unix, connect_unix
from pyrune.reactor import Reactor
from pyrune.vsock import heartbeat
from pyrune.vsock.heartbeat import HeartbeatServer
from tests.support.programs import TIMEOUT_S, open_descriptors
from tests.support.rounds import run_until


class Server:
    """A heartbeat server at a unix socket, and how often it heard a beat."""

    def __init__(self, directory: Path) -> None:
        self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.reactor = Reactor()
        self.beats = 0
        self.before = set(open_descriptors())
        self.server = HeartbeatServer(bind_unix(self.directory_fd, "vsock_9000"), self.reactor, self._on_beat)

    def _on_beat(self) -> None:
        self.beats += 1

    def connect(self) -> socket.socket:
        return connect_unix(self.directory_fd, "vsock_9000", TIMEOUT_S)

    def serve_some(self) -> None:
        over: list[None] = []
        self.reactor.call_later(0.02, lambda: over.append(None))
        run_until(self.reactor, lambda: bool(over))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.server.close()
    made.server.close()
    assert set(open_descriptors()) == made.before
    made.reactor.close()
    os.close(made.directory_fd)


def test_the_right_byte_is_answered_with_itself_and_heard(server: Server) -> None:
    with server.connect() as peer:
        peer.sendall(b"\xb7")
        run_until(server.reactor, lambda: server.beats == 1)
        assert peer.recv(10) == b"\xb7"
        assert peer.recv(10) == b""


def test_bytes_after_the_beat_do_not_take_the_answer_away(server: Server) -> None:
    with server.connect() as peer:
        peer.sendall(b"\xb7 and more")
        run_until(server.reactor, lambda: server.beats == 1)
        assert peer.recv(10) == b"\xb7"


@pytest.mark.parametrize("sent", [b"\xb6", b"\x00", b"GET / HTTP/1.1\r\n", b""])
def test_anything_else_is_hung_up_on(sent: bytes, server: Server) -> None:
    with server.connect() as peer:
        peer.sendall(sent)
        peer.shutdown(socket.SHUT_WR)
        server.serve_some()
        try:
            assert peer.recv(10) == b""
        except ConnectionResetError:
            assert len(sent) > 1
    assert server.beats == 0


def test_a_peer_that_leaves_at_once_is_not_heard(server: Server) -> None:
    server.connect().close()
    with server.connect() as peer:
        peer.sendall(b"\xb7")
    server.serve_some()
    assert server.beats == 0


def test_silence_ends_a_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_TIMEOUT_S", 0.005)
    with server.connect() as peer:
        server.serve_some()
        assert peer.recv(10) == b""
    assert server.beats == 0


def test_a_beat_gets_through_a_crowd_of_silent_peers(server: Server) -> None:
    crowd = [server.connect() for _ in range(100)]
    server.serve_some()
    assert len(open_descriptors()) - len(server.before) < 100 + 30
    with server.connect() as peer:
        peer.sendall(b"\xb7")
        run_until(server.reactor, lambda: server.beats == 1)
        assert peer.recv(10) == b"\xb7"
    for silent in crowd:
        silent.close()


def test_every_beat_is_heard(server: Server) -> None:
    peers = [server.connect() for _ in range(10)]
    for peer in peers:
        peer.sendall(b"\xb7")
    run_until(server.reactor, lambda: server.beats == 10)
    for peer in peers:
        assert peer.recv(1) == b"\xb7"
        peer.close()


def test_closing_hangs_up_on_who_is_half_way(server: Server) -> None:
    with server.connect() as peer:
        server.serve_some()
        server.server.close()
        assert peer.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        server.connect()
