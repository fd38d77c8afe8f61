"""The monitor as a process: what it holds, whom it belongs to, how it ends. All but its back end is real."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrune import process
from pyrune.backend import BackendName
from pyrune.errors import MonitorError, ReportedError
from pyrune.linux import become_subreaper, connect_unix
from pyrune.monitor import launch as launch_module
from pyrune.monitor.control import SOCKET_NAME, Request, ask
from pyrune.monitor.launch import launch
from pyrune.monitor.order import MonitorOrder
from pyrune.state import ContainerDirectory, ContainerRecord, ContainerStore, Status
from pyrune.terminal import receive_master
from tests.support.command import is_alive, wait_until
from tests.support.containers import new_record
from tests.support.programs import TIMEOUT_S, bury_the_dead, open_descriptors, running

FAKE = str(Path(__file__).with_name("fake_monitor.py"))


def spawn_fake(argv: list[str], *, keep_fds: list[int]) -> None:
    assert argv[:4] == [sys.executable, "-I", "-m", "pyrune.monitor"]
    process.spawn_detached([sys.executable, "-I", FAKE, *argv[4:]], keep_fds=keep_fds)


class Launched:
    """A monitor that this process has launched, and reaps."""

    def __init__(self, root: Path) -> None:
        self.store = ContainerStore(root)
        self.directory = self.store.create(new_record())
        self.stdout_r, self.stdout_w = os.pipe()
        self.console_socket: socket.socket | None = None
        self.pid = 0

    def order(self, report_fd: int, script: tuple[str, ...], image_fd: int, directory_fd: int) -> MonitorOrder:
        return MonitorOrder(
            directory_fd=directory_fd,
            report_fd=report_fd,
            image_fd=image_fd,
            console_socket_fd=self.console_socket.fileno() if self.console_socket else None,
            backend=BackendName.LOCAL,
            image_name="image",
            memory_mib=64,
            vcpus=1,
            enclave_cid=None,
            debug=False,
            boot_timeout_s=None,
            log_level="debug",
            notes=script,
        )

    def launch(self, *script: str) -> None:
        """As create does it, with this script; the monitor's standard output is this one's pipe."""
        image_fd = os.memfd_create("image")
        directory_fd = self.directory.another_fd()
        saved = os.dup(1)
        os.dup2(self.stdout_w, 1)
        try:
            launch(lambda report_fd: self.order(report_fd, script, image_fd, directory_fd))
        finally:
            os.dup2(saved, 1)
            for fd in (saved, image_fd, directory_fd, self.stdout_w):
                os.close(fd)
        monitor = self.record.monitor
        assert monitor is not None
        self.pid = monitor.pid

    @property
    def record(self) -> ContainerRecord:
        with self.store.open("c1") as directory:
            return directory.read()

    @property
    def log(self) -> str:
        return (self.store.root / "c1" / "monitor.log").read_text()

    def wait(self) -> int:
        """The monitor's exit status, as a shell has it."""
        pid, self.pid = self.pid, 0
        wait_until(lambda: not is_alive(pid), "the monitor does not end", timeout_s=TIMEOUT_S)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status if status >= 0 else 128 - status

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.stdout_r)
        self.directory.close()


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launched]:
    monkeypatch.setattr(launch_module, "spawn_detached", spawn_fake)
    bury_the_dead()
    become_subreaper()
    made = Launched(tmp_path / "root")
    yield made
    made.close()
    become_subreaper(False)


def start(launched: Launched) -> None:
    ask(launched.directory.fd, Request("start"))


def kill(launched: Launched, number: int) -> None:
    ask(launched.directory.fd, Request("kill", number))


def read_all(fd: int) -> bytes:
    content = b""
    while chunk := os.read(fd, 65536):
        content += chunk
    return content


def test_a_whole_life(launched: Launched) -> None:
    launched.launch("boot", "print hello", "off")
    assert launched.record.status is Status.CREATED
    assert Path(f"/proc/{launched.pid}/comm").read_text() == "pyrune-monitor\n"
    start(launched)
    assert launched.wait() == 0
    assert read_all(launched.stdout_r) == b"hello\n"
    assert (launched.record.status, launched.record.exit_status) == (Status.STOPPED, 0)


@pytest.mark.parametrize(("script", "status"), [(("off",), 255), (("boot", "panic", "off"), 255), (("boot",), 143)])
def test_its_wait_status_is_the_containers(script: tuple[str, ...], status: int, launched: Launched) -> None:
    launched.launch(*script)
    with contextlib.suppress(ReportedError):
        start(launched)
    if status == 143:
        kill(launched, signal.SIGTERM)
    assert launched.wait() == status


def test_it_holds_only_what_it_needs(launched: Launched) -> None:
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    for fd in others:
        os.set_inheritable(fd, True)
    launched.launch("boot")
    for fd in others:
        os.close(fd)
    directory = f"{launched.store.root}/c1"
    needed = [
        *("/dev/null", f"{directory}/monitor.log", f"{directory}/monitor.log", f"{directory}/monitor.log"),
        *(directory, f"{directory}/console.log"),
        # Its standard output, its own pipe for waking up, the event loop, the control socket.
        *("pipe", "pipe", "pipe", "anon_inode", "socket"),
    ]

    def held() -> list[str]:
        return [name.split(":")[0] for name in open_descriptors(launched.pid).values()]

    # It says that it is ready, and then closes what it said so with.
    wait_until(lambda: sorted(held()) == sorted(needed), f"it holds {held()}", timeout_s=10)
    status = Path(f"/proc/{launched.pid}/status").read_text()
    assert "Umask:\t0077" in status
    assert os.readlink(f"/proc/{launched.pid}/cwd") == "/"


def test_its_files_are_its_owners_alone(launched: Launched) -> None:
    previous = os.umask(0)
    launched.launch("boot")
    os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (launched.store.root / "c1").iterdir()}
    assert modes == dict.fromkeys(["enclave.json", "console.log", "monitor.log", SOCKET_NAME], 0o600)


def test_standard_output_is_never_set_non_blocking(launched: Launched) -> None:
    launched.launch("boot", "spam")
    start(launched)
    assert os.read(launched.stdout_r, 10) == b"x" * 10
    pipe = os.readlink(f"/proc/self/fd/{launched.stdout_r}")
    (fd,) = [fd for fd, name in open_descriptors(launched.pid).items() if name == pipe]
    assert not int(_flags(launched.pid, fd), 8) & os.O_NONBLOCK
    assert not fcntl.fcntl(launched.stdout_r, fcntl.F_GETFL) & os.O_NONBLOCK
    # The reader stalls; the monitor still listens.
    kill(launched, signal.SIGTERM)
    os.set_blocking(launched.stdout_r, True)
    assert set(read_all(launched.stdout_r)) == {ord("x")}
    assert launched.wait() == 143


def _flags(pid: int, fd: int) -> str:
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("flags:"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_it_ends_the_container(number: signal.Signals, launched: Launched) -> None:
    launched.launch("boot")
    start(launched)
    os.kill(launched.pid, number)
    assert launched.wait() == 128 + number
    assert launched.record.exit_status == 128 + number


def test_a_hang_up_and_a_lost_reader_end_nothing(launched: Launched) -> None:
    launched.launch("boot")
    start(launched)
    for number in (signal.SIGHUP, signal.SIGPIPE):
        os.kill(launched.pid, number)
    kill(launched, signal.SIGINT)
    assert launched.wait() == 130


def test_it_can_be_killed_at_any_time(launched: Launched) -> None:
    launched.launch("boot")
    start(launched)
    os.kill(launched.pid, signal.SIGKILL)
    assert launched.wait() == 137
    assert launched.record.status is Status.STOPPED


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("fail", "no memory is left"),
        ("crash", r"the container's monitor failed: ZeroDivisionError: a mistake\x1b"),
    ],
)
def test_what_goes_wrong_before_it_is_ready_is_reported(script: str, error: str, launched: Launched) -> None:
    with pytest.raises(ReportedError) as caught:
        launched.launch(script)
    assert str(caught.value) == error
    assert ("no memory is left" if script == "fail" else "Traceback") in launched.log
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 255


def test_a_monitor_that_dies_before_it_is_ready_is_named(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(launch_module, "spawn_detached", process.spawn_detached)
    with pytest.raises(MonitorError, match="ended before it was ready"):
        launched.launch("boot")
    os.wait()


def test_it_ends_when_who_wanted_it_is_gone(launched: Launched) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    order = launched.order(write_end, ("boot",), os.memfd_create("image"), launched.directory.another_fd())
    order_fd = order.to_memory_file()
    kept = [order_fd, *order.descriptors()]
    spawn_fake([sys.executable, "-I", "-m", "pyrune.monitor", str(order_fd)], keep_fds=kept)
    for fd in kept:
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 255
    assert not (launched.store.root / "c1" / SOCKET_NAME).exists()


def test_its_terminal_goes_to_who_asked_for_it(launched: Launched) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        launched.console_socket = theirs
        launched.launch("boot", "print hello")
        theirs.close()
        master = receive_master(ours)
        assert ours.recv(1) == b"", "the monitor keeps the console socket"
    start(launched)
    assert os.read(master, 100) == b"hello\r\n"
    # Nobody inside reads what is typed, and it does not get stuck.
    os.write(master, b"typed" * 5000)
    os.write(master, b"\x03")
    assert launched.wait() == 130
    os.close(master)


def test_it_goes_on_when_its_terminal_is_closed(launched: Launched) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        launched.console_socket = theirs
        launched.launch("boot", "spam")
        os.close(receive_master(ours))
    start(launched)
    wait_until(lambda: (launched.store.root / "c1" / "console.log").stat().st_size > 100_000, "it does not go on")
    kill(launched, signal.SIGTERM)
    assert launched.wait() == 143


def test_a_closed_terminal_does_not_keep_it_busy(launched: Launched) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        launched.console_socket = theirs
        launched.launch("boot")
        start(launched)
        os.close(receive_master(ours))
    before = _cpu_ticks(launched.pid)
    threading.Event().wait(0.5)
    assert _cpu_ticks(launched.pid) - before < 20
    kill(launched, signal.SIGTERM)
    assert launched.wait() == 143


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_many_callers_at_once_are_served_by_one_process(launched: Launched) -> None:
    launched.launch("boot")
    start(launched)
    callers = [connect_unix(launched.directory.fd, SOCKET_NAME, TIMEOUT_S) for _ in range(60)]
    for caller in callers[::2]:
        caller.sendall(b'{"verb": "kill", "signal": 1}\n')
    replies = 0
    for caller in callers[::2]:
        replies += select.select([caller], [], [], TIMEOUT_S)[0] != [] and caller.recv(100) == b"{}\n"
    assert replies == 30
    for caller in callers:
        caller.close()
    kill(launched, signal.SIGTERM)
    assert launched.wait() == 143


def test_a_ready_container_outlives_the_call_that_made_it(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests.unit.monitor import test_program
test_program.launch_module.spawn_detached = test_program.spawn_fake
launched = test_program.Launched(Path(sys.argv[1]))
launched.launch("boot")
print(launched.pid, flush=True)
sys.stdin.readline()
"""
    with running(code, str(tmp_path / "root")) as creator:
        assert creator.stdout is not None
        pid = int(creator.stdout.readline())
        creator.kill()
        creator.wait()
        assert is_alive(pid)
        with ContainerStore(tmp_path / "root").open("c1") as directory:
            assert directory.read().status is Status.CREATED
            _end(directory, pid)


def _end(directory: ContainerDirectory, pid: int) -> None:
    ask(directory.fd, Request("kill", 9))
    wait_until(lambda: not is_alive(pid), "the monitor does not end")
