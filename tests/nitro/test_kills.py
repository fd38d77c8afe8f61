"""SIGKILL of the command line and of the monitor between every two calls to the driver: nothing may stay taken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import Nitro
from tests.support.command import wait_until

# A call that is held at this point is not carried out yet, or carried out and not answered.
POINTS = ["call", "return"]
AT_CREATE = [
    ("open", 1),
    ("NE_CREATE_VM", 1),
    ("NE_GET_IMAGE_LOAD_INFO", 1),
    ("NE_SET_USER_MEMORY_REGION", 1),
    ("NE_ADD_VCPU", 1),
    ("NE_ADD_VCPU", 2),
    ("socket", 1),
]
AT_START = [("bind", 1), ("listen", 1), ("NE_START_ENCLAVE", 1), ("accept", 1)]


def _hold(pyrune: Nitro, call: str, nth: int, at: str) -> None:
    pyrune.machine.control("fault", fault={"call": call, "nth": nth, "hold": True, "at": at})


def _monitor_of(pyrune: Nitro, container_id: str) -> int:
    """From the record: `ps` and `state` would be calls of their own."""
    return int(json.loads(pyrune.file(container_id, "enclave.json"))["monitor"]["pid"])


def _clean_up_and_try_again(pyrune: Nitro, call: subprocess.Popen[bytes], bundle: Path) -> None:
    """delete --force cleans, nothing is left, and the same id works again."""
    pyrune.machine.control("mend")
    pyrune.machine.finish(call)
    pyrune.ok("delete", "--force", "one", timeout_s=30)
    wait_until(lambda: not pyrune.machine.leaks(), "something stays taken", timeout_s=10)
    assert pyrune.processes() == []
    pyrune.create("one", bundle)
    pyrune.ok("start", "one")
    pyrune.ok("delete", "--force", "one")


@pytest.mark.slow
@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize(("call", "nth"), AT_CREATE)
def test_the_monitor_is_killed_during_create(nitro: NitroMaker, image: Path, call: str, nth: int, at: str) -> None:
    pyrune = nitro()
    bundle = pyrune.nitro_bundle(image)
    _hold(pyrune, call, nth, at)
    create = pyrune.machine.start(super(Nitro, pyrune).argv("create", "--bundle", str(bundle), "one"))
    pyrune.machine.wait_for_held(call)
    os.kill(_monitor_of(pyrune, "one"), signal.SIGKILL)
    done = pyrune.machine.finish(create)
    assert done.returncode == 1
    assert "monitor ended before it was ready" in done.stderr
    assert not (pyrune.root / "one").exists()
    _clean_up_and_try_again(pyrune, create, bundle)


@pytest.mark.slow
@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize(("call", "nth"), AT_CREATE)
def test_the_command_line_is_killed_during_create(nitro: NitroMaker, image: Path, call: str, nth: int, at: str) -> None:
    pyrune = nitro()
    bundle = pyrune.nitro_bundle(image)
    _hold(pyrune, call, nth, at)
    create = pyrune.machine.start(super(Nitro, pyrune).argv("create", "--bundle", str(bundle), "one"))
    pyrune.machine.wait_for_held(call)
    create.kill()
    create.wait()
    pyrune.machine.control("release")
    # The monitor notices that nobody waits for it, and gives everything back by itself.
    pyrune.wait_for_status("one", "stopped")
    assert pyrune.machine.leaks() == []
    _clean_up_and_try_again(pyrune, create, bundle)


@pytest.mark.slow
@pytest.mark.parametrize("at", POINTS)
@pytest.mark.parametrize(("call", "nth"), AT_START)
def test_the_monitor_is_killed_during_start(nitro: NitroMaker, image: Path, call: str, nth: int, at: str) -> None:
    pyrune = nitro()
    bundle = pyrune.nitro_bundle(image)
    pyrune.create("one", bundle)
    _hold(pyrune, call, nth, at)
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    pyrune.machine.wait_for_held(call)
    os.kill(_monitor_of(pyrune, "one"), signal.SIGKILL)
    assert pyrune.machine.finish(start).returncode == 1
    pyrune.wait_for_status("one", "stopped")
    _clean_up_and_try_again(pyrune, start, bundle)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "nth"), AT_START)
def test_the_command_line_is_killed_during_start(nitro: NitroMaker, image: Path, call: str, nth: int) -> None:
    pyrune = nitro()
    bundle = pyrune.nitro_bundle(image)
    pyrune.create("one", bundle)
    _hold(pyrune, call, nth, "call")
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    pyrune.machine.wait_for_held(call)
    start.kill()
    start.wait()
    pyrune.machine.control("release")
    # The start goes on: it is the monitor's.
    pyrune.wait_for_status("one", "running")
    _clean_up_and_try_again(pyrune, start, bundle)


def test_the_monitor_of_a_running_enclave_is_killed(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("start", "one")
    os.kill(_monitor_of(pyrune, "one"), signal.SIGKILL)
    pyrune.wait_for_status("one", "stopped")
    assert pyrune.machine.leaks() == []
    pyrune.ok("delete", "one")
