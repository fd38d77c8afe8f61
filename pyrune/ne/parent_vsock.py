"""AF_VSOCK as a Nitro parent uses it: the only module that makes such sockets, and a seam for what stands in for them.

Sockets belong to the network namespace in which they were made, whatever their process does later. They are made
early, and used when the enclave starts.

Source: vsock(7) and include/uapi/linux/vm_sockets.h.
"""

from __future__ import annotations

import socket
from typing import Final

from pyrune.errors import BackendError

HYPERVISOR_CID: Final = 0
"""VMADDR_CID_HYPERVISOR: where the consoles of enclaves in debug mode are."""
CONSOLE_PORT_BASE: Final = 10000
"""An enclave's console has the port of this plus its CID (nitro-cli's CONSOLE_PORT rule)."""
_ANY_CID: Final = 0xFFFFFFFF
_BACKLOG: Final = 128


class ParentVsock:
    """The calls. `accept` and `connect` raise OSError as the sockets do."""

    def make(self) -> socket.socket:
        """A stream socket, blocking, not bound. Raises BackendError where the kernel has no vsock."""
        try:
            return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as exc:
            raise BackendError(
                f"a vsock socket cannot be made (error {exc.errno})",
                remedy="load the module vsock (modprobe vsock); in a container, let its seccomp profile allow AF_VSOCK",
            ) from exc

    def listen(self, sock: socket.socket, port: int) -> None:
        """Take a port for every CID of this machine. Raises OSError; EADDRINUSE if another socket has it."""
        sock.bind((_ANY_CID, port))
        sock.listen(_BACKLOG)

    def adopt(self, fd: int) -> socket.socket:
        """A socket object for a descriptor that came from another process; owns it."""
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, 0, fileno=fd)

    def accept(self, listener: socket.socket) -> tuple[socket.socket, int]:
        """A connection, and the CID of who made it."""
        connection, (cid, _port) = listener.accept()
        return connection, cid

    def connect(self, sock: socket.socket, cid: int, port: int) -> None:
        """Blocks for 2 s at most, the default of vsock(7)."""
        sock.connect((cid, port))
