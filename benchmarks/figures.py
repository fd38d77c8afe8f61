"""The arithmetic: series of measurements, pairs of them, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Series:
    """The same thing measured some times, in the order of measuring. Never empty."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a series needs at least one measurement")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def written(self, unit: Callable[[float], str]) -> str:
        """The median, and in parentheses the least and the most."""
        return f"{unit(self.median)} ({unit(self.least)} to {unit(self.most)})"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two things measured in turns: `ours` and `bare` of the same place belong together."""

    ours: Series
    bare: Series

    def __post_init__(self) -> None:
        if len(self.ours) != len(self.bare):
            raise ValueError(f"{len(self.ours)} measurements cannot be paired with {len(self.bare)}")

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Pairs:
        """From (ours, bare) of each turn."""
        return cls(Series(tuple(ours for ours, _ in pairs)), Series(tuple(bare for _, bare in pairs)))

    @property
    def ratios(self) -> Series:
        """Ours divided by bare, pair by pair: the median of these is not the ratio of the medians."""
        return Series(tuple(ours / bare for ours, bare in zip(self.ours.values, self.bare.values, strict=True)))

    @property
    def differences(self) -> Series:
        """Ours less bare, pair by pair."""
        return Series(tuple(ours - bare for ours, bare in zip(self.ours.values, self.bare.values, strict=True)))


def seconds(value: float) -> str:
    return f"{value:.2f} s"


def milliseconds(value_s: float) -> str:
    return f"{value_s * 1e3:.0f} ms" if abs(value_s) >= 0.1 else f"{value_s * 1e3:.1f} ms"


def microseconds(value_s: float) -> str:
    return f"{value_s * 1e6:.0f} us"


def mib_per_s(value_bytes: float) -> str:
    return f"{value_bytes / (1 << 20):.0f} MiB/s"


def mib(value_bytes: float) -> str:
    return f"{value_bytes / (1 << 20):.1f} MiB"


def times(ratio: float) -> str:
    """A ratio in as many digits as tell something, be it 1.07, 38 or 0.02."""
    return f"{ratio:.3g}" if ratio >= 0.1 else f"{ratio:.2g}"
