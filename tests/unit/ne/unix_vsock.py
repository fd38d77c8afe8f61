"""Unix sockets in the place of AF_VSOCK: the same calls, within one test, and no real vsock is ever touched.

A port is an abstract address; whoever connects tells its CID by the address that it is bound to itself.
"""

from __future__ import annotations

import secrets
import socket

from pyrune.ne.parent_vsock import ParentVsock


class UnixVsock(ParentVsock):
    """`world` keeps the ports of tests apart."""

    def __init__(self, world: str | None = None) -> None:
        self.world = world or secrets.token_hex(8)

    def make(self) -> socket.socket:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)

    def listen(self, sock: socket.socket, port: int) -> None:
        sock.bind(f"\0pyrune-test-{self.world}-3:{port}")
        sock.listen(128)

    def adopt(self, fd: int) -> socket.socket:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)

    def accept(self, listener: socket.socket) -> tuple[socket.socket, int]:
        connection, address = listener.accept()
        return connection, int(address.rpartition(b"=")[2])

    def connect(self, sock: socket.socket, cid: int, port: int) -> None:
        sock.connect(f"\0pyrune-test-{self.world}-{cid}:{port}")

    def serve(self, cid: int, port: int) -> socket.socket:
        """A listening socket at a port of another CID, such as a console's."""
        sock = self.make()
        sock.bind(f"\0pyrune-test-{self.world}-{cid}:{port}")
        sock.listen(8)
        return sock

    def call_parent(self, from_cid: int, port: int) -> socket.socket:
        """What an enclave does: connect to a port of the parent. Blocking, with a time limit."""
        sock = self.make()
        sock.settimeout(20)
        sock.bind(f"\0pyrune-test-{self.world}-{secrets.token_hex(8)}={from_cid}")
        sock.connect(f"\0pyrune-test-{self.world}-3:{port}")
        return sock
