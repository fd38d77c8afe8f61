from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.machine import CHECKOUT
from tests.emulated_driver_tests.conftest import Client, client_argv
from tests.emulated_driver_tests.programs import creating, files
from tests.needs import missing


def test_status_and_outputs_are_the_commands(nitro_machine: MachineMaker) -> None:
    done = nitro_machine().run(client_argv(files.status_and_streams, 42))
    assert (done.returncode, done.stdout, done.stderr) == (42, "out", "err")


def test_a_command_that_is_not_there_is_127(nitro_machine: MachineMaker) -> None:
    done = nitro_machine().run(["/nonexistent"])
    assert done.returncode == 127
    assert "does not start" in done.stderr


def test_children_are_on_the_machine_too(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), files.open_in_grandchild) == "1-2,5-6\n"


def test_the_environment_is_the_callers(nitro_machine: MachineMaker) -> None:
    done = nitro_machine().run(["/usr/bin/env"], environment={"ONLY": "this"})
    assert done.stdout == "ONLY=this\n"


def test_several_commands_meet_the_same_driver(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    for _ in range(2):
        client(machine, creating.create_many, 1)
    assert [entry["enclave"] for entry in machine.log if entry.get("call") == "NE_CREATE_VM"] == [1, 2]


def test_one_command_alone_is_its_own_process_and_the_driver_goes_when_all_is_over(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("root", "the emulated driver looks at page frames, which only root may")
    log, control = tmp_path / "log", tmp_path / "control"
    argv = [sys.executable, "-m", "tests.emulated_driver", "--log", str(log), "--control", str(control), "--"]
    argv += client_argv(files.leave_behind, 0.3)
    with (tmp_path / "out").open("wb") as out:
        assert subprocess.run(argv, stdout=out, cwd=CHECKOUT, check=False).returncode == 0
    # What the command left behind opens the device when the command has long ended.
    assert control.exists()
    deadline = time.monotonic() + 20
    while control.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry.get("call") for entry in entries] == ["open"]
