"""The table that a test run ends with: a row for each directory of tests and each check that ran before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import pytest

Column = Literal["passed", "failed", "skipped"]
# pytest's names for outcomes. An error is a fixture that failed; an expected failure that passes is a failure here.
COLUMNS: dict[str, Column] = {
    "passed": "passed",
    "xfailed": "passed",
    "failed": "failed",
    "error": "failed",
    "xpassed": "failed",
    "skipped": "skipped",
}


@dataclass
class Row:
    """What happened to the tests of one directory."""

    counts: Counter[Column] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Table:
    """Collects reports, then gives the lines to print.

    `checks` are those that ran before: NAME:VERDICT:SECONDS, separated by commas, with a verdict that is a column.
    """

    def __init__(self, checks: str = "") -> None:
        self._rows: dict[str, Row] = {}
        for check in filter(None, checks.split(",")):
            name, verdict, seconds = check.split(":")
            row = self._rows.setdefault(name, Row(seconds=float(seconds)))
            row.counts[COLUMNS[verdict]] += 1

    def add(self, outcome: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Count a report under pytest's name for its outcome; set-up and clean-up that went well have none."""
        row = self._rows.setdefault(_directory(report.nodeid), Row())
        if isinstance(report, pytest.TestReport):
            row.seconds += report.duration
        if outcome in COLUMNS:
            row.counts[COLUMNS[outcome]] += 1
        if outcome == "skipped":
            row.reasons[_reason(report)] += 1

    def lines(self) -> list[str]:
        """A header, a row for each directory with the reasons of its skips below it, and the sum."""
        total = Row()
        for row in self._rows.values():
            total.counts.update(row.counts)
            total.seconds += row.seconds
        width = max(map(len, self._rows), default=0)
        printed = [f"{'':<{width}}  passed  failed  skipped  seconds"]
        for name, row in self._rows.items():
            printed.append(_line(name, row, width))
            printed += [f"{'':<{width}}    {count} skipped: {why}" for why, count in row.reasons.most_common()]
        return [*printed, _line("all", total, width)]


def _line(name: str, row: Row, width: int) -> str:
    counts = row.counts
    return f"{name:<{width}}  {counts['passed']:>6}  {counts['failed']:>6}  {counts['skipped']:>7}  {row.seconds:>7.1f}"


def _directory(nodeid: str) -> str:
    """The directory below tests that a test is in: tests/unit for all of tests/unit/eif too."""
    return "/".join(nodeid.split("::")[0].split("/")[:2])


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why a test was skipped, in its own words. pytest keeps them as (file, line, text)."""
    match report.longrepr:
        case (_, _, text):
            return str(text).removeprefix("Skipped: ")
        case other:
            return str(other)
