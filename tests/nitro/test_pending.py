"""A device that keeps a call although its process is killed: nothing may claim that the enclave is gone.

The driver waits for its device without being interruptible, for up to two minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrune import lifecycle
from tests.emulated_driver.freezer import freezer
from tests.needs import missing
from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import Nitro
from tests.support.command import wait_until

# What containerd gives a clean-up.
CLEAN_UP_LIMIT_S = 5.0


@pytest.fixture(autouse=True)
def _uninterruptible_calls() -> None:
    if freezer() is None:
        missing("freezer", "there is no freezer of cgroup version 1")


def _keep(pyrune: Nitro, call: str) -> None:
    fault = {"call": call, "nth": 1, "hold": True, "at": "device", "uninterruptible": True}
    pyrune.machine.control("fault", fault=fault)


def _refuses_to_delete(pyrune: Nitro, status: str) -> None:
    """Again and again: the state stays what it is, and so does what the driver holds."""
    assert lifecycle._KILL_PATIENCE_S < CLEAN_UP_LIMIT_S
    for _ in range(2):
        message = pyrune.refused("delete", "--force", "one")
        assert "is killed but has not ended: a call into the kernel is pending" in message
        assert pyrune.status("one") == status
        assert pyrune.machine.leaks() != []


def test_delete_force_says_what_is_pending_until_the_device_has_started_it(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    _keep(pyrune, "NE_START_ENCLAVE")
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    pyrune.machine.wait_for_held("NE_START_ENCLAVE")
    _refuses_to_delete(pyrune, "created")
    pyrune.machine.control("release")
    pyrune.ok("delete", "--force", "one")
    assert pyrune.machine.finish(start).returncode == 1
    assert pyrune.machine.leaks() == []


def test_delete_force_says_what_is_pending_until_the_device_has_created_it(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    _keep(pyrune, "NE_ADD_VCPU")
    create = pyrune.machine.start(
        super(Nitro, pyrune).argv("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    )
    pyrune.machine.wait_for_held("NE_ADD_VCPU")
    _refuses_to_delete(pyrune, "creating")
    pyrune.machine.control("release")
    # The create that waited for the monitor cleans up after it.
    assert pyrune.machine.finish(create).returncode == 1
    pyrune.ok("delete", "--force", "one")
    wait_until(lambda: not pyrune.machine.leaks(), "something stays taken", timeout_s=10)
    assert not (pyrune.root / "one").exists()
