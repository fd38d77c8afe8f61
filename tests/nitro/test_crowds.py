"""Many enclaves at once: one port for all their heartbeats, and never enough memory and cores."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.emulated_driver.scenario import Behaviour
from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import Nitro
from tests.support.command import wait_until

EIGHT = [f"c{number}" for number in range(8)]
# Cores enough for eight enclaves of two vCPUs each, and one to spare.
MANY_CPUS = {"cpus": 24, "pool": "1-9,13-21", "slots": 9}


def _monitor_of(pyrune: Nitro, container_id: str) -> int:
    return int(json.loads(pyrune.file(container_id, "enclave.json"))["monitor"]["pid"])


def _created(nitro: NitroMaker, image: Path, **scenario: object) -> Nitro:
    pyrune = nitro(pages=8 * 32 + 2, **MANY_CPUS, **scenario)
    bundle = pyrune.nitro_bundle(image)
    for name in EIGHT:
        pyrune.create(name, bundle)
    return pyrune


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_eight_enclaves_start_at_once(nitro: NitroMaker, image: Path) -> None:
    pyrune = _created(nitro, image, enclaves=(Behaviour(heartbeat_delay_s=0.3),))
    starts = [pyrune.machine.start(super(Nitro, pyrune).argv("start", name)) for name in EIGHT]
    for start in starts:
        done = pyrune.machine.finish(start)
        assert (done.returncode, done.stderr) == (0, "")
    assert [pyrune.status(name) for name in EIGHT] == ["running"] * 8
    assert all(event["answered"] for event in pyrune.machine.events("heartbeat"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_seven_of_eight_boot_when_the_monitor_that_holds_the_port_is_killed(nitro: NitroMaker, image: Path) -> None:
    pyrune = _created(nitro, image, enclaves=(Behaviour(heartbeat_delay_s=2.0),))
    starts = {name: pyrune.machine.start(super(Nitro, pyrune).argv("start", name)) for name in EIGHT}
    # All have started, so all have the port, and no enclave has said anything yet: the first in the log bound it.
    pyrune.machine.wait_for_event("image", 8)
    [holder] = [entry["pid"] for entry in pyrune.machine.log if entry.get("call") == "bind" and entry["result"] == 0]
    [victim] = [name for name in EIGHT if _monitor_of(pyrune, name) == holder]
    assert isinstance(holder, int)
    os.kill(holder, signal.SIGKILL)
    for name, start in starts.items():
        assert pyrune.machine.finish(start).returncode == (name == victim)
    assert sorted(pyrune.status(name) for name in EIGHT) == ["running"] * 7 + ["stopped"]
    answered = [event for event in pyrune.machine.events("heartbeat") if event["answered"]]
    assert len(answered) == 7


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_eight_creates_race_for_pages_and_cores_and_each_gets_all_or_one_error(nitro: NitroMaker, image: Path) -> None:
    # Pages for five, cores for six.
    pyrune = nitro(pages=5 * 32 + 7, cpus=14, pool="1-6,8-13", slots=8)
    bundle = pyrune.nitro_bundle(image)
    creates = {
        name: pyrune.machine.start(super(Nitro, pyrune).argv("create", "--bundle", str(bundle), name)) for name in EIGHT
    }
    made = []
    for name, create in creates.items():
        done = pyrune.machine.finish(create)
        if done.returncode == 0:
            made.append(name)
        else:
            assert done.stderr.count("level=error") == 1
            assert "needs 64 MiB in huge pages" in done.stderr or "only" in done.stderr
            assert not (pyrune.root / name).exists()
    assert 1 <= len(made) <= 5
    enclaves = pyrune.machine.enclaves
    assert sorted((enclave.memory_bytes, len(enclave.vcpus)) for enclave in enclaves) == [(64 << 20, 2)] * len(made)
    # What the losers had is free again.
    for number in range(5 - len(made)):
        pyrune.create(f"late{number}", bundle)


def test_the_port_of_another_program_is_waited_for(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    script = (
        "import socket, sys, time; s = socket.socket(socket.AF_VSOCK); s.bind((-1 & 0xffffffff, 9000)); s.listen();"
        "print(flush=True); time.sleep(60)"
    )
    other = pyrune.machine.start(["/usr/bin/python3", "-c", script])
    wait_until(lambda: "listen" in pyrune.machine.calls(), "the other program does not listen")
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    wait_until(lambda: pyrune.machine.calls().count("bind") > 3, "the monitor does not try again")
    assert pyrune.status("one") == "created"
    other.kill()
    assert pyrune.machine.finish(start).returncode == 0
    assert pyrune.status("one") == "running"
