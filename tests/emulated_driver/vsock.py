"""AF_VSOCK as a Nitro parent has it (its CID is 3), on stream sockets of AF_UNIX.

socket(AF_VSOCK) is answered with a unix socket made by the supervisor, so that poll, send, shutdown, passing on and
the rest are the kernel's own. What has to do with addresses is done here on a copy of the descriptor: the address
(CID, port) becomes the abstract unix address PREFIX/CID/PORT, which vanishes with the socket, as a vsock port does.
Enclaves, consoles and whoever else is at the other end are sockets of the supervisor's at such addresses.

A socket is known by its inode, wherever copies of it went. Nothing is kept of it but its addresses.

Sources: vsock(7), the kernel's net/vmw_vsock/af_vsock.c; what the hypervisor answers to a connection to nobody is not
known, and is ECONNRESET here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tests.emulated_driver.filter import SO_DOMAIN, SO_ERROR
from tests.emulated_driver.kernel import AF_VSOCK, CID_ANY, PORT_ANY, SOCKADDR_VM
from tests.emulated_driver.notification import LET_THROUGH, Answer, Failure, NewDescriptor, Notification, Value
from tests.emulated_driver.task import FileIdentity, Task, identify_own

PARENT_CID: Final = 3
HYPERVISOR_CID: Final = 0
CONSOLE_PORT_BASE: Final = 10000
_FIRST_EPHEMERAL_PORT: Final = 0x4000_0000
_LAST_PRIVILEGED_PORT: Final = 1023
_SOCK_TYPE_MASK: Final = 0xF
_SOL_SOCKET: Final = 1
_LOOK_MS: Final = 50
# The default of SO_VM_SOCKETS_CONNECT_TIMEOUT.
_MACHINE_TIMEOUT_S: Final = 2.0


class Address(NamedTuple):
    cid: int
    port: int


NOWHERE: Final = Address(CID_ANY, PORT_ANY)


@dataclass(slots=True)
class _Socket:
    """What the unix socket does not know. `error` waits for getsockopt(SO_ERROR)."""

    local: Address = NOWHERE
    peer: Address | None = None
    error: int = 0


class VsockSpace:
    """All addresses of one machine. Thread-safe."""

    def __init__(self, token: str) -> None:
        self._prefix = f"\0emulated-vsock-{token}"
        self._sockets: dict[FileIdentity, _Socket] = {}
        self._lock = threading.Lock()
        self._next_port = _FIRST_EPHEMERAL_PORT
        self._machines: dict[int, Path] = {}

    # --- the supervisor's own ends ---------------------------------------------------------------------------------

    def unix_address(self, address: Address) -> str:
        return f"{self._prefix}/{address.cid}/{address.port}"

    def listen(self, address: Address) -> socket.socket:
        """A listener in the place of an enclave or the hypervisor."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(self.unix_address(address))
        sock.listen(64)
        return sock

    def connect(self, source_cid: int, target: Address, timeout_s: float) -> socket.socket:
        """A connection from an enclave. Raises OSError where nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.bind(self.unix_address(Address(source_cid, self._ephemeral_port())))
            sock.connect(self.unix_address(target))
        except BaseException:
            sock.close()
            raise
        return sock

    def add_machine(self, cid: int, path: Path) -> None:
        """The ports of this CID are a virtual machine's, whose device listens at `path` in Firecracker's way."""
        self._machines[cid] = path

    def remove_machine(self, cid: int) -> None:
        self._machines.pop(cid, None)

    # --- the callers' calls ----------------------------------------------------------------------------------------

    def is_ours(self, identity: FileIdentity | None) -> bool:
        with self._lock:
            return identity in self._sockets

    def open(self, kind: int) -> Answer:
        """socket(2). Raises OSError."""
        if kind & _SOCK_TYPE_MASK != socket.SOCK_STREAM:
            raise OSError(errno.ESOCKTNOSUPPORT, "streams only")
        flags = socket.SOCK_NONBLOCK if kind & socket.SOCK_NONBLOCK else 0
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | flags)
        return self._hand_over(sock, _Socket(), kind)

    def carry_out(self, task: Task, note: Notification, fd: int) -> Answer:
        """A call on one of our sockets, of which `fd` is a copy. Raises OSError, CallerGone."""
        arguments = note.arguments
        state = self._sockets[identify_own(fd)]
        match note.name:
            case "bind":
                return self._bind(fd, state, _address_argument(task, arguments))
            case "connect":
                return self._connect(fd, state, _address_argument(task, arguments))
            case "accept" | "accept4":
                flags = arguments[3] if note.name == "accept4" else 0
                return self._accept(task, note, fd, state, flags)
            case "getsockname":
                _write_address(task, arguments[1], arguments[2], state.local)
            case "getpeername":
                if state.peer is None:
                    raise OSError(errno.ENOTCONN, "no peer")
                _write_address(task, arguments[1], arguments[2], state.peer)
            case "getsockopt":
                return self._option(task, state, arguments)
            case _:
                return LET_THROUGH
        return Value()

    def _hand_over(self, sock: socket.socket, state: _Socket, flags: int) -> Answer:
        with self._lock:
            self._sockets[identify_own(sock.fileno())] = state
        return NewDescriptor(sock.detach(), bool(flags & socket.SOCK_CLOEXEC))

    def _bind(self, fd: int, state: _Socket, wanted: Address) -> Answer:
        if state.local != NOWHERE:
            raise OSError(errno.EINVAL, "bound")
        if wanted.cid not in (CID_ANY, PARENT_CID):
            raise OSError(errno.EADDRNOTAVAIL, "another's CID")
        if wanted.port <= _LAST_PRIVILEGED_PORT:
            raise OSError(errno.EACCES, "privileged port")
        port = self._ephemeral_port() if wanted.port == PORT_ANY else wanted.port
        # One unix address for CID_ANY and the parent's own: neither may be bound beside the other.
        with _as_socket(fd) as sock:
            sock.bind(self.unix_address(Address(PARENT_CID, port)))
        state.local = Address(wanted.cid, port)
        return Value()

    def _connect(self, fd: int, state: _Socket, target: Address) -> Answer:
        if state.peer is not None:
            raise OSError(errno.EISCONN, "connected")
        error = self._reach(fd, target)
        if not error:
            state.peer = target
            if state.local == NOWHERE:
                state.local = Address(PARENT_CID, self._ephemeral_port())
        # A vsock connection takes a round trip: to who does not wait, it is never ready at once.
        if not os.get_blocking(fd):
            state.error = error
            raise OSError(errno.EINPROGRESS, "later")
        return Failure(error) if error else Value()

    def _reach(self, fd: int, target: Address) -> int:
        """Connect to whoever is there; 0 or an errno."""
        try:
            # The parent does not reach itself: that takes a loopback module.
            if target.cid in self._machines:
                return _reach_machine(fd, self._machines[target.cid], target.port)
            if target.cid != PARENT_CID:
                with _as_socket(fd) as sock:
                    sock.connect(self.unix_address(target))
                return 0
        except (ConnectionRefusedError, FileNotFoundError, BrokenPipeError):
            pass
        return errno.ECONNRESET

    def _accept(self, task: Task, note: Notification, fd: int, state: _Socket, flags: int) -> Answer:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            note.require_waiting()
            # Every accept goes through here, so what is there now is there for the one that has the lock.
            with self._lock:
                if poll.poll(0):
                    sock, peer = self._take_connection(fd)
                    break
            if not os.get_blocking(fd):
                raise BlockingIOError(errno.EAGAIN, "nobody")
            poll.poll(_LOOK_MS)
        sock.setblocking(not flags & socket.SOCK_NONBLOCK)
        answer = self._hand_over(sock, _Socket(Address(PARENT_CID, state.local.port), peer), flags)
        assert isinstance(answer, NewDescriptor)
        if note.arguments[1]:
            try:
                _write_address(task, note.arguments[1], note.arguments[2], peer)
            except OSError:
                os.close(answer.fd)
                raise
        return answer

    def _take_connection(self, fd: int) -> tuple[socket.socket, Address]:
        with _as_socket(fd) as listener:
            taken, raw = listener._accept()  # type: ignore[attr-defined]
        # The peer's name tells who it is: the supervisor bound it.
        _, cid, port = os.fsdecode(raw).split("/")
        return socket.socket(fileno=taken), Address(int(cid), int(port))

    @staticmethod
    def _option(task: Task, state: _Socket, arguments: tuple[int, ...]) -> Answer:
        _, level, option, value, size = arguments[:5]
        if level == _SOL_SOCKET and option & 0xFFFFFFFF == SO_DOMAIN:
            number = AF_VSOCK
        elif level == _SOL_SOCKET and option & 0xFFFFFFFF == SO_ERROR and state.error:
            number, state.error = state.error, 0
        elif level == AF_VSOCK:
            raise OSError(errno.ENOPROTOOPT, "no options")
        else:
            return LET_THROUGH
        task.write(value, struct.pack("=i", number))
        task.write(size, struct.pack("=I", 4))
        return Value()

    def _ephemeral_port(self) -> int:
        with self._lock:
            self._next_port += 1
            return self._next_port


def _reach_machine(fd: int, path: Path, port: int) -> int:
    """Connect and say which port; what follows the answer is the guest's. 0 or an errno."""
    with _as_socket(fd) as sock:
        sock.connect(str(path))
        sock.sendall(b"CONNECT %d\n" % port)
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([fd], [], [], _MACHINE_TIMEOUT_S)[0]:
                return errno.ETIMEDOUT
            if not (byte := os.read(fd, 1)):
                return errno.ECONNRESET
            answer += byte
    return 0


@contextlib.contextmanager
def _as_socket(fd: int) -> Iterator[socket.socket]:
    """A socket object that does not own its descriptor."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def address_of(raw: bytes) -> Address:
    """A sockaddr_vm. Raises OSError EINVAL."""
    if len(raw) < SOCKADDR_VM.size:
        raise OSError(errno.EINVAL, "short address")
    family, _, port, cid = SOCKADDR_VM.unpack(raw[: SOCKADDR_VM.size])
    if family != AF_VSOCK:
        raise OSError(errno.EINVAL, "another family")
    return Address(cid, port)


def _address_argument(task: Task, arguments: tuple[int, ...]) -> Address:
    length = arguments[2] & 0xFFFFFFFF
    return address_of(task.read(arguments[1], min(length, SOCKADDR_VM.size)))


def _write_address(task: Task, pointer: int, length_pointer: int, address: Address) -> None:
    (room,) = struct.unpack("=I", task.read(length_pointer, 4))
    raw = SOCKADDR_VM.pack(AF_VSOCK, 0, address.port, address.cid)
    task.write(pointer, raw[:room])
    task.write(length_pointer, struct.pack("=I", len(raw)))
