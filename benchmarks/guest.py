"""A running enclave that serves streams, the same program on this machine, and connections to either."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.workshop import Workshop, compile_streams
from pyrune.eif.format import Architecture
from pyrune.linux import connect_unix

PORT = 5000
CONTAINER = "streams"
TIMEOUT_S = 60.0
MEMORY_MIB = 256

Connect = Callable[[], socket.socket]


@contextmanager
def serving_enclave(workshop: Workshop) -> Iterator[Connect]:
    """An enclave, CONTAINER, whose streams are served; connects to it. Raises Unavailable."""
    image = workshop.streams_image("vsock", str(PORT))
    bundle = workshop.pyrune.bundle(image, memory=str(MEMORY_MIB), vcpus="1")
    workshop.pyrune.ok("run", "--detach", "--bundle", str(bundle), CONTAINER)
    directory_fd = os.open(workshop.pyrune.root / CONTAINER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _await_listener(lambda: _connect_vsock(directory_fd))
        yield lambda: _connect_vsock(directory_fd)
    finally:
        os.close(directory_fd)
        workshop.pyrune.ok("delete", "--force", CONTAINER)


@contextmanager
def serving_program(workshop: Workshop) -> Iterator[Connect]:
    """The same program as a process of this machine, on a unix socket; connects to it. Raises Unavailable."""
    program, place = workshop.directory / "streams-here", workshop.directory / "streams.socket"
    if not program.exists():
        compile_streams(Architecture(platform.machine()), program)
    directory_fd = os.open(workshop.directory, os.O_RDONLY | os.O_DIRECTORY)
    process = subprocess.Popen([program, "unix", place], stdin=subprocess.DEVNULL)
    try:
        _await_listener(lambda: connect_unix(directory_fd, place.name, TIMEOUT_S))
        yield lambda: connect_unix(directory_fd, place.name, TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        os.close(directory_fd)
        place.unlink(missing_ok=True)


def _await_listener(connect: Connect) -> None:
    """The enclave has booted when its init says so, which is before the application listens."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connect().close()
            return
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _connect_vsock(directory_fd: int) -> socket.socket:
    """Firecracker's convention, see pyrune.local.virtio_vsock.handshake. Raises ConnectionRefusedError."""
    sock = connect_unix(directory_fd, "vsock", TIMEOUT_S)
    answer = b""
    sock.sendall(b"CONNECT %d\n" % PORT)
    while not answer.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            sock.close()
            raise ConnectionRefusedError(f"nobody listens on the guest's port {PORT}")
        answer += byte
    return sock
