"""Images that really boot."""

from __future__ import annotations

import socket

from tests.emulated_driver_tests.programs.client import Enclave, answer_heartbeat, heartbeat_listener, huge_map
from tests.emulated_driver_tests.programs.vsock import connect_and_wait


def _load(path: str, size: int) -> Enclave:
    """An enclave with an image in its only region, ready to start."""
    enclave = Enclave()
    enclave.add_core()
    offset = enclave.load_info()
    memory = huge_map(size)
    with open(path, "rb") as file:
        image = file.read()
    memory[offset : offset + len(image)] = image
    enclave.add_map(memory)
    return enclave


def _read_lines(console: socket.socket, last: str) -> list[str]:
    """Lines up to that one, or to the end."""
    lines = []
    with console.makefile("r", errors="replace") as text:
        for line in text:
            lines.append(line.strip())
            if line.strip() == last:
                break
    return lines


def live_to_the_end(path: str, size: int) -> object:
    """Boots an image in debug mode, answers its heartbeat, reads its console until it hangs up."""
    listener = heartbeat_listener()
    enclave = _load(path, size)
    cid = enclave.start(flags=1)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as console:
        console.connect((0, 10000 + cid))
        peer_cid, _ = answer_heartbeat(listener)
        lines = _read_lines(console, "")
    return {"lines": lines, "beat": peer_cid == cid, "poll": enclave.poll(10)}


def echo_with(path: str, size: int, port: int) -> object:
    """Boots an image that echoes what comes to a port, and uses it; also a port where nobody is."""
    listener = heartbeat_listener()
    enclave = _load(path, size)
    cid = enclave.start(flags=1)
    console = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    console.connect((0, 10000 + cid))
    answer_heartbeat(listener)
    _read_lines(console, "ready")
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect((cid, port))
        sock.sendall(b"there and back")
        back = sock.recv(100).decode()
    return [back, connect_and_wait(cid, port + 1)]


def boot_without_listener(path: str, size: int) -> object:
    """Boots an image whose heartbeat nobody takes."""
    enclave = _load(path, size)
    enclave.start()
    return enclave.poll(40)
