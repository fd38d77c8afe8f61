"""Names in the enclave's directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.local.virtio_vsock.host_sockets import HostSockets


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory whose path alone is longer than a unix socket's may be."""
    path = tmp_path / ("d" * 120)
    path.mkdir(0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield path, fd
    os.close(fd)


def test_the_listener_is_for_its_owner_only_and_goes_away(directory: tuple[Path, int]) -> None:
    path, fd = directory
    sockets = HostSockets(fd)
    with sockets.listen():
        assert (path / "vsock").is_socket()
        assert (path / "vsock").stat().st_mode & 0o777 == 0o600
        sockets.remove_listener()
        assert os.listdir(path) == []
        sockets.remove_listener()


def test_a_socket_that_a_dead_device_left_is_replaced(directory: tuple[Path, int]) -> None:
    path, fd = directory
    HostSockets(fd).listen().close()
    with HostSockets(fd).listen(), socket.socket(socket.AF_UNIX) as caller:
        caller.connect(f"/proc/self/fd/{fd}/vsock")
        assert os.listdir(path) == ["vsock"]


def test_what_is_not_a_socket_is_left_alone(directory: tuple[Path, int]) -> None:
    path, fd = directory
    (path / "vsock").write_text("precious")
    with pytest.raises(BackendError, match=r"^cannot listen on vsock in the enclave's directory \(EADDRINUSE\); see "):
        HostSockets(fd).listen()
    assert (path / "vsock").read_text() == "precious"


def test_a_directory_that_is_none_is_one_line() -> None:
    with open("/dev/null") as null, pytest.raises(BackendError, match=r"\(ENOTDIR\)"):
        HostSockets(null.fileno()).listen()


def test_a_program_is_reached_by_its_port(directory: tuple[Path, int]) -> None:
    path, fd = directory
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{fd}/vsock_4294967295")
        listener.listen(0)
        sockets = HostSockets(fd)
        with sockets.dial(4294967295) as sock:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            # A queue of length 0 has room for one.
            with pytest.raises(BlockingIOError):
                sockets.dial(4294967295)
        (path / "vsock_1").write_text("not a socket")
        for port in (1, 2):
            with pytest.raises(OSError):
                sockets.dial(port)
