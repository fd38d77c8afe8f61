"""The installed command line on a machine with the emulated driver: real system calls, real huge pages, no hardware."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.emulated_driver.fixtures import MachineMaker, nitro_machine
from tests.nitro.nitro import Nitro
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, Layout

__all__ = ["nitro_machine"]

# nitro(pages=32, slots=8, ...): a machine with so many free huge pages of 2 MiB, and a command line on it.
NitroMaker: TypeAlias = Callable[..., Nitro]


@pytest.fixture
def nitro(nitro_machine: MachineMaker, tmp_path: Path) -> Iterator[NitroMaker]:
    """Makes them; at the end of the test nothing may be left of any container, on the machine or in the driver."""
    made: list[Nitro] = []

    def make(*, pages: int = 34, **scenario: object) -> Nitro:
        machine = nitro_machine(huge_pages_wanted=pages, **scenario)
        directory = tmp_path / f"pyrune-{len(made)}"
        directory.mkdir()
        made.append(Nitro(directory, machine))
        return made[-1]

    yield make
    for one in made:
        one.clean_up()
        one.require_nothing_left()


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 5 MiB of noise for this machine's architecture: it cannot boot, and need not."""
    path = tmp_path_factory.mktemp("images") / "small.eif"
    sections = [
        (KERNEL, os.urandom(1 << 20)),
        (CMDLINE, b"console=ttyS0 panic=1"),
        (METADATA, b"{}"),
        (RAMDISK, os.urandom(1 << 20)),
        (RAMDISK, os.urandom(3 << 20)),
    ]
    path.write_bytes(Layout(sections, flags=int(os.uname().machine == "aarch64")).build())
    return path
