"""Many enclaves, and processes killed at any moment: what is true afterwards, and that nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.needs import missing
from tests.support.command import Pyrune, is_alive, wait_until
from tests.support.images import Images

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

KILLS = 50


@pytest.fixture(autouse=True)
def _qemu() -> None:
    for program in ("qemu-system-x86_64", "qemu-system-aarch64"):
        if not shutil.which(program):
            missing("qemu", f"{program} is not installed")


@pytest.fixture
def hello(pyrune: Pyrune, vectors: Path) -> Path:
    """A bundle whose enclave boots in a second, says hello and ends."""
    return pyrune.bundle(vectors / "eif" / "aws-hello-aarch64.eif", memory="256")


def _leaves_nothing(pyrune: Pyrune) -> None:
    assert list(pyrune.root.iterdir()) == []
    wait_until(lambda: pyrune.processes() == [], "a process is left", timeout_s=10)


def test_20_enclaves_one_after_another(pyrune: Pyrune, hello: Path) -> None:
    for number in range(20):
        done = pyrune("run", "--bundle", str(hello), f"hello-{number}")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Hello (from a nitro enclave!)" in done.stdout
    _leaves_nothing(pyrune)


def test_8_enclaves_at_once(pyrune: Pyrune, hello: Path) -> None:
    def run(number: int) -> tuple[int, bytes]:
        done = subprocess.run(
            pyrune.argv("run", "--bundle", str(hello), f"hello-{number}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=pyrune.environment,
            timeout=180,
            check=False,
        )
        return done.returncode, done.stdout

    with ThreadPoolExecutor(8) as pool:
        for status, output in pool.map(run, range(8)):
            assert status == 0, output.decode(errors="replace")[-2000:]
            assert b"Hello (from a nitro enclave!)" in output
    _leaves_nothing(pyrune)


@pytest.mark.parametrize("victim", ["command", "monitor", "vsock", "qemu"])
def test_what_is_killed_at_random_moments_leaves_the_truth(pyrune: Pyrune, images: Images, victim: str) -> None:
    """Each round kills one process at a moment of its own, from before `create` to after `start`."""
    bundle = pyrune.bundle(images.application("sleep"))
    chance = random.Random(victim)
    for number in range(KILLS // 4 + 1):
        _one_killing(pyrune, bundle, f"victim-{number}", victim, chance.uniform(0.0, 3.0))
    pyrune.ok("create", "--bundle", str(bundle), "victim-0")
    pyrune.ok("delete", "victim-0")
    _leaves_nothing(pyrune)


def _one_killing(pyrune: Pyrune, bundle: Path, container_id: str, victim: str, after_s: float) -> None:
    command = subprocess.Popen(
        pyrune.argv("run", "--detach", "--bundle", str(bundle), container_id),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=pyrune.environment,
    )
    time.sleep(after_s)
    killed = _kill(pyrune, container_id, victim, command)
    if victim != "command":
        command.wait(timeout=60)
    if killed and victim != "command":
        # The one that was killed takes the container with it; `run` removes one that it could not start.
        wait_until(lambda: _status(pyrune, container_id) in ("stopped", ""), "the container lives on")
    _tells_the_truth(pyrune, container_id)
    pyrune.ok("delete", "--force", container_id)
    wait_until(lambda: pyrune.processes() == [], f"{container_id}: a process is left", timeout_s=20)
    assert not (pyrune.root / container_id).exists()


def _kill(pyrune: Pyrune, container_id: str, victim: str, command: subprocess.Popen[bytes]) -> bool:
    """Kill the victim, if there is one yet."""
    if victim == "command":
        command.kill()
        command.wait(timeout=10)
        return True
    done = pyrune("ps", "--format", "json", container_id)
    pids = json.loads(done.stdout) or [] if done.returncode == 0 and done.stdout else []
    for pid in pids:
        try:
            comm = Path(f"/proc/{pid}/comm").read_text()
            if comm.startswith({"monitor": "pyrune-monitor", "vsock": "pyrune-vsock", "qemu": "qemu"}[victim]):
                os.kill(pid, signal.SIGKILL)
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
    return False


def _status(pyrune: Pyrune, container_id: str) -> str:
    """The status, or nothing for a container that there is not."""
    done = pyrune("state", container_id)
    return str(json.loads(done.stdout)["status"]) if done.returncode == 0 else ""


def _tells_the_truth(pyrune: Pyrune, container_id: str) -> None:
    """Whatever `state` says, the processes agree."""
    done = pyrune("state", container_id)
    if done.returncode:
        assert "container does not exist" in done.stderr
        return
    state = json.loads(done.stdout)
    if state["status"] in ("created", "running"):
        # A monitor whose caller was killed gives up in its own time, perhaps just now.
        if is_alive(state["pid"]):
            assert Path(f"/proc/{state['pid']}/comm").read_text() == "pyrune-monitor\n"
        else:
            assert _status(pyrune, container_id) == "stopped"
    else:
        assert state["pid"] == 0
