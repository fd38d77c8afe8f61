"""pytest fixtures; a conftest imports those that it wants."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.emulated_driver.machine import NitroMachine, free_huge_pages, huge_pages
from tests.emulated_driver.scenario import Scenario
from tests.needs import missing

# make(scenario, huge_pages=N): a machine that has at least so many free huge pages of 2 MiB.
MachineMaker: TypeAlias = Callable[..., NitroMachine]


@pytest.fixture
def nitro_machine(tmp_path: Path) -> Iterator[MachineMaker]:
    """Makes machines; ends all that runs on them, and returns the huge pages, when the test is over."""
    if os.geteuid() != 0:
        missing("root", "the emulated driver looks at page frames, which only root may")
    with ExitStack() as undo:

        def make(scenario: Scenario | None = None, *, huge_pages_wanted: int = 0, **changes: object) -> NitroMachine:
            if huge_pages_wanted:
                found = undo.enter_context(huge_pages(huge_pages_wanted))
                if found < huge_pages_wanted:
                    missing("hugepages", f"there are {found} free huge pages, the test needs {huge_pages_wanted}")
            scenario = dataclasses.replace(scenario or Scenario(), **changes)  # type: ignore[arg-type]
            directory = tmp_path / f"machine-{len(list(tmp_path.glob('machine-*')))}"
            directory.mkdir()
            machine = NitroMachine(directory, scenario, free_huge_pages() if huge_pages_wanted else None)
            undo.callback(machine.close)
            machine.start_up()
            return machine

        yield make
