"""pytest fixtures; a conftest imports those that it wants."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.emulated_driver.machine import GIGANTIC, HUGE, NitroMachine, free_huge_pages, huge_pages
from tests.emulated_driver.scenario import Scenario
from tests.needs import missing

# make(huge_pages_wanted=N, gigantic_pages_wanted=M, ...): a machine that has at least so many free huge pages of 2 MiB
# and of 1 GiB; what else is given changes the scenario.
MachineMaker: TypeAlias = Callable[..., NitroMachine]


@pytest.fixture
def nitro_machine(tmp_path: Path) -> Iterator[MachineMaker]:
    """Makes machines; ends all that runs on them, and returns the huge pages, when the test is over."""
    if os.geteuid() != 0:
        missing("root", "the emulated driver looks at page frames, which only root may")
    with ExitStack() as undo:

        def make(
            scenario: Scenario | None = None,
            *,
            huge_pages_wanted: int = 0,
            gigantic_pages_wanted: int = 0,
            **changes: object,
        ) -> NitroMachine:
            free = _take(undo, {HUGE: huge_pages_wanted, GIGANTIC: gigantic_pages_wanted})
            scenario = dataclasses.replace(scenario or Scenario(), **changes)  # type: ignore[arg-type]
            directory = tmp_path / f"machine-{len(list(tmp_path.glob('machine-*')))}"
            directory.mkdir()
            machine = NitroMachine(directory, scenario, free)
            undo.callback(machine.close)
            machine.start_up()
            return machine

        yield make


def _take(undo: ExitStack, wanted: dict[int, int]) -> dict[int, int]:
    """Have so many huge pages of each size until `undo`, or skip the test. Returns how many are free then."""
    if not any(wanted.values()):
        return {}
    undo.enter_context(huge_pages(wanted[HUGE], wanted[GIGANTIC]))
    free = {size: free_huge_pages(size) for size, count in wanted.items() if count}
    for size, found in free.items():
        if found < wanted[size]:
            missing("hugepages", f"{found} huge pages of {size >> 20} MiB are free, the test needs {wanted[size]}")
    return free
