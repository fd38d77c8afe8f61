"""Where calls fail, wait or stand still because the scenario, or the control socket, says so."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

from tests.emulated_driver.freezer import frozen
from tests.emulated_driver.journal import error_number
from tests.emulated_driver.notification import CallerGone, Notification
from tests.emulated_driver.scenario import Fault, Point
from tests.emulated_driver.task import Task

_LOOK_S = 0.02


class Faults:
    """Thread-safe. A call is counted once, when it comes in, by `number`."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._faults = list(faults)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._held: dict[int, tuple[str, int]] = {}
        self._released = threading.Condition(self._lock)
        self._generation = 0

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def number(self, call: str) -> int:
        """Count a call: its number among those of its name."""
        with self._lock:
            self._counts[call] += 1
            return self._counts[call]

    def strike(self, call: str, number: int, at: Point, note: Notification) -> None:
        """Carry out what is due at this point of a call. Raises OSError for an error, CallerGone if it is killed."""
        with self._lock:
            due = [
                fault for fault in self._faults if fault.call == call and fault.at is at and fault.nth in (0, number)
            ]
        for fault in due:
            if fault.delay_s:
                _sleep(fault.delay_s, note)
            if fault.hold:
                with frozen(note.task) if fault.uninterruptible else contextlib.nullcontext():
                    self._hold(call, note, give_up=not fault.uninterruptible)
                note.require_waiting()
            if fault.error != "":
                raise OSError(error_number(fault.error), f"{call}: told to fail")

    def held(self) -> list[tuple[str, int]]:
        """The calls that stand still, each with its process."""
        with self._lock:
            return list(self._held.values())

    def release(self) -> None:
        """Let every call that stands still go on."""
        with self._lock:
            self._generation += 1
            self._released.notify_all()

    def _hold(self, call: str, note: Notification, *, give_up: bool) -> None:
        """Wait for `release`; `give_up` on a caller that is killed."""
        try:
            pid = Task(note.task).pid
        except OSError as exc:
            raise CallerGone from exc
        with self._lock:
            generation = self._generation
            self._held[note.id] = (call, pid)
            try:
                while self._generation == generation:
                    if give_up:
                        note.require_waiting()
                    self._released.wait(_LOOK_S)
            finally:
                del self._held[note.id]


def _sleep(seconds: float, note: Notification) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        note.require_waiting()
        time.sleep(min(left, _LOOK_S))
