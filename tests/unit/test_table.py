"""The table at the end of a test run."""

from __future__ import annotations

import pytest

from tests.table import Table


def report(nodeid: str, *, skipped: str = "", seconds: float = 0.5) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=nodeid,
        location=("", None, ""),
        keywords={},
        outcome="skipped" if skipped else "passed",
        longrepr=("file.py", 3, f"Skipped: {skipped}") if skipped else None,
        when="call",
        duration=seconds,
    )


def test_a_directory_is_one_row_with_the_reasons_of_its_skips_below() -> None:
    table = Table()
    table.add("passed", report("tests/unit/eif/test_a.py::test_x"))
    table.add("skipped", report("tests/unit/test_b.py::test_y", skipped="runc: not installed"))
    table.add("skipped", report("tests/unit/test_b.py::test_z", skipped="runc: not installed"))
    table.add("failed", report("tests/qemu/test_c.py::test_v"))
    assert table.lines() == [
        "            passed  failed  skipped  seconds",
        "tests/unit       1       0        2      1.5",
        "              2 skipped: runc: not installed",
        "tests/qemu       0       1        0      0.5",
        "all              1       1        2      2.0",
    ]


def test_set_up_and_clean_up_count_as_time_only() -> None:
    table = Table()
    table.add("", report("tests/unit/test_a.py::test_x", seconds=2))
    assert table.lines()[-1].split() == ["all", "0", "0", "0", "2.0"]


def test_a_failing_fixture_is_a_failure_and_so_is_an_expected_failure_that_passes() -> None:
    table = Table()
    table.add("error", report("tests/unit/test_a.py::test_x"))
    table.add("xpassed", report("tests/unit/test_a.py::test_y"))
    assert table.lines()[-1].split()[:4] == ["all", "0", "2", "0"]


def test_checks_that_ran_before_are_rows_too() -> None:
    table = Table("types:passed:12,lint:failed:1")
    assert [line.split() for line in table.lines()[1:]] == [
        ["types", "1", "0", "0", "12.0"],
        ["lint", "0", "1", "0", "1.0"],
        ["all", "1", "1", "0", "13.0"],
    ]
