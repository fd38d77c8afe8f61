"""One machine and its device as processes: QEMU is a fake one, the device and all between them are real."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrune.backend import EnclaveEnd, EndKind
from pyrune.eif.format import Architecture
from pyrune.errors import BackendError
from pyrune.linux import descendants
from pyrune.local import virtual_machine
from pyrune.local.machine import Accelerator, Machine
from pyrune.local.virtual_machine import Complaints, MachineObserver, VirtualMachine
from pyrune.reactor import Reactor
from tests.support.command import is_alive, wait_until
from tests.support.programs import open_descriptors
from tests.support.rounds import run_until
from tests.unit.local.conftest import POWEROFF, FakeQemu


class Run:
    """One machine, and what its observer hears."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.before = set(open_descriptors())
        self.reactor = Reactor()
        self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.kernel_fd = os.memfd_create("kernel")
        self.printed = b""
        self.ends: list[EnclaveEnd] = []
        self.errors = 0
        self.notes: list[str] = []
        self.machine = VirtualMachine(
            self.reactor, MachineObserver(self._on_print, self.ends.append, self._on_error, self.notes.append)
        )

    def _on_print(self, data: bytes) -> None:
        assert not self.ends, "it prints after its end"
        self.printed += data

    def _on_error(self) -> None:
        self.errors += 1

    def prepare(self) -> None:
        self.machine.prepare(self._describe, 16, self.directory_fd)

    def _describe(self, console_fd: int, vsock_fd: int, qmp_fd: int) -> Machine:
        return Machine(
            name="test",
            architecture=Architecture.X86_64,
            accelerator=Accelerator.TCG,
            memory_mib=64,
            vcpus=1,
            kernel_fd=self.kernel_fd,
            initrd_fd=self.kernel_fd,
            cmdline="",
            console_fd=console_fd,
            vsock_fd=vsock_fd,
            qmp_fd=qmp_fd,
        )

    def end(self) -> EnclaveEnd:
        run_until(self.reactor, lambda: bool(self.ends))
        (end,) = self.ends
        return end

    def close(self) -> None:
        self.machine.close()
        self.machine.close()
        wait_until(lambda: not descendants(os.getpid()), "a process is left", timeout_s=10)
        for fd in (self.directory_fd, self.kernel_fd):
            os.close(fd)
        self.reactor.close()
        assert set(open_descriptors()) == self.before


@pytest.fixture
def run(tmp_path: Path, fake_qemu: FakeQemu) -> Iterator[Run]:
    made = Run(tmp_path / "container")
    yield made
    made.close()


def prepared(run: Run, fake_qemu: FakeQemu, script: str) -> Run:
    fake_qemu.script(script)
    run.prepare()
    return run


@pytest.mark.parametrize(
    ("script", "end"),
    [
        (f"run {POWEROFF}", EnclaveEnd(EndKind.POWERED_OFF)),
        (f"run {POWEROFF.replace('guest-shutdown', 'guest-reset')}", EnclaveEnd(EndKind.POWERED_OFF)),
        (
            f"run {POWEROFF.replace('guest-shutdown', 'guest-panic')}",
            EnclaveEnd(EndKind.PANICKED, "the guest reported a panic"),
        ),
        (
            f"run {POWEROFF.replace('guest-shutdown', 'host-signal')}",
            EnclaveEnd(EndKind.BROKE, "qemu ended by itself with status 0"),
        ),
        (
            f"run {POWEROFF.replace('exit 0', 'exit 1')}",
            EnclaveEnd(EndKind.BROKE, "qemu ended by itself with status 1"),
        ),
        ("run exit 1", EnclaveEnd(EndKind.BROKE, "qemu ended by itself with status 1")),
    ],
)
def test_how_it_ended_is_told_from_status_and_last_event(
    script: str, end: EnclaveEnd, run: Run, fake_qemu: FakeQemu
) -> None:
    prepared(run, fake_qemu, script).machine.run()
    assert run.end() == end


def test_what_it_printed_comes_before_its_end(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, f"run print {'x' * 50_000} | print the last | {POWEROFF}").machine.run()
    assert run.end().kind is EndKind.POWERED_OFF
    assert run.printed == b"x" * 50_000 + b"\nthe last\n"


def test_a_paused_console_is_read_only_at_the_end(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, f"run print one | {POWEROFF}")
    run.machine.pause_console()
    run.machine.run()
    run.end()
    assert run.printed == b"one\n"


def test_a_console_can_be_resumed(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run print one | wait")
    run.machine.pause_console()
    run.machine.run()
    over: list[None] = []
    run.reactor.call_later(0.1, lambda: over.append(None))
    run_until(run.reactor, lambda: bool(over))
    assert run.printed == b""
    run.machine.resume_console()
    run_until(run.reactor, lambda: run.printed == b"one\n")


def test_nothing_runs_before_run(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run print one | wait")
    over: list[None] = []
    run.reactor.call_later(0.1, lambda: over.append(None))
    run_until(run.reactor, lambda: bool(over))
    assert run.printed == b""
    wait_until(lambda: os.listdir(run.directory) == ["vsock"], "the device makes no socket")
    assert "-S" in fake_qemu.arguments


def test_stop_ends_it_whenever(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run wait")
    run.machine.stop()
    run.machine.stop()
    assert run.end() == EnclaveEnd(EndKind.STOPPED)
    run.machine.stop()
    run.machine.pause_console()
    run.machine.resume_console()
    assert len(run.ends) == 1


def test_a_killed_qemu_is_told(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run wait").machine.run()
    os.kill(run.machine._qemu.pid, signal.SIGSEGV)
    assert run.end() == EnclaveEnd(EndKind.BROKE, "qemu was ended by SIGSEGV")


def test_without_its_device_it_is_ended(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run wait").machine.run()
    os.kill(run.machine._device.pid, signal.SIGKILL)
    assert run.end() == EnclaveEnd(EndKind.BROKE, "the vsock device of the local virtual machine ended")


def test_a_machine_that_stands_still_is_an_internal_error(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, 'run event {"event": "STOP"} | wait').machine.run()
    run_until(run.reactor, lambda: run.errors == 1)


def test_a_stop_on_the_way_out_is_none(run: Run, fake_qemu: FakeQemu) -> None:
    stop = 'event {"event": "STOP"}'
    prepared(run, fake_qemu, f"run {POWEROFF.replace(' | exit', f' | {stop} | exit')}").machine.run()
    assert run.end().kind is EndKind.POWERED_OFF
    assert run.errors == 0


def test_garbage_over_the_control_connection_ends_nothing(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run raw garbage | print alive | exit 0").machine.run()
    assert run.end() == EnclaveEnd(EndKind.BROKE, "qemu ended by itself with status 0")
    assert run.printed == b"alive\n"


def test_what_qemu_complains_of_is_noted_escaped(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, rf"run say qemu: \x1b[31mred \xff | {POWEROFF}").machine.run()
    run.end()
    assert run.notes == ["qemu: \\x1b[31mred \ufffd"]


def test_after_close_nothing_is_heard(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, f"run print one | {POWEROFF}").machine.run()
    run.machine.close()
    over: list[None] = []
    run.reactor.call_later(0.1, lambda: over.append(None))
    run_until(run.reactor, lambda: bool(over))
    assert (run.printed, run.ends, run.errors) == (b"", [], 0)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("say qemu: no such \x1b machine | exit 1", r"qemu ended before it was ready: qemu: no such \x1b machine"),
        ("exit 0", "qemu ended before it was ready"),
        ("raw garbage | wait", "qemu's control connection makes no sense"),
    ],
)
def test_a_qemu_that_does_not_come_up_is_an_error_with_its_words(
    script: str, problem: str, run: Run, fake_qemu: FakeQemu
) -> None:
    before = open_descriptors()
    with pytest.raises(BackendError) as caught:
        prepared(run, fake_qemu, script)
    assert str(caught.value) == problem
    assert open_descriptors() == before
    wait_until(lambda: not descendants(os.getpid()), "a process is left", timeout_s=10)


def test_a_qemu_that_says_nothing_is_given_up(run: Run, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "_READY_TIMEOUT_S", 0.05)
    with pytest.raises(BackendError, match="qemu did not answer on its control connection in time"):
        prepared(run, fake_qemu, "deaf")
    wait_until(lambda: not descendants(os.getpid()), "a process is left", timeout_s=10)


def test_a_missing_qemu_is_named_with_its_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual_machine, "find_program", lambda _name: None)
    before = open_descriptors()
    with pytest.raises(BackendError) as caught:
        run.prepare()
    assert str(caught.value) == (
        "the local virtual machine for x86_64 images needs qemu-system-x86_64, which is not installed; "
        "install it (on Debian and Ubuntu: the package qemu-system-x86)"
    )
    assert open_descriptors() == before
    wait_until(lambda: not descendants(os.getpid()), "a process is left", timeout_s=10)


def test_complaints_are_whole_lines_cut_escaped_and_not_too_many() -> None:
    with Complaints() as complaints:
        os.write(complaints.write_fd, b"one\ntw")
        assert complaints.read() == ["one"]
        assert complaints.read() == []
        os.write(complaints.write_fd, b"o\x07\n\n  \n" + b"x" * 5000 + b"\n")
        two, long = complaints.read()
        assert (two, len(long)) == ("two\\x07", 1000)
        for _ in range(50):
            os.write(complaints.write_fd, b"again\n" * 10)
            complaints.read()
        os.write(complaints.write_fd, b"again\n")
        assert complaints.read() == []
        assert os.get_blocking(complaints.write_fd)


def test_both_die_with_who_made_them(run: Run, fake_qemu: FakeQemu) -> None:
    prepared(run, fake_qemu, "run wait")
    pids = [run.machine._qemu.pid, run.machine._device.pid]
    assert all(map(is_alive, pids))
    run.machine.close()
    assert not any(map(is_alive, pids))
