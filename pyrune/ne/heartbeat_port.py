"""The heartbeat's port, shared by all enclaves of this machine that start at the same time.

Every enclave says that it is up by connecting to port 9000 of the parent, and there is one such port for the whole
machine. Who connected tells the enclaves apart: a beat counts only for the enclave whose CID it comes from.

Each process that starts an enclave (a starter) has a datagram socket in a directory that is root's alone. The first
one takes the port. Those that find it taken ask the others for it, and get a descriptor of the same listening socket;
so all of them accept from one queue, and the port stays for as long as any of them needs it, whoever dies. Whoever
accepts a connection that is not its own, or does not know yet, hands copies of it to all others; each answers only its
own enclave. The messages, each with at most one descriptor:

    here            nothing; whoever cannot take it is dead
    want <name>     the starter with that socket asks for the listening socket
    port            here it is
    beat <cid>      a connection that came from this CID

An enclave whose connection has been accepted in the very moment in which the accepting process is killed is not
answered: that window is between two system calls, and nothing can close it. When the port belongs to a program that
does not share it, such as nitro-cli, which needs it for a few seconds, a starter waits for a while.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyrune.backend import HEARTBEAT_PORT
from pyrune.errors import BackendError
from pyrune.ne.parent_vsock import ParentVsock
from pyrune.reactor import READ, Callback, Reactor, Timer
from pyrune.vsock.heartbeat import BeatAnswerer

PORT_PATIENCE_S: Final = 60.0
_ASK_EVERY_S: Final = 0.1
_SEND_AGAIN_S: Final = 0.02
_SEND_TRIES: Final = 250
_MESSAGE_LIMIT_BYTES: Final = 128
# A hostile enclave may connect as often as it likes: it can push out nothing but its own connections.
_KEPT_PER_CID: Final = 4
_KEPT_CIDS: Final = 256


def default_directory() -> Path:
    """Where the starters of this user meet."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/pyrune-heartbeat")
    own = Path(f"/run/user/{uid}")
    return own / "pyrune-heartbeat" if own.is_dir() else Path(f"/tmp/pyrune-heartbeat-{uid}")


class HeartbeatPort:
    """One starter's share of the port. Makes its vsock socket at once, and takes the port with `open`.

    `on_beat` is called when the enclave that `expect` named has said that it is up, and been answered.
    """

    def __init__(self, vsock: ParentVsock, reactor: Reactor, on_beat: Callback, directory: Path | None = None) -> None:
        self._vsock = vsock
        self._reactor = reactor
        self._answerer = BeatAnswerer(reactor, on_beat)
        self._meeting = _Meeting(directory or default_directory(), reactor, self._on_message)
        self._unbound: socket.socket | None = vsock.make()
        self._listener: socket.socket | None = None
        self._cid: int | None = None
        self._kept: dict[int, list[socket.socket]] = {}
        self._timer: Timer | None = None
        self._tries_left = 0
        self._on_open: Callback = _nothing
        self._on_failed: Callable[[BackendError], object] = _nothing

    def open(self, on_open: Callback, on_failed: Callable[[BackendError], object]) -> None:
        """Get the port, by itself or from another starter. Exactly one of the two is called, unless `close` is."""
        self._on_open, self._on_failed = on_open, on_failed
        self._tries_left = round(PORT_PATIENCE_S / _ASK_EVERY_S)
        try:
            self._meeting.join()
        except BackendError as exc:
            self._fail(exc)
            return
        self._seek()

    def expect(self, cid: int) -> None:
        """From now on believe beats from this CID, those that came before this call included."""
        self._cid = cid
        for connection in self._kept.pop(cid, []):
            self._answerer.add(connection)
        # Every other starter that was there has copies of the others.
        self._drop_kept()

    def close(self) -> None:
        """Give the port back, and drop all that came from it. May be called again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._reactor.unwatch(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self._drop_unbound()
        self._drop_kept()
        self._answerer.close()
        self._meeting.leave()

    def _seek(self) -> None:
        assert self._unbound is not None
        try:
            self._vsock.listen(self._unbound, HEARTBEAT_PORT)
        except OSError as exc:
            self._on_listen_error(exc.errno or 0)
            return
        listener, self._unbound = self._unbound, None
        self._use(listener)

    def _on_listen_error(self, number: int) -> None:
        if number != errno.EADDRINUSE:
            self._fail(_listen_error(number))
        elif self._tries_left <= 0:
            self._fail(_port_taken())
        else:
            self._tries_left -= 1
            self._timer = self._reactor.call_later(_ASK_EVERY_S, self._seek)
            self._meeting.tell_others(b"want " + self._meeting.name.encode(), None)

    def _fail(self, error: BackendError) -> None:
        self._drop_unbound()
        self._reactor.call_soon(lambda: self._on_failed(error))

    def _use(self, listener: socket.socket) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._drop_unbound()
        listener.setblocking(False)
        self._listener = listener
        self._reactor.watch(listener.fileno(), READ, self._accept)
        self._reactor.call_soon(self._on_open)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, cid = self._vsock.accept(self._listener)
        except OSError:
            # Another starter was faster, or the connection is gone.
            return
        if cid != self._cid:
            self._meeting.tell_others(b"beat %d" % cid, connection.fileno())
        self._receive(connection, cid)

    def _receive(self, connection: socket.socket, cid: int) -> None:
        if cid == self._cid:
            self._answerer.add(connection)
        elif self._cid is None and (cid in self._kept or len(self._kept) < _KEPT_CIDS):
            kept = self._kept.setdefault(cid, [])
            kept.append(connection)
            if len(kept) > _KEPT_PER_CID:
                kept.pop(0).close()
        else:
            connection.close()

    def _on_message(self, message: bytes, fd: int | None) -> None:
        """Takes `fd` over."""
        verb, _, argument = message.partition(b" ")
        if verb == b"want" and self._listener is not None:
            self._meeting.tell(argument.decode(errors="replace"), b"port", self._listener.fileno())
        if fd is None:
            return
        try:
            sock = self._vsock.adopt(fd)
        except OSError:
            os.close(fd)
            return
        if verb == b"port" and self._unbound is not None:
            self._use(sock)
        elif verb == b"beat" and argument.isdigit():
            self._receive(sock, int(argument))
        else:
            sock.close()

    def _drop_unbound(self) -> None:
        if self._unbound is not None:
            self._unbound.close()
            self._unbound = None

    def _drop_kept(self) -> None:
        for connections in self._kept.values():
            for connection in connections:
                connection.close()
        self._kept.clear()


class _Meeting:
    """The directory where starters find each other, and this one's socket in it."""

    def __init__(self, path: Path, reactor: Reactor, on_message: Callable[[bytes, int | None], None]) -> None:
        self._path = path
        self._reactor = reactor
        self._on_message = on_message
        # A name that is never used again: whoever finds nobody behind it may remove it.
        self.name = f"{os.getpid()}.{secrets.token_hex(8)}"
        self._directory_fd = -1
        self._sock: socket.socket | None = None
        self._unsent = 0
        self._leaving = False

    def join(self) -> None:
        """Raises BackendError where the directory is not this user's alone."""
        self._directory_fd = _open_directory(self._path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._sock.bind(self._address(self.name))
        except OSError as exc:
            raise _directory_error(self._path, f"takes no socket (error {exc.errno})") from exc
        self._reactor.watch(self._sock.fileno(), READ, self._receive)
        # Who was killed has left its socket here, and goes when nobody takes what is sent to it.
        self.tell_others(b"here", None)

    def leave(self) -> None:
        """Be found no longer; what is still to be sent is sent. May be called again."""
        if self._sock is not None and not self._leaving:
            self._leaving = True
            self._reactor.unwatch(self._sock.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.name, dir_fd=self._directory_fd)
        self._close_if_done()

    def tell_others(self, message: bytes, fd: int | None) -> None:
        """Send to every other starter. `fd` stays the caller's."""
        for name in os.listdir(self._directory_fd):
            if name != self.name:
                self.tell(name, message, fd)

    def tell(self, name: str, message: bytes, fd: int | None) -> None:
        """Send to one starter."""
        if "/" not in name:
            self._unsent += 1
            self._send(name, message, None if fd is None else os.dup(fd), _SEND_TRIES)

    def _send(self, name: str, message: bytes, fd: int | None, tries: int) -> None:
        """Takes `fd` over."""
        assert self._sock is not None
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
        try:
            self._sock.sendmsg([message], ancillary, 0, self._address(name))
        except BlockingIOError:
            # Its queue is full: it is busy, or stopped.
            if tries:
                self._reactor.call_later(_SEND_AGAIN_S, lambda: self._send(name, message, fd, tries - 1))
                return
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory_fd)
        except OSError:
            # It has left meanwhile.
            pass
        if fd is not None:
            os.close(fd)
        self._unsent -= 1
        self._close_if_done()

    def _receive(self) -> None:
        assert self._sock is not None
        room = socket.CMSG_SPACE(array("i", [0]).itemsize)
        try:
            message, ancillary, _, _ = self._sock.recvmsg(_MESSAGE_LIMIT_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        fds = array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        self._on_message(message, fds[0] if fds else None)

    def _address(self, name: str) -> str:
        # Through the descriptor, the directory's path may be as long as it likes.
        return f"/proc/self/fd/{self._directory_fd}/{name}"

    def _close_if_done(self) -> None:
        if self._leaving and not self._unsent and self._sock is not None:
            self._sock.close()
            self._sock = None
            os.close(self._directory_fd)


def _nothing(*_: object) -> None:
    pass


def _open_directory(path: Path) -> int:
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise _directory_error(path, f"cannot be used (error {exc.errno})") from exc
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(fd)
        raise _directory_error(path, "is open to other users")
    return fd


def _directory_error(path: Path, problem: str) -> BackendError:
    return BackendError(
        f"the directory {path}, in which starting enclaves share the heartbeat's port, {problem}",
        remedy="remove it, and see that this user can make it again",
    )


def _listen_error(number: int) -> BackendError:
    return BackendError(
        f"port {HEARTBEAT_PORT} of vsock cannot be listened on (error {number})",
        remedy="see that the module vsock and the driver nitro_enclaves are loaded",
    )


def _port_taken() -> BackendError:
    return BackendError(
        f"port {HEARTBEAT_PORT} of vsock, which the enclave reports to when it is up, has been held by another program "
        f"for {PORT_PATIENCE_S:.0f} s",
        remedy="end that program (nitro-cli holds the port while it starts an enclave), and try again",
    )
