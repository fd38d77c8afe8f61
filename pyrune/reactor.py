"""One thread, many descriptors: the event loop of the monitor.

It calls back when a descriptor is ready, a time has come, a signal arrived or work in a thread is done. Callbacks run
one after another in the thread that called `run`, so what they share needs no locks; none of them may block. An
exception from a callback leaves `run`: a monitor that is wrong ends.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import FrameType

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# Fewer cancelled timers than this are not worth a search.
_TIMERS_WORTH_SORTING = 256

# What a callback returns does not matter.
Callback = Callable[[], object]


class Timer:
    """A call that is due at `when` (monotonic seconds) unless cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reactor:
    """See the module. `close` gives back its own descriptors, never those that it watches."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._tidy_at = _TIMERS_WORTH_SORTING
        self._order = itertools.count()
        self._soon: deque[Callback] = deque()
        self._stopped = False
        # Signals and threads wake the loop through this pipe.
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._signals: deque[int] = deque()
        self._on_signal: Callable[[int], None] | None = None
        self._replaced_wakeup_fd: int | None = None
        self.watch(self._wake_r, READ, self._drain_wake)

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is ready for READ or WRITE; a hang-up is both. The latest watch counts."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, before it is closed; no matter if it was not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        """Call `callback` once, `delay_s` from now."""
        if len(self._timers) >= self._tidy_at:
            self._forget_cancelled()
        timer = Timer(time.monotonic() + delay_s, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callback) -> None:
        """Call `callback` in the loop's next round. The one method that other threads may call."""
        self._soon.append(callback)
        self._wake()

    def catch_signals(self, numbers: Iterable[int], callback: Callable[[int], None]) -> None:
        """From now on call `callback` with the number of each signal of `numbers` that arrives.

        Once, and in the main thread.
        """
        self._on_signal = callback
        # Python's handlers run when the main thread next runs Python: one that is just going to sleep in the kernel, or
        # sleeps while another thread is given the signal, would not. The interpreter itself writes to this descriptor.
        self._replaced_wakeup_fd = signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._note_signal)

    def in_thread(self, work: Callable[[], Callback]) -> None:
        """Run `work` in a thread of its own, then what it returns in the loop. `work` must not raise."""
        threading.Thread(target=lambda: self.call_soon(work()), daemon=True).start()

    def stop(self) -> None:
        """Have `run` return after the callbacks of this round."""
        self._stopped = True
        self._wake()

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            for key, _ in self._selector.select(self._until_next()):
                # A callback of this round may have stopped the watching of a descriptor that is ready, too.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._run_due()

    def close(self) -> None:
        """Give back its own descriptors. What threads and signals still have to say goes nowhere."""
        if self._replaced_wakeup_fd is not None:
            signal.set_wakeup_fd(self._replaced_wakeup_fd)
        self._selector.close()
        wake_w, self._wake_w = self._wake_w, -1
        os.close(self._wake_r)
        os.close(wake_w)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self._wake()

    def _wake(self) -> None:
        # A full pipe will wake the loop as well.
        with contextlib.suppress(BlockingIOError):
            if self._wake_w >= 0:
                os.write(self._wake_w, b"\0")

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_r, 4096):
                pass

    def _forget_cancelled(self) -> None:
        # Whoever sets and cancels many (a guest that connects again and again) must not fill the memory with them.
        self._timers = [entry for entry in self._timers if entry[2].callback is not None]
        heapq.heapify(self._timers)
        self._tidy_at = max(_TIMERS_WORTH_SORTING, 2 * len(self._timers))

    def _until_next(self) -> float | None:
        if self._soon or self._signals:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _run_due(self) -> None:
        while self._signals:
            number = self._signals.popleft()
            if self._on_signal is not None:
                self._on_signal(number)
        for _ in range(len(self._soon)):
            self._soon.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()
