"""QMP, QEMU's control protocol: lines of JSON over a socket.

Only what this back end needs: the handshake, commands whose results do not matter, and events. Source: QEMU's
docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import json
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pyrune.errors import BackendError
from pyrune.reactor import READ, Reactor

_LINE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An event's name (SHUTDOWN, STOP, ...) and, where it has one, its `reason`."""

    name: str
    reason: str


class QmpClient:
    """Owns `sock`. `handshake` comes first and blocks; after `attach`, events arrive by callback."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = b""
        self._messages: deque[dict[str, object]] = deque()
        self._reactor: Reactor | None = None
        self._on_event: Callable[[QmpEvent], None] | None = None

    def handshake(self, timeout_s: float) -> None:
        """Leave the negotiation mode. Raises BackendError when QEMU ends, makes no sense or does not answer in time."""
        deadline = time.monotonic() + timeout_s
        self._read_until("QMP", deadline)
        self.send("qmp_capabilities")
        self._read_until("return", deadline)

    def attach(self, reactor: Reactor, on_event: Callable[[QmpEvent], None]) -> None:
        """From now on call back for each event until `close`. The connection's end is no event: watch the process."""
        self._reactor = reactor
        self._on_event = on_event
        self._sock.setblocking(False)
        reactor.watch(self._sock.fileno(), READ, self._receive)

    def send(self, command: str) -> None:
        """Give a command that takes no arguments. A connection that QEMU has closed is no error here."""
        try:
            self._sock.sendall(json.dumps({"execute": command}).encode() + b"\n")
        except OSError:
            return

    def catch_up(self) -> None:
        """Take what has arrived already: call when QEMU has exited, whose last event may not have been read yet."""
        if self._sock.fileno() >= 0:
            self._receive()

    def close(self) -> None:
        if self._reactor is not None and self._sock.fileno() >= 0:
            self._reactor.unwatch(self._sock.fileno())
        self._on_event = None
        self._sock.close()

    def _read_until(self, key: str, deadline: float) -> None:
        while True:
            while self._messages:
                message = self._messages.popleft()
                if key in message:
                    return
                if "error" in message:
                    raise BackendError("qemu refused the control connection")
            self._read_before(deadline)

    def _read_before(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise BackendError("qemu did not answer on its control connection in time")
        self._sock.settimeout(remaining)
        try:
            chunk = self._sock.recv(65536)
        except TimeoutError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            raise BackendError("qemu ended before it was ready")
        try:
            self._take(chunk)
        except ValueError as exc:
            raise BackendError("qemu's control connection makes no sense") from exc

    def _receive(self) -> None:
        try:
            chunk = self._sock.recv(65536)
            self._take(chunk)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            # Without the connection its process still tells how QEMU ended.
            chunk = b""
        if not chunk:
            self.close()
        # A callback may close this: what has arrived with its event is then nobody's.
        while self._messages and self._on_event is not None:
            message = self._messages.popleft()
            if isinstance(name := message.get("event"), str):
                self._on_event(QmpEvent(name, _reason_of(message)))

    def _take(self, chunk: bytes) -> None:
        """Raises ValueError for what is no line of JSON."""
        *lines, self._received = (self._received + chunk).split(b"\n")
        if len(self._received) > _LINE_LIMIT_BYTES:
            raise ValueError("the line has no end")
        for line in filter(bytes.strip, lines):
            try:
                message = json.loads(line)
            except RecursionError as exc:
                raise ValueError("the line has no bottom") from exc
            if isinstance(message, dict):
                self._messages.append(message)


def _reason_of(message: dict[str, object]) -> str:
    data = message.get("data")
    return str(data.get("reason", "")) if isinstance(data, dict) else ""
