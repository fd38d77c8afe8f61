"""The benchmarks' arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import figures
from benchmarks.figures import Pairs, Series

DURATIONS = st.floats(min_value=1e-6, max_value=1e6)


def test_the_median_of_an_odd_number_is_the_middle_one_whatever_the_order() -> None:
    assert Series((9.0, 1.0, 2.0)).median == 2.0


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle() -> None:
    assert Series((4.0, 1.0, 2.0, 100.0)).median == 3.0


def test_a_series_knows_its_extremes_and_its_length() -> None:
    series = Series((3.0, 1.0, 2.0))
    assert (series.least, series.most, len(series)) == (1.0, 3.0, 3)


def test_a_series_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Series(())


def test_ratios_are_taken_pair_by_pair() -> None:
    pairs = Pairs.of([(2.0, 1.0), (30.0, 10.0), (4.0, 4.0)])
    assert pairs.ratios.values == (2.0, 3.0, 1.0)
    assert pairs.differences.values == (1.0, 20.0, 0.0)


def test_the_median_of_the_ratios_is_not_the_ratio_of_the_medians() -> None:
    # A slow moment of the machine met the second pair; it does not touch the ratio.
    pairs = Pairs.of([(2.0, 1.0), (20.0, 10.0), (4.0, 2.0), (2.0, 1.0)])
    assert pairs.ratios.median == 2.0
    lopsided = Pairs.of([(2.0, 1.0), (3.0, 10.0), (9.0, 2.0)])
    assert lopsided.ratios.median == 2.0
    assert lopsided.ours.median / lopsided.bare.median == 1.5


def test_measurements_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        Pairs(Series((1.0, 2.0)), Series((1.0,)))


@given(st.lists(st.tuples(DURATIONS, DURATIONS), min_size=1, max_size=20))
def test_the_median_ratio_lies_between_the_extremes(pairs: list[tuple[float, float]]) -> None:
    ratios = Pairs.of(pairs).ratios
    assert ratios.least <= ratios.median <= ratios.most


@given(st.lists(st.tuples(DURATIONS, DURATIONS), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_a_machine_that_is_slower_throughout_gives_the_same_ratios(
    pairs: list[tuple[float, float]], slower: float
) -> None:
    slowed = Pairs.of([(ours * slower, bare * slower) for ours, bare in pairs])
    assert slowed.ratios == Pairs.of(pairs).ratios


def test_a_series_is_written_as_its_median_and_its_extremes() -> None:
    assert Series((0.2, 0.1, 0.4)).written(figures.milliseconds) == "200 ms (100 ms to 400 ms)"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.seconds(1.234), "1.23 s"),
        (figures.milliseconds(0.0421), "42.1 ms"),
        (figures.milliseconds(0.4219), "422 ms"),
        (figures.milliseconds(-0.0421), "-42.1 ms"),
        (figures.microseconds(0.000468), "468 us"),
        (figures.mib(3.5 * 2**20), "3.5 MiB"),
        (figures.mib_per_s(64 * 2**20), "64 MiB/s"),
        (figures.times(1.066), "1.07"),
        (figures.times(38.42), "38.4"),
        (figures.times(0.0234), "0.023"),
    ],
)
def test_units(written: str, expected: str) -> None:
    assert written == expected
