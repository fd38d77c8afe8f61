"""Whole lives of enclaves in real virtual machines: how they begin, end, fail, and what they leave behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing
from tests.support.command import Pyrune, is_alive, wait_until
from tests.support.images import Images

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(autouse=True)
def _qemu() -> None:
    for program in ("qemu-system-x86_64", "qemu-system-aarch64"):
        if not shutil.which(program):
            missing("qemu", f"{program} is not installed")


@pytest.fixture
def aws_hello(vectors: Path) -> Path:
    return vectors / "eif" / "aws-hello-aarch64.eif"


def test_an_image_of_aws_runs_to_its_end(pyrune: Pyrune, aws_hello: Path) -> None:
    done = pyrune("run", "--bundle", str(pyrune.bundle(aws_hello, memory="512")), "hello-nitro-enclave-container")
    assert done.returncode == 0
    assert "Hello (from a nitro enclave!)" in done.stdout.splitlines()
    assert done.stderr == ""
    assert list(pyrune.root.iterdir()) == []


def test_an_image_of_our_own_prints_and_ends_with_0(pyrune: Pyrune, images: Images) -> None:
    done = pyrune("run", "--bundle", str(pyrune.bundle(images.application("print", "3"))), "prints")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["line 1", "line 2", "line 3"]


def test_every_line_arrives_in_order(pyrune: Pyrune, images: Images) -> None:
    done = pyrune("run", "--bundle", str(pyrune.bundle(images.application("print", "20000"))), "prints-much")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"line {number}" for number in range(1, 20001)]


@pytest.fixture
def sleeper(pyrune: Pyrune, images: Images) -> str:
    """A running container that would never end."""
    pyrune.ok("run", "--detach", "--bundle", str(pyrune.bundle(images.application("sleep"))), "sleeper")
    return "sleeper"


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130), ("QUIT", 131)])
def test_a_signal_ends_an_enclave_that_takes_none(pyrune: Pyrune, sleeper: str, name: str, status: int) -> None:
    pyrune.ok("kill", sleeper, name)
    wait_until(lambda: pyrune.status(sleeper) == "stopped", "the container does not stop")
    assert f"ended with status {status}" in pyrune.file(sleeper, "monitor.log")
    pyrune.ok("delete", sleeper)
    assert list(pyrune.root.iterdir()) == []


def test_signals_that_end_nothing_are_let_pass(pyrune: Pyrune, sleeper: str) -> None:
    for name in ("HUP", "USR1", "WINCH", "CONT"):
        pyrune.ok("kill", sleeper, name)
    assert pyrune.status(sleeper) == "running"
    assert "signal 10 is not delivered" in pyrune.file(sleeper, "monitor.log")


@pytest.mark.parametrize("victim", ["monitor", "vsock", "qemu"])
def test_the_death_of_any_process_ends_the_container(pyrune: Pyrune, sleeper: str, victim: str) -> None:
    pids = pyrune.pids(sleeper)
    os.kill(pids[victim], signal.SIGKILL)
    wait_until(lambda: pyrune.status(sleeper) == "stopped", "the container does not stop")
    wait_until(lambda: not any(is_alive(pid) for pid in pids.values()), "a process is left")
    if victim != "monitor":
        log = pyrune.file(sleeper, "monitor.log")
        assert "ended with status 255: " in log
        assert {"vsock": "the vsock device", "qemu": "qemu was ended by SIGKILL"}[victim] in log
    pyrune.ok("delete", sleeper)


def test_a_kernel_panic_is_255_with_the_panic_as_its_reason(pyrune: Pyrune, images: Images) -> None:
    image = images.application("panic", cmdline="console=ttyS0 quiet loglevel=1 panic=0 reboot=k")
    done = pyrune("run", "--keep", "--bundle", str(pyrune.bundle(image)), "panics")
    assert done.returncode == 255
    assert "ended with status 255: Kernel panic - not syncing: sysrq triggered crash" in pyrune.file(
        "panics", "monitor.log"
    )
    assert pyrune.status("panics") == "stopped"


def test_a_boot_that_never_ends_fails_start_with_the_console(pyrune: Pyrune, images: Images) -> None:
    bundle = pyrune.bundle(images.bare("sleep"), enclave_boot_timeout="12")
    pyrune.ok("create", "--bundle", str(bundle), "never")
    done = pyrune("start", "never")
    assert done.returncode == 1
    assert "the enclave has not booted within 12 s; its console ended with: ready" in done.stderr
    assert pyrune.status("never") == "stopped"
    assert pyrune.processes() == []
    assert sorted(path.name for path in (pyrune.root / "never").iterdir()) == [
        "console.log",
        "enclave.json",
        "monitor.log",
    ]


def test_an_end_before_the_heartbeat_fails_start(pyrune: Pyrune, images: Images) -> None:
    done = pyrune("run", "--bundle", str(pyrune.bundle(images.bare("poweroff"))), "early")
    assert done.returncode == 1
    assert "the enclave powered off before it had booted" in done.stderr
    assert list(pyrune.root.iterdir()) == []


def test_a_silent_boot_is_tried_once_more(pyrune: Pyrune, images: Images) -> None:
    image = images.bare("sleep", cmdline="console=ttyS1 quiet panic=-1 reboot=k")
    pyrune.ok("create", "--bundle", str(pyrune.bundle(image, enclave_boot_timeout="28")), "silent")
    done = pyrune("start", "silent")
    assert done.returncode == 1
    assert "has not booted within 28 s" in done.stderr
    log = pyrune.file("silent", "monitor.log")
    assert "the enclave said nothing for 20 s: ended, and tried once more" in log
    assert "boots under tcg (try 2)" in log or "boots under kvm (try 2)" in log


def test_a_guest_that_halts_can_be_killed(pyrune: Pyrune, images: Images) -> None:
    pyrune.ok("run", "--detach", "--bundle", str(pyrune.bundle(images.application("halt"))), "halts")
    wait_until(lambda: "halting" in pyrune.file("halts", "console.log"), "the guest does not halt")
    pyrune.ok("kill", "halts", "KILL")
    wait_until(lambda: pyrune.status("halts") == "stopped", "the container does not stop")
    pyrune.ok("delete", "halts")


def test_a_created_container_has_run_nothing(pyrune: Pyrune, images: Images) -> None:
    pyrune.ok("create", "--bundle", str(pyrune.bundle(images.application("sleep"))), "waits")
    pids = pyrune.pids("waits")
    assert sorted(pids) == ["monitor", "qemu", "vsock"]
    assert pyrune.file("waits", "console.log") == ""
    pyrune.ok("delete", "waits")
    assert not any(is_alive(pid) for pid in pids.values())


@pytest.fixture
def running(pyrune: Pyrune, images: Images) -> Iterator[subprocess.Popen[bytes]]:
    """`pyrune run` of an enclave that prints without end, in the foreground, its output a pipe."""
    bundle = pyrune.bundle(images.application("spam"))
    process = subprocess.Popen(
        pyrune.argv("run", "--bundle", str(bundle), "spams"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=pyrune.environment,
    )
    yield process
    process.kill()
    process.communicate(timeout=60)


def _resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4 // 1024


def test_a_reader_that_never_reads_holds_the_guest_back(pyrune: Pyrune, running: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: (pyrune.root / "spams" / "console.log").exists(), "the container is not made")
    wait_until(lambda: pyrune.status("spams") == "running", "the enclave does not boot")

    def size() -> int:
        return sum(path.stat().st_size for path in (pyrune.root / "spams").glob("console.log*"))

    def stands_still() -> bool:
        before = size()
        threading.Event().wait(1.0)
        return before > 65536 and size() == before

    wait_until(stands_still, "the enclave goes on printing although nobody reads")
    assert all(_resident_mib(pid) < 60 for name, pid in pyrune.pids("spams").items() if name != "qemu")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 143


def test_a_closed_standard_output_ends_nothing(pyrune: Pyrune, running: subprocess.Popen[bytes]) -> None:
    assert running.stdout is not None
    running.stdout.read(1000)
    running.stdout.close()
    wait_until(lambda: len(list((pyrune.root / "spams").glob("console.log*"))) == 2, "the enclave stands still")
    assert pyrune.status("spams") == "running"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=60) == 130
    assert list(pyrune.root.iterdir()) == []
