"""`run`: the exit status is the container's, signals are its signals, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Pyrune, wait_until
from tests.support.images import Images

pytestmark = pytest.mark.timeout(120)


class Foreground:
    """`pyrune run` of a container `one`, at work."""

    def __init__(self, pyrune: Pyrune, bundle: Path, *options: str) -> None:
        self._pyrune = pyrune
        self.process = subprocess.Popen(
            pyrune.argv("run", *options, "--bundle", str(bundle), "one"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=pyrune.environment,
            text=True,
        )

    def await_status(self, status: str) -> None:
        wait_until(lambda: self._status() == status, f"the container is not {status}")

    def _status(self) -> str:
        done = self._pyrune("state", "one")
        return "" if done.returncode else str(json.loads(done.stdout)["status"])

    def end(self) -> tuple[int, str, str]:
        """Wait for its end: exit status and both outputs, which are closed then."""
        stdout, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stdout, stderr


@pytest.fixture
def foreground(pyrune: Pyrune, sleeper: Path) -> Iterator[Foreground]:
    running = Foreground(pyrune, sleeper)
    yield running
    # The container keeps the outputs open; whoever runs it would wait for its end.
    pyrune("delete", "--force", "one")
    running.process.kill()
    running.end()


def _nothing_is_left(pyrune: Pyrune) -> bool:
    return list(pyrune.root.iterdir()) == [] and pyrune.processes() == []


def test_a_container_that_ends_by_itself(pyrune: Pyrune, images: Images, tmp_path: Path) -> None:
    bundle = pyrune.bundle(images.application("print", "2"))
    done = pyrune("run", "--pid-file", str(tmp_path / "pid"), "--bundle", str(bundle), "one")
    assert (done.returncode, done.stdout.split("\n"), done.stderr) == (0, ["line 1", "line 2", ""], "")
    assert (tmp_path / "pid").read_text().isdigit()
    assert _nothing_is_left(pyrune)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_is_passed_on(pyrune: Pyrune, foreground: Foreground, name: str, status: int) -> None:
    foreground.await_status("running")
    foreground.process.send_signal(signal.Signals[name])
    assert foreground.end() == (status, "ready\n", "")
    assert _nothing_is_left(pyrune)


def test_signals_that_end_no_enclave_end_no_run(pyrune: Pyrune, foreground: Foreground) -> None:
    foreground.await_status("running")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH, signal.SIGALRM):
        foreground.process.send_signal(number)
    wait_until(lambda: "signal 14 is not delivered" in pyrune.file("one", "monitor.log"), "the signals do not arrive")
    assert pyrune.status("one") == "running"


def test_a_container_deleted_from_elsewhere_is_137(pyrune: Pyrune, foreground: Foreground) -> None:
    foreground.await_status("running")
    pyrune.ok("delete", "--force", "one")
    assert foreground.end() == (137, "ready\n", "")
    assert _nothing_is_left(pyrune)


@pytest.mark.parametrize("wait_ms", [60, 120, 180, 240, 300, 400, 500, 700])
def test_a_signal_at_any_moment_ends_it_and_leaves_nothing(
    pyrune: Pyrune, foreground: Foreground, wait_ms: int
) -> None:
    time.sleep(wait_ms / 1000)
    foreground.process.send_signal(signal.SIGTERM)
    status, _, stderr = foreground.end()
    # Before the interpreter has come to anything, the signal ends it as it ends any program.
    assert (status in (143, -signal.SIGTERM), stderr) == (True, "")
    assert not pyrune.root.exists() or _nothing_is_left(pyrune)


def test_keep_keeps_the_container(pyrune: Pyrune, images: Images) -> None:
    done = pyrune("run", "--keep", "--bundle", str(pyrune.bundle(images.application("print", "1"))), "one")
    assert (done.returncode, done.stdout) == (0, "line 1\n")
    assert pyrune.status("one") == "stopped"
    pyrune.ok("delete", "one")


def test_detach_returns_with_the_container_running(pyrune: Pyrune, sleeper: Path, tmp_path: Path) -> None:
    pyrune.ok("run", "-d", "--pid-file", str(tmp_path / "pid"), "--bundle", str(sleeper), "one")
    state = json.loads(pyrune.ok("state", "one"))
    assert (state["status"], str(state["pid"])) == ("running", (tmp_path / "pid").read_text())


def test_an_end_before_the_boot_is_an_error_and_leaves_nothing(pyrune: Pyrune, images: Images) -> None:
    bundle = pyrune.bundle(images.bare("poweroff"))
    for options in ((), ("--detach",)):
        done = pyrune("run", *options, "--bundle", str(bundle), "one")
        assert done.returncode == 1
        assert "before it had booted" in done.stderr
        assert _nothing_is_left(pyrune)


# Adopts orphans, as containerd's shim and conmon do; has argv[2:] create and start a container whose output is a pipe,
# with descriptors 3 to 5 in use; prints as JSON what it sees of the container until it has ended by signal argv[1].
SHIM = """
import ctypes, json, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
read_end, write_end = os.pipe()
for number in (3, 4, 5):
    os.dup2(read_end, number + 40)
    os.set_inheritable(number + 40, True)
number, pid_file, *prefix, bundle = sys.argv[1:]
def call(*words):
    subprocess.run([*prefix, *words], stdin=subprocess.DEVNULL, stdout=write_end, check=True, close_fds=False)
call("create", "--pid-file", pid_file, "--bundle", bundle, "one")
pid = int(open(pid_file).read())
os.close(write_end)
seen = {"pid": pid, "parent": int(open(f"/proc/{pid}/stat").read().rsplit(")")[1].split()[1]) == os.getpid()}
pipe = os.readlink(f"/proc/self/fd/{read_end}")
seen["ours"] = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")].count(pipe)
seen["session"] = os.getsid(pid) == pid
subprocess.run([*prefix, "start", "one"], check=True)
subprocess.run([*prefix, "kill", "one", number], check=True)
seen["output"] = b"".join(iter(lambda: os.read(read_end, 4096), b"")).decode()
seen["status"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps(seen))
"""


@pytest.mark.parametrize(("number", "status"), [("TERM", 143), ("KILL", -9)])
def test_the_monitor_is_a_shims_child_and_its_end_is_the_containers(
    pyrune: Pyrune, sleeper: Path, tmp_path: Path, number: str, status: int
) -> None:
    done = subprocess.run(
        ["python3", "-c", SHIM, number, str(tmp_path / "pid"), *pyrune.argv(), str(sleeper)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=pyrune.environment,
    )
    seen = json.loads(done.stdout)
    assert (seen["parent"], seen["session"], seen["status"]) == (True, True, status)
    # The end of the output is seen at once: no process is left that holds the pipe.
    assert seen["output"] == "ready\n"
    assert seen["ours"] == 1
    pyrune.ok("delete", "one")


def test_the_monitor_holds_neither_the_callers_process_group_nor_its_directory(pyrune: Pyrune, sleeper: Path) -> None:
    pyrune.ok("create", "--bundle", str(sleeper), "one")
    [monitor] = [pid for name, pid in pyrune.pids("one").items() if name == "monitor"]
    assert os.getpgid(monitor) == monitor
    assert os.readlink(f"/proc/{monitor}/cwd") == "/"


def test_what_engines_give_besides_is_accepted(pyrune: Pyrune, sleeper: Path, tmp_path: Path) -> None:
    """And --pidfd-socket, runc 1.2's, gets one descriptor of the monitor's process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "pidfd"))
        listener.listen()
        options = ["--no-pivot", "--no-new-keyring", "--preserve-fds", "2", "--pidfd-socket", str(tmp_path / "pidfd")]
        pyrune.ok("--systemd-cgroup", "--rootless=auto", "create", *options, "--bundle", str(sleeper), "one")
        listener.settimeout(10)
        connection, _ = listener.accept()
        with connection:
            name, fds, _, _ = socket.recv_fds(connection, 100, 4)
    [pidfd] = fds
    described = Path(f"/proc/self/fdinfo/{pidfd}").read_text().split()
    os.close(pidfd)
    assert name
    assert described[described.index("Pid:") + 1] == str(json.loads(pyrune.ok("state", "one"))["pid"])
