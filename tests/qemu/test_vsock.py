"""Data between a real guest and programs on this machine, through the local back end's vsock device."""

from __future__ import annotations

import hashlib
import os
import random
import selectors
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest

from pyrune.linux import bind_unix, connect_unix
from tests.needs import missing
from tests.support.command import Pyrune, wait_until
from tests.support.images import Images

pytestmark = pytest.mark.timeout(240)

PORT = 5000
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _qemu() -> None:
    if not shutil.which("qemu-system-x86_64"):
        missing("qemu", "qemu-system-x86_64 is not installed")


class Host:
    """This machine's side of one enclave's vsock: Firecracker's convention over unix sockets."""

    def __init__(self, directory_fd: int) -> None:
        self.directory_fd = directory_fd

    def connect(self, port: int) -> socket.socket:
        """A stream to a port on which the guest listens. Raises ConnectionError when it refuses."""
        sock = connect_unix(self.directory_fd, "vsock", 60)
        sock.sendall(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n"):
            byte = sock.recv(1)
            if not byte:
                sock.close()
                raise ConnectionRefusedError(f"the guest does not listen on {port}")
            answer += byte
        assert answer.startswith(b"OK "), answer
        return sock

    def listen(self, port: int) -> socket.socket:
        """Where the guest's connections to the parent's port arrive."""
        return bind_unix(self.directory_fd, f"vsock_{port}")


@pytest.fixture
def echo(pyrune: Pyrune, images: Images) -> Iterator[Host]:
    """An enclave that sends back what it is sent on PORT."""
    bundle = pyrune.bundle(images.application("echo", str(PORT)), memory="512")
    pyrune.ok("run", "--detach", "--bundle", str(bundle), "echo")
    wait_until(lambda: "ready" in pyrune.file("echo", "console.log"), "the guest does not listen")
    fd = os.open(pyrune.root / "echo", os.O_RDONLY | os.O_DIRECTORY)
    yield Host(fd)
    os.close(fd)


def _send_and_close(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_64_mib_each_way_arrive_unchanged(echo: Host) -> None:
    data = random.Random(1).randbytes(64 * MIB)
    received = hashlib.sha256()
    with echo.connect(PORT) as sock:
        sender = threading.Thread(target=_send_and_close, args=(sock, data))
        sender.start()
        while chunk := sock.recv(MIB):
            received.update(chunk)
        sender.join()
    assert received.digest() == hashlib.sha256(data).digest()


def test_200_connections_at_once(echo: Host) -> None:
    messages = [f"connection {number} ".encode() * 200 for number in range(200)]
    socks = [echo.connect(PORT) for _ in messages]
    try:
        for sock, message in zip(socks, messages, strict=True):
            _send_and_close(sock, message)
        assert _receive_all(socks) == messages
    finally:
        for sock in socks:
            sock.close()


def _receive_all(socks: list[socket.socket]) -> list[bytes]:
    """Everything that comes on each until its end, all being read at once."""
    received = dict.fromkeys(socks, b"")
    by_fd = {sock.fileno(): sock for sock in socks}
    with selectors.DefaultSelector() as selector:
        for fd in by_fd:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(timeout=60)
            assert ready, "a connection stands still"
            for key, _ in ready:
                if chunk := by_fd[key.fd].recv(65536):
                    received[by_fd[key.fd]] += chunk
                else:
                    selector.unregister(key.fd)
    return list(received.values())


def test_a_port_where_nobody_listens_refuses(echo: Host) -> None:
    with pytest.raises(ConnectionRefusedError):
        echo.connect(PORT + 1)


def test_a_peer_that_stalls_holds_up_nobody_else(echo: Host) -> None:
    with echo.connect(PORT) as stalled, echo.connect(PORT) as lively:
        stalled.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                stalled.send(bytes(65536))
        _send_and_close(lively, b"still here")
        assert _receive_all([lively]) == [b"still here"]


def test_a_guest_reaches_programs_on_its_parent(pyrune: Pyrune, images: Images) -> None:
    bundle = pyrune.bundle(images.application("beacon", str(PORT), "20"))
    pyrune.ok("create", "--bundle", str(bundle), "beacon")
    fd = os.open(pyrune.root / "beacon", os.O_RDONLY | os.O_DIRECTORY)
    lines = []
    with Host(fd).listen(PORT) as listener:
        pyrune.ok("start", "beacon")
        listener.settimeout(60)
        for _ in range(20):
            peer, _ = listener.accept()
            with peer, peer.makefile() as stream:
                lines.append(stream.read())
    os.close(fd)
    assert lines == [f"beacon {number}\n" for number in range(20)]
    wait_until(lambda: pyrune.status("beacon") == "stopped", "the guest does not end")
    assert "done" in pyrune.file("beacon", "console.log")
