"""Doing a thing again: warm-up first, then in turns with its counterpart, and an end in time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

from benchmarks.figures import Pairs, Series

# Fewer are no measurement, however long they take.
LEAST_TURNS = 3


def turns(most: int, limit_s: float) -> Iterator[int]:
    """Numbers from 0: `most` of them, or fewer, but LEAST_TURNS, when `limit_s` is over."""
    deadline = time.monotonic() + limit_s
    for number in itertools.count():
        if number >= most or (number >= LEAST_TURNS and time.monotonic() > deadline):
            return
        yield number


def in_turns(ours: Callable[[], float], bare: Callable[[], float], *, most: int, limit_s: float) -> Pairs:
    """Measure ours, bare, ours, bare. Each is called once before that and not counted: files get into the cache."""
    ours()
    bare()
    return Pairs.of([(ours(), bare()) for _ in turns(most, limit_s)])


def again(measurement: Callable[[], float], *, most: int, limit_s: float) -> Series:
    """Measure one thing, after a first time that does not count."""
    measurement()
    return Series(tuple(measurement() for _ in turns(most, limit_s)))


def duration_s(action: Callable[[], object]) -> float:
    """How long `action` takes, on the wall."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
