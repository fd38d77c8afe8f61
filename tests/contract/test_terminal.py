"""Containers with a terminal: on the caller's own in the foreground, over --console-socket otherwise."""

from __future__ import annotations

import array
import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.oracle import Program
from tests.support.command import Pyrune, wait_until
from tests.support.images import Images

pytestmark = pytest.mark.timeout(120)


def _with_terminal(bundle: Path) -> Path:
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["terminal"] = True
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def _read_until(fd: int, text: bytes, timeout_s: float = 60.0) -> bytes:
    """What comes from `fd` until it ends with, or holds, `text`."""
    seen, deadline = b"", time.monotonic() + timeout_s
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"only this has come: {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def _read_to_the_end(fd: int) -> bytes:
    seen = b""
    with contextlib.suppress(OSError):
        while data := os.read(fd, 4096):
            seen += data
    return seen


class Session:
    """A user's terminal, in which `pyrune run` is at work."""

    def __init__(self, pyrune: Pyrune, bundle: Path, *options: str) -> None:
        self.master, self.slave = pty.openpty()
        self.modes_before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            pyrune.argv("run", *options, "--bundle", str(bundle), "one"),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=pyrune.environment,
            start_new_session=True,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextlib.contextmanager
def session(pyrune: Pyrune, bundle: Path, *options: str) -> Iterator[Session]:
    opened = Session(pyrune, _with_terminal(bundle), *options)
    try:
        yield opened
    finally:
        opened.close()


def test_what_the_enclave_prints_comes_as_lines_of_a_terminal(pyrune: Pyrune, images: Images) -> None:
    with session(pyrune, pyrune.bundle(images.application("print", "2"))) as user:
        assert _read_until(user.master, b"line 2\r\n") == b"line 1\r\nline 2\r\n"
        assert user.process.wait(timeout=60) == 0
        assert termios.tcgetattr(user.slave) == user.modes_before
    assert list(pyrune.root.iterdir()) == []


def test_the_key_for_interrupt_ends_the_enclave_and_the_terminal_is_as_before(pyrune: Pyrune, sleeper: Path) -> None:
    with session(pyrune, sleeper) as user:
        _read_until(user.master, b"ready\r\n")
        # While it runs, keys are the container's: nothing is echoed, and nothing raises a signal here.
        assert not termios.tcgetattr(user.slave)[3] & (termios.ECHO | termios.ISIG | termios.ICANON)
        os.write(user.master, b"typed\r\x1a\x03")
        assert user.process.wait(timeout=60) == 130
        assert termios.tcgetattr(user.slave) == user.modes_before
        assert select.select([user.master], [], [], 0)[0] == []


def test_a_signal_ends_it_with_the_terminal_as_before(pyrune: Pyrune, sleeper: Path) -> None:
    with session(pyrune, sleeper) as user:
        _read_until(user.master, b"ready\r\n")
        user.process.terminate()
        assert user.process.wait(timeout=60) == 143
        assert termios.tcgetattr(user.slave) == user.modes_before


def test_a_boot_that_fails_leaves_the_terminal_as_before(pyrune: Pyrune, images: Images) -> None:
    with session(pyrune, pyrune.bundle(images.bare("poweroff"))) as user:
        assert user.process.wait(timeout=60) == 1
        assert b"before it had booted" in _read_until(user.master, b"\r\n")
        assert termios.tcgetattr(user.slave) == user.modes_before


def test_a_terminal_container_runs_without_a_terminal_around(pyrune: Pyrune, images: Images) -> None:
    bundle = _with_terminal(pyrune.bundle(images.application("print", "2")))
    done = pyrune("run", "--bundle", str(bundle), "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 1\r\nline 2\r\n", "")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Where a container engine waits for the terminal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "console"))
        sock.listen()
        sock.settimeout(60)
        yield sock


def _receive(listener: socket.socket) -> tuple[bytes, int]:
    """The one message with its one descriptor; then the other side closes."""
    connection, _ = listener.accept()
    with connection:
        data, control, flags, _ = connection.recvmsg(4096, socket.CMSG_SPACE(16 * array.array("i").itemsize))
        [(level, kind, content)] = control
        fds = array.array("i", content)
        assert (level, kind, len(fds), flags & socket.MSG_CTRUNC) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, 1, 0)
        assert connection.recv(1) == b""
    return data, fds[0]


def test_the_master_comes_over_the_console_socket_as_from_runc(
    runc: Program, beside: Program, listener: socket.socket
) -> None:
    """The engine accepts after create has returned, as containerd's shim does."""
    for program in (runc, beside):
        words = ["create", "--console-socket", listener.getsockname(), "--bundle", str(_with_terminal(program.bundle))]
        assert program([*words, "one"]).status == 0
        name, master = _receive(listener)
        assert name
        assert os.isatty(master)
        assert "ptmx" in os.readlink(f"/proc/self/fd/{master}")
        program(["delete", "--force", "one"])
        _read_to_the_end(master)
        os.close(master)


def test_what_the_enclave_prints_comes_out_of_the_master(
    pyrune: Pyrune, images: Images, listener: socket.socket, tmp_path: Path
) -> None:
    bundle = _with_terminal(pyrune.bundle(images.application("print", "2")))
    console = ("--console-socket", str(tmp_path / "console"))
    pyrune.ok("create", *console, "--bundle", str(bundle), "one")
    _, master = _receive(listener)
    assert pyrune.ok("start", "one") == ""
    assert _read_to_the_end(master) == b"line 1\r\nline 2\r\n"
    os.close(master)
    wait_until(lambda: pyrune.status("one") == "stopped", "the container does not stop")


def test_an_enclave_outlives_whoever_was_attached(
    pyrune: Pyrune, sleeper: Path, listener: socket.socket, tmp_path: Path
) -> None:
    console = ("--console-socket", str(tmp_path / "console"))
    pyrune.ok("run", "--detach", *console, "--bundle", str(_with_terminal(sleeper)), "one")
    _, master = _receive(listener)
    assert _read_until(master, b"ready\r\n") == b"ready\r\n"
    os.write(master, b"keys that nobody reads " * 1000)
    os.close(master)
    assert pyrune.status("one") == "running"
    pyrune.ok("kill", "one")
    wait_until(lambda: pyrune.status("one") == "stopped", "the container does not stop")


@pytest.mark.parametrize("kind", ["nothing", "a file", "nobody listens"])
def test_a_console_socket_that_is_none_fails_create(pyrune: Pyrune, sleeper: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "no-console"
    if kind == "a file":
        path.write_text("")
    if kind == "nobody listens":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(str(path))
    done = pyrune("create", "--console-socket", str(path), "--bundle", str(_with_terminal(sleeper)), "one")
    assert done.returncode == 1
    assert f"the console socket {path} does not accept a connection" in done.stderr
    assert not pyrune.root.exists() or list(pyrune.root.iterdir()) == []
