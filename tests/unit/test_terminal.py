"""Terminals over real pairs: what a container's end is like, who gets the other, and the relay between the two."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyrune.errors import UsageError
from pyrune.terminal import (
    FORWARDED_SIGNALS,
    connect_console_socket,
    copy_window_size,
    raw_terminal,
    receive_master,
    relay,
)
from tests.support.command import wait_until
from tests.support.programs import TIMEOUT_S, next_line, open_descriptors, running

OPEN = """
import os, signal, socket, sys
from pyrune.errors import PyruneError
from pyrune.terminal import connect_console_socket, open_console
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.write(1, signal.Signals(number).name.encode() + b"\\n"))
with connect_console_socket(sys.argv[1]) as console_socket:
    before = os.listdir("/proc/self/fd")
    try:
        slave = open_console(console_socket, 24, 80)
    except PyruneError as exc:
        print(exc, os.listdir("/proc/self/fd") == before, flush=True)
        sys.exit()
print("open", os.listdir("/proc/self/fd") , flush=True)
for line in sys.stdin:
    if line.startswith("write "):
        os.write(slave, b"a line\\n")
    elif line.startswith("close"):
        os.close(slave)
    print("done", flush=True)
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(tmp_path / "console.sock"))
        made.listen()
        made.settimeout(TIMEOUT_S)
        yield made


@contextlib.contextmanager
def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    caller, _ = listener.accept()
    with caller:
        caller.settimeout(TIMEOUT_S)
        yield caller


def test_the_callers_socket_gets_one_message_with_a_name_and_one_descriptor(listener: socket.socket) -> None:
    with running(OPEN, listener.getsockname(), new_session=True) as process, accepted(listener) as caller:
        name, ancillary, _, _ = caller.recvmsg(4096, 1024)
        assert name == b"/dev/pts/ptmx"
        ((level, kind, data),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        (master,) = array.array("i", data)
        assert os.readlink(f"/proc/self/fd/{master}") == "/dev/ptmx" or os.isatty(master)
        assert next_line(process).startswith("open")
        assert caller.recv(1) == b""
        os.close(master)


@contextlib.contextmanager
def opened(listener: socket.socket) -> Iterator[tuple[Callable[[str], str], int]]:
    """A session leader with its terminal: a function that tells it something and returns its answer; the master."""
    with running(OPEN, listener.getsockname(), new_session=True) as process, accepted(listener) as caller:
        master = receive_master(caller)
        assert next_line(process).startswith("open")
        assert process.stdin is not None

        def tell(line: str) -> str:
            if line:
                print(line, file=process.stdin, flush=True)
            return next_line(process)

        try:
            yield tell, master
        finally:
            with contextlib.suppress(OSError):
                os.close(master)


def test_the_containers_end_ends_lines_for_a_terminal_and_has_the_callers_size(listener: socket.socket) -> None:
    with opened(listener) as (tell, master):
        mode = termios.tcgetattr(master)
        assert not mode[3] & (termios.ECHO | termios.ICANON)
        assert mode[3] & termios.ISIG
        assert struct.unpack("4H", fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8)))[:2] == (24, 80)
        assert tell("write ") == "done"
        assert os.read(master, 100) == b"a line\r\n"
        assert not os.get_inheritable(master)


def test_the_keys_for_interrupt_and_quit_reach_the_session_leader(listener: socket.socket) -> None:
    with opened(listener) as (tell, master):
        os.write(master, b"\x03")
        assert tell("") == "SIGINT"
        os.write(master, b"typed \x1c")
        assert tell("") == "SIGQUIT"


def test_the_key_for_stop_stops_nothing(listener: socket.socket) -> None:
    with opened(listener) as (tell, master):
        os.write(master, b"\x1a\x03")
        assert tell("") == "SIGINT"
        assert tell("still there?") == "done"


def test_closing_the_master_hangs_up(listener: socket.socket) -> None:
    with opened(listener) as (tell, master):
        os.close(master)
        assert tell("") == "SIGHUP"


def test_the_master_sees_the_end_when_the_containers_end_is_closed(listener: socket.socket) -> None:
    with opened(listener) as (tell, master):
        assert tell("close") == "done"
        with pytest.raises(OSError):
            os.read(master, 1)


def test_who_leads_no_session_gets_no_terminal_but_an_error_of_ours(listener: socket.socket) -> None:
    with running(OPEN, listener.getsockname(), new_session=False) as process, accepted(listener):
        assert next_line(process) == "the container's terminal cannot be made or handed over (error 1) True"


def test_a_caller_who_has_gone_is_an_error_of_ours(listener: socket.socket) -> None:
    code = OPEN.replace("    before =", "    sys.stdin.readline()\n    before =")
    with running(code, listener.getsockname(), new_session=True) as process:
        listener.accept()[0].close()
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        # The terminal was ours for a moment.
        assert next_line(process) == "SIGHUP"
        assert next_line(process) == "the container's terminal cannot be made or handed over (error 32) True"


def test_a_console_socket_that_is_none_is_named(tmp_path: Path, listener: socket.socket) -> None:
    listener.close()
    (tmp_path / "file").touch()
    before = open_descriptors()
    for name, number in (("nothing", 2), ("file", 111), ("console.sock", 111), ("x" * 200, 36)):
        with pytest.raises(UsageError) as caught:
            connect_console_socket(str(tmp_path / name))
        assert str(caught.value).endswith(f"{name} does not accept a connection (error {number})")
    assert open_descriptors() == before


def test_without_a_master_there_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        assert receive_master(ours) == -1


def test_of_many_descriptors_only_one_is_taken() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = open_descriptors()
        socket.send_fds(theirs, [b"x"], [0, 1, 2])
        master = receive_master(ours)
        assert set(open_descriptors()) == {*before, master}
        os.close(master)


# The caller's terminal


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """The master and the slave of a terminal."""
    master, slave = os.openpty()
    yield master, slave
    for fd in (master, slave):
        with contextlib.suppress(OSError):
            os.close(fd)


def test_a_raw_terminal_is_put_back_whatever_happens(pair: tuple[int, int]) -> None:
    before = termios.tcgetattr(pair[1])
    with pytest.raises(ZeroDivisionError), raw_terminal(pair[1]):
        assert not termios.tcgetattr(pair[1])[3] & (termios.ISIG | termios.ECHO | termios.ICANON)
        raise ZeroDivisionError
    assert termios.tcgetattr(pair[1]) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    with open(os.devnull) as null, raw_terminal(null.fileno()):
        pass


def test_a_terminal_that_is_gone_at_the_end_is_no_error(pair: tuple[int, int]) -> None:
    with raw_terminal(pair[1]):
        os.close(pair[0])


def test_the_window_size_is_the_callers(pair: tuple[int, int]) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(pair[1], termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    copy_window_size(pair[1], master)
    assert struct.unpack("4H", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (30, 100)
    with open(os.devnull) as null:
        copy_window_size(null.fileno(), master)
    os.close(master)
    os.close(slave)


class Relay:
    """`relay` in a thread, between pipes and a terminal whose slave the test holds."""

    def __init__(self, master: int, stdin_fd: int | None = None) -> None:
        self.stdin_r, self.stdin_w = os.pipe()
        self.stdout_r, self.stdout_w = os.pipe()
        self.signal_r, self.signal_w = os.pipe()
        self.signals: list[bytes] = []
        self.thread = threading.Thread(target=self._run, args=(master, self.stdin_r if stdin_fd is None else stdin_fd))

    def _run(self, master: int, stdin_fd: int) -> None:
        on_signal = (self.signal_r, lambda: self.signals.append(os.read(self.signal_r, 1)))
        relay(master, stdin_fd=stdin_fd, stdout_fd=self.stdout_w, on_signal_fd=on_signal)

    def close(self) -> None:
        for fd in (self.stdin_r, self.stdin_w, self.stdout_r, self.stdout_w, self.signal_r, self.signal_w):
            with contextlib.suppress(OSError):
                os.close(fd)


@contextlib.contextmanager
def relaying(pair: tuple[int, int], stdin_fd: int | None = None) -> Iterator[Relay]:
    mode = termios.tcgetattr(pair[1])
    mode[1] &= ~termios.OPOST
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(pair[1], termios.TCSANOW, mode)
    made = Relay(pair[0], stdin_fd)
    made.thread.start()
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            os.close(pair[1])
        made.thread.join(TIMEOUT_S)
        assert not made.thread.is_alive()
        made.close()


def test_bytes_pass_both_ways_until_the_containers_end_is_closed(pair: tuple[int, int]) -> None:
    with relaying(pair) as made:
        os.write(made.stdin_w, b"typed")
        assert os.read(pair[1], 100) == b"typed"
        os.write(pair[1], b"printed")
        assert os.read(made.stdout_r, 100) == b"printed"
        os.write(pair[1], b"last words")
        os.close(pair[1])
        made.thread.join(TIMEOUT_S)
        assert os.read(made.stdout_r, 100) == b"last words"


def test_the_end_of_what_is_typed_ends_nothing(pair: tuple[int, int]) -> None:
    with relaying(pair) as made:
        os.close(made.stdin_w)
        os.write(pair[1], b"printed")
        assert os.read(made.stdout_r, 100) == b"printed"


@pytest.mark.parametrize("what", ["file", "null", "closed"])
def test_an_input_that_cannot_be_watched_is_no_error(what: str, pair: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    fd = os.open(tmp_path / "file" if what == "file" else os.devnull, os.O_RDONLY)
    if what == "closed":
        os.close(fd)
    with relaying(pair, fd if what != "closed" else 1_000_000) as made:
        os.write(pair[1], b"printed")
        assert os.read(made.stdout_r, 100) == b"printed"
    if what != "closed":
        os.close(fd)


def test_signals_are_attended_to_meanwhile(pair: tuple[int, int]) -> None:
    with relaying(pair) as made:
        os.write(made.signal_w, b"s")
        wait_until(lambda: made.signals == [b"s"], "the signal is not attended to", timeout_s=TIMEOUT_S)


def test_a_reader_who_has_gone_does_not_hold_the_container_up(pair: tuple[int, int]) -> None:
    with relaying(pair) as made:
        os.close(made.stdout_r)
        for _ in range(100):
            os.write(pair[1], b"x" * 4096)


def test_an_output_that_somebody_has_set_non_blocking_loses_nothing(pair: tuple[int, int]) -> None:
    with relaying(pair) as made:
        os.set_blocking(made.stdout_w, False)
        content = bytes(range(256)) * 1024

        def write() -> None:
            view = memoryview(content)
            while view:
                view = view[os.write(pair[1], view) :]

        writer = threading.Thread(target=write)
        writer.start()
        # More than a pipe holds is under way before anybody reads.
        threading.Event().wait(0.05)
        received = b""
        while len(received) < len(content):
            received += os.read(made.stdout_r, 65536)
        writer.join()
        assert received == content
        assert not os.get_blocking(made.stdout_w)


def test_signals_that_mean_this_process_are_not_passed_on() -> None:
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCONT} <= FORWARDED_SIGNALS
    assert not FORWARDED_SIGNALS & {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGWINCH}
