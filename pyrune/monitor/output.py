"""What an enclave prints, on its way to the container's standard output.

The descriptor came from the caller and may be shared with others, so it is never set non-blocking; a thread that may
block does the writing instead. The queue between is bounded: above the mark the producer is asked to wait.
"""

from __future__ import annotations

import threading
from collections import deque

from pyrune.linux import write_some
from pyrune.reactor import Callback, Reactor

HIGH_WATER_BYTES = 256 * 1024
LOW_WATER_BYTES = 64 * 1024


class OutputWriter:
    """Writes to a descriptor from a thread. `on_room` is called in the reactor when a full queue has drained."""

    def __init__(self, fd: int, reactor: Reactor, on_room: Callback) -> None:
        self._fd = fd
        self._reactor = reactor
        self._on_room = on_room
        self._on_drained: Callback | None = None
        self._changed = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._full = False
        self._broken = False
        self.written_bytes = 0
        threading.Thread(target=self._write_all, name="output", daemon=True).start()

    def write(self, data: bytes) -> bool:
        """Queue `data`. False: the queue is full now, write no more until `on_room`."""
        with self._changed:
            # A reader who has gone ends nothing: what would have been written is dropped.
            if not self._broken:
                self._queue.append(data)
                self._queued_bytes += len(data)
                # Once full it stays so until `on_room`, else whoever goes on a little would never hear of room.
                self._full = self._full or self._queued_bytes >= HIGH_WATER_BYTES
                self._changed.notify()
            return not self._full

    def when_drained(self, callback: Callback) -> None:
        """Call back in the reactor once everything queued has been written or dropped."""
        with self._changed:
            self._on_drained = callback
            self._changed.notify()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._on_drained is not None:
                        self._reactor.call_soon(self._on_drained)
                        return
                    self._changed.wait()
                data = self._queue.popleft()
            self._write_one(data)
            with self._changed:
                self._queued_bytes = max(0, self._queued_bytes - len(data))
                if self._full and (self._broken or self._queued_bytes <= LOW_WATER_BYTES):
                    self._full = False
                    self._reactor.call_soon(self._on_room)

    def _write_one(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._broken:
            try:
                done = write_some(self._fd, view)
            except OSError:
                self._give_up()
                return
            self.written_bytes += done
            view = view[done:]

    def _give_up(self) -> None:
        with self._changed:
            self._broken = True
            self._queue.clear()
            self._queued_bytes = 0
