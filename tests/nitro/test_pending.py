"""A device that keeps a call although its process is killed: nothing may claim that the enclave is gone.

On Nitro the driver waits for its device without being interruptible. A thread in a frozen cgroup (version 1) is the
same to everyone else: SIGKILL does not end it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyrune import lifecycle
from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import Nitro

FREEZER = Path("/sys/fs/cgroup/freezer")
# What containerd gives a clean-up.
CLEAN_UP_LIMIT_S = 5.0


@contextmanager
def _frozen(tid: int) -> Iterator[None]:
    """Freeze one thread."""
    group = FREEZER / f"pyrune-test-{os.getpid()}"
    with ExitStack() as undo:
        group.mkdir()
        undo.callback(group.rmdir)
        (group / "tasks").write_text(str(tid))
        undo.callback(
            lambda: [(FREEZER / "tasks").write_text(thread) for thread in (group / "tasks").read_text().split()]
        )
        undo.callback((group / "freezer.state").write_text, "THAWED")
        (group / "freezer.state").write_text("FROZEN")
        yield


@pytest.mark.skipif(not (FREEZER / "tasks").exists(), reason="freezer: this machine has no freezer of cgroup version 1")
def test_delete_force_says_what_is_pending_until_the_device_lets_go(nitro: NitroMaker, image: Path) -> None:
    assert lifecycle._KILL_PATIENCE_S < CLEAN_UP_LIMIT_S
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.machine.control("fault", fault={"call": "NE_START_ENCLAVE", "hold": True, "at": "device"})
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    tid = pyrune.machine.wait_for_held("NE_START_ENCLAVE")
    with _frozen(tid):
        for _ in range(2):
            message = pyrune.refused("delete", "--force", "one")
            assert "is killed but has not ended: a call into the kernel is pending" in message
            assert pyrune.status("one") == "created"
            assert len(pyrune.machine.enclaves) == 1
    pyrune.ok("delete", "--force", "one")
    assert pyrune.machine.finish(start).returncode == 1
    assert pyrune.machine.leaks() == []
