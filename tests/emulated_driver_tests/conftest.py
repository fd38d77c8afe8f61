"""The machine, and a way to run one function of `programs` on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.emulated_driver.fixtures import nitro_machine
from tests.emulated_driver.machine import CHECKOUT, NitroMachine

PROGRAMS = "tests.emulated_driver_tests.programs"
__all__ = ["client", "nitro_machine"]

# Isolated and without site, for a fast start: so the checkout is put on the path by hand.
_CODE = f"import runpy, sys; sys.path.insert(0, {str(CHECKOUT)!r}); runpy.run_module({PROGRAMS!r}, run_name='__main__')"
_RUN = (sys.executable, "-I", "-S", "-c", _CODE)

Client = Callable[..., object]


def client_argv(program: Callable[..., object], *arguments: object) -> list[str]:
    """The command that calls `program`, a function of one of `programs`, and prints what it returns."""
    return [*_RUN, program.__module__, program.__name__, json.dumps(arguments)]


@pytest.fixture
def client() -> Client:
    """Runs a program to its end; what it returned."""

    def run(machine: NitroMachine, program: Callable[..., object], *arguments: object) -> object:
        done = machine.run(client_argv(program, *arguments))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
