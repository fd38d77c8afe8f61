"""The machine, and a way to run one function of `programs` on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.emulated_driver.fixtures import nitro_machine
from tests.emulated_driver.machine import CHECKOUT, NitroMachine

__all__ = ["client", "nitro_machine"]

Client = Callable[..., object]


def client_argv(program: Callable[..., object], *arguments: object) -> list[str]:
    """The command that calls `program`, a function of `programs`, and prints what it returns."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.emulated_driver_tests import programs; programs.main()"
    )
    return [sys.executable, "-I", "-S", "-c", code, str(CHECKOUT), program.__name__, json.dumps(arguments)]


@pytest.fixture
def client() -> Client:
    """Runs a program to its end; what it returned."""

    def run(machine: NitroMachine, program: Callable[..., object], *arguments: object) -> object:
        done = machine.run(client_argv(program, *arguments))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
