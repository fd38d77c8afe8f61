"""The control socket: how later calls talk to the monitor of a container.

Over the stream socket `control` in the container's directory, one request and one reply per connection, each one line
of JSON: {"verb": "start"} or {"verb": "kill", "signal": 15}; then {} or {"error": text}. `start` is answered when the
enclave has booted or failed to. The directory's mode lets only its owner and root connect.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from pyrune.errors import ContainerStateError, MonitorError, ReportedError
from pyrune.linux import bind_unix, connect_unix
from pyrune.reactor import READ, Reactor, Timer

SOCKET_NAME = "control"
_REQUEST_LIMIT_BYTES = 4096
_REQUEST_TIMEOUT_S = 10.0
# struct ucred of unix(7): pid, uid, gid.
_PEER_CREDENTIALS = struct.Struct("=iII")
# Whoever has asked is waited for by a call of pyrune; the others may be anything.
_SILENT_CLIENT_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Request:
    """`signal` is 0 unless the verb is kill."""

    verb: str
    signal: int = 0


# Called with None for done, or with the reason why not.
Reply = Callable[[str | None], None]
RequestHandler = Callable[[Request, Reply], None]


def ask(directory_fd: int, request: Request) -> None:
    """Have the monitor carry out `request`. A start takes as long as the boot; anything else is answered at once.

    Raises ContainerStateError when there is no monitor any more, ReportedError with its reason for not doing it, and
    MonitorError when it dies meanwhile, does not accept the call or does not answer.
    """
    try:
        sock = connect_unix(directory_fd, SOCKET_NAME, _REQUEST_TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise ContainerStateError("container not running") from exc
    except OSError as exc:
        raise MonitorError(f"the container's monitor cannot be reached (error {exc.errno})") from exc
    with sock:
        try:
            sock.sendall(json.dumps({"verb": request.verb, "signal": request.signal}).encode() + b"\n")
            sock.settimeout(None if request.verb == "start" else _REQUEST_TIMEOUT_S)
            with sock.makefile("rb") as replies:
                line = replies.readline()
        except TimeoutError as exc:
            raise MonitorError("the container's monitor does not answer; delete --force ends it") from exc
        except OSError as exc:
            raise MonitorError("the container's monitor ended during the call") from exc
    if not line.endswith(b"\n"):
        raise MonitorError("the container's monitor ended during the call")
    match _parsed(line):
        case {"error": str(text)}:
            raise ReportedError(text)
        case {**rest} if not rest:
            return
    raise MonitorError("the container's monitor made no sense")


def server_pid(directory_fd: int) -> int | None:
    """The pid of the monitor that listens there, as the kernel knows it, if one does."""
    try:
        with connect_unix(directory_fd, SOCKET_NAME, _REQUEST_TIMEOUT_S) as sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    except OSError:
        return None
    pid, _, _ = _PEER_CREDENTIALS.unpack(credentials)
    return int(pid)


def parse_request(line: bytes) -> Request | None:
    """The request that a caller's line holds, if it does."""
    match _parsed(line):
        case {"verb": str(verb), **rest}:
            number = rest.get("signal", 0)
            # True is an int, too, but no signal.
            return Request(verb, number) if type(number) is int and 0 <= number < signal.NSIG else None
    return None


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    timer: Timer
    has_asked: bool = False
    received: bytearray = field(default_factory=bytearray)


class ControlServer:
    """The monitor's end. `close` answers nobody and removes the socket. Raises MonitorError if there can be none."""

    def __init__(self, directory_fd: int, reactor: Reactor, handle: RequestHandler) -> None:
        self._directory_fd = directory_fd
        self._reactor = reactor
        self._handle = handle
        self._clients: dict[int, _Client] = {}
        try:
            self._listener = bind_unix(directory_fd, SOCKET_NAME)
        except OSError as exc:
            raise MonitorError(f"the container's control socket cannot be made (error {exc.errno})") from exc
        self._listener.setblocking(False)
        reactor.watch(self._listener.fileno(), READ, self._accept)

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return
        self._reactor.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients.values()):
            self._drop(client)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=self._directory_fd)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # Gone again, or no descriptor is left: the enclave matters more than a caller who can come again.
            return
        sock.setblocking(False)
        client = _Client(sock, self._reactor.call_later(_REQUEST_TIMEOUT_S, lambda: self._drop(client)))
        silent = [other for other in self._clients.values() if not other.has_asked]
        if len(silent) >= _SILENT_CLIENT_LIMIT:
            self._drop(silent[0])
        self._clients[sock.fileno()] = client
        self._reactor.watch(sock.fileno(), READ, lambda: self._receive(client))

    def _receive(self, client: _Client) -> None:
        try:
            chunk = client.sock.recv(_REQUEST_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        client.received += chunk
        if not chunk or len(client.received) > _REQUEST_LIMIT_BYTES:
            self._drop(client)
        elif client.received.endswith(b"\n"):
            client.has_asked = True
            client.timer.cancel()
            self._reactor.unwatch(client.sock.fileno())
            self._dispatch(client)

    def _dispatch(self, client: _Client) -> None:
        request = parse_request(bytes(client.received))
        if request is None:
            self._reply(client, "this is not a request that the monitor knows")
        else:
            self._handle(request, lambda error: self._reply(client, error))

    def _reply(self, client: _Client, error: str | None) -> None:
        if client.sock.fileno() < 0:
            return
        # One short line always fits into the empty send buffer of a unix socket.
        with contextlib.suppress(OSError):
            client.sock.send(json.dumps({} if error is None else {"error": error}).encode() + b"\n")
        self._drop(client)

    def _drop(self, client: _Client) -> None:
        client.timer.cancel()
        if client.sock.fileno() >= 0:
            self._clients.pop(client.sock.fileno(), None)
            self._reactor.unwatch(client.sock.fileno())
            client.sock.close()
