"""The console of an enclave in debug mode, read from its first byte on.

The hypervisor offers it at a vsock port that depends on the enclave's CID, from the enclave's start on, to one reader.
Nothing can be written to it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from pyrune.ne.parent_vsock import CONSOLE_PORT_BASE, HYPERVISOR_CID, ParentVsock
from pyrune.reactor import READ, Callback, Reactor, Timer

# nitro-cli gives up after as long.
CONNECT_PATIENCE_S: Final = 20.0
_TRY_EVERY_S: Final = 0.05
_CHUNK_BYTES: Final = 64 << 10
# An enclave that has ended has no more to say than what lies in buffers on the way.
_LAST_BYTES: Final = 4 << 20


class EnclaveConsole:
    """Makes its socket at once. `on_data` gets what the enclave prints, `on_lost` a sentence if it cannot be had."""

    def __init__(
        self,
        vsock: ParentVsock,
        reactor: Reactor,
        on_data: Callable[[bytes], object],
        on_lost: Callable[[str], object],
    ) -> None:
        self._vsock = vsock
        self._reactor = reactor
        self._on_data = on_data
        self._on_lost = on_lost
        self._sock: socket.socket | None = vsock.make()
        self._connecting = False
        self._connected = False
        self._paused = False
        self._given_up = threading.Event()
        self._on_over: Callback | None = None
        self._last_timer: Timer | None = None
        self._last_bytes = 0

    def connect(self, enclave_cid: int) -> None:
        """Connect in the background, again and again for a while: the console may appear a little after the start."""
        self._connecting = True
        self._reactor.in_thread(lambda: self._try_to_connect(enclave_cid))

    def pause(self) -> None:
        """Read no more until `resume`; the enclave waits when the buffers on the way are full. Not while finishing."""
        if self._on_over is None:
            self._paused = True
            if self._connected and self._sock is not None:
                self._reactor.unwatch(self._sock.fileno())

    def resume(self) -> None:
        self._paused = False
        self._watch()

    def finish(self, within_s: float, on_over: Callback) -> None:
        """Hand over what is here, paused or not, and what still comes; then call `on_over`: at the console's end, or
        when the time is over. A console that is not connected yet may be until then."""
        self._on_over = on_over
        self._paused = False
        while self._connected and self._read():
            pass
        if self._sock is None or not within_s:
            self._reactor.call_soon(self._end)
        else:
            self._last_timer = self._reactor.call_later(within_s, self._end)
            self._watch()

    def close(self) -> None:
        """May be called again."""
        self._given_up.set()
        self._connected = False
        self._on_over = None
        if self._last_timer is not None:
            self._last_timer.cancel()
        # A socket that a thread is connecting is closed when that is over: its descriptor must not be used anew.
        if self._sock is not None and not self._connecting:
            self._reactor.unwatch(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _try_to_connect(self, enclave_cid: int) -> Callback:
        """In a thread: the call blocks. Returns what is to be done in the reactor."""
        assert self._sock is not None
        deadline = time.monotonic() + CONNECT_PATIENCE_S
        number: int | None = 0
        while time.monotonic() < deadline and not self._given_up.is_set():
            try:
                self._vsock.connect(self._sock, HYPERVISOR_CID, CONSOLE_PORT_BASE + enclave_cid)
            except OSError as exc:
                number = exc.errno
                self._given_up.wait(_TRY_EVERY_S)
            else:
                return self._begin
        return lambda: self._lose(f"the enclave's console cannot be read: it does not answer (error {number})")

    def _begin(self) -> None:
        self._connecting = False
        if self._given_up.is_set():
            self.close()
            return
        assert self._sock is not None
        self._connected = True
        self._sock.setblocking(False)
        self._watch()

    def _lose(self, sentence: str) -> None:
        self._connecting = False
        if not self._given_up.is_set() and self._on_over is None:
            self._on_lost(sentence)
        self._end()

    def _watch(self) -> None:
        if self._connected and self._sock is not None and not self._paused:
            self._reactor.watch(self._sock.fileno(), READ, self._read)

    def _read(self) -> bool:
        """Whether there may be more at once."""
        assert self._sock is not None
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._on_data(data)
            if self._on_over is not None:
                self._last_bytes += len(data)
        if not data or self._last_bytes > _LAST_BYTES:
            self._connected = False
            self._reactor.unwatch(self._sock.fileno())
            self._reactor.call_soon(self._end)
            return False
        return True

    def _end(self) -> None:
        on_over = self._on_over
        self.close()
        if on_over is not None:
            on_over()
