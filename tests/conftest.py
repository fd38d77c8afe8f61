"""Fixtures that every test may use.

PYRUNE_TEST_VECTORS names a directory of vectors that are not part of this repository (real enclave images,
attestation documents and container configurations).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.needs import missing
from tests.support.command import Pyrune
from tests.support.images import Images
from tests.table import Table

# A checkout may be read-only, and a slow machine proves nothing.
hypothesis.settings.register_profile("pyrune", database=None, deadline=None)
hypothesis.settings.load_profile("pyrune")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of outside vectors: eif/, attestation/ and oci-configs/ below it."""
    place = os.environ.get("PYRUNE_TEST_VECTORS")
    if not place:
        missing("vectors", "PYRUNE_TEST_VECTORS names no directory")
    path = Path(place)
    if not (path / "eif").is_dir():
        missing("vectors", f"{path} holds no eif directory")
    return path


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """The last thing on the screen is one table: what ran, what was skipped, and why."""
    yield
    if terminalreporter.config.get_verbosity() >= 0:
        table = Table(os.environ.get("PYRUNE_TEST_CHECKS", ""))
        for outcome, reports in terminalreporter.stats.items():
            for report in reports:
                if isinstance(report, pytest.TestReport | pytest.CollectReport):
                    table.add(outcome, report)
        terminalreporter.section("what ran, what was skipped, and why")
        for line in table.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Builds enclave images of the tests' own."""
    return Images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def pyrune(tmp_path: Path) -> Iterator[Pyrune]:
    """The installed command with a root of its own; what it started is ended when the test is."""
    command = Pyrune(tmp_path)
    yield command
    command.clean_up()
