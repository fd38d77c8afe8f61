"""Every call of the tables, on runc and on pyrune: what comes out is the same, or differs for a reason in the table."""

from __future__ import annotations

import pytest

from tests.contract.calls import LIVES, SINGLE_CALLS, Step
from tests.contract.oracle import Program, differences
from tests.support.command import wait_until

pytestmark = pytest.mark.timeout(120)


def test_single_calls_come_out_as_from_runc(runc: Program, beside: Program) -> None:
    found = [text for step in SINGLE_CALLS for text in differences(step, runc, beside, log_format="json")]
    assert "\n".join(found) == ""


@pytest.mark.parametrize("log_format", [None, "text"])
def test_their_errors_look_as_from_runc_without_a_json_log(
    runc: Program, beside: Program, log_format: str | None
) -> None:
    found = [text for step in SINGLE_CALLS[::6] for text in differences(step, runc, beside, log_format=log_format)]
    assert "\n".join(found) == ""


@pytest.mark.parametrize("life", LIVES)
def test_a_life_goes_as_with_runc(runc: Program, beside: Program, life: str) -> None:
    found = []
    for step in LIVES[life]:
        found += differences(step, runc, beside, log_format="json")
        _await(step, runc, beside)
    assert "\n".join(found) == ""


def _await(step: Step, *programs: Program) -> None:
    if step.until:
        for program in programs:
            wait_until(lambda program=program: program.status("one") == step.until, f"not {step.until}")  # type: ignore[misc]
