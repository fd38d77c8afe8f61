"""In which order things are measured, and when it is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.repetition import LEAST_TURNS, in_turns, turns


def _recording(name: str, calls: list[str], values: Iterator[float]) -> Callable[[], float]:
    def measure() -> float:
        calls.append(name)
        return next(values)

    return measure


def test_pairs_are_measured_in_turns_after_a_first_time_that_does_not_count() -> None:
    calls: list[str] = []
    ours = _recording("ours", calls, iter([100.0, 2.0, 4.0, 6.0]))
    bare = _recording("bare", calls, iter([100.0, 1.0, 2.0, 3.0]))
    pairs = in_turns(ours, bare, most=3, limit_s=60)
    assert calls == ["ours", "bare"] * 4
    assert pairs.ours.values == (2.0, 4.0, 6.0)
    assert pairs.bare.values == (1.0, 2.0, 3.0)


def test_there_are_no_more_turns_than_asked_for() -> None:
    assert list(turns(5, limit_s=60)) == [0, 1, 2, 3, 4]


def test_when_time_is_over_the_least_number_of_turns_is_enough() -> None:
    assert list(turns(100, limit_s=-1)) == list(range(LEAST_TURNS))


def test_fewer_turns_than_the_least_may_be_asked_for() -> None:
    assert list(turns(1, limit_s=-1)) == [0]
