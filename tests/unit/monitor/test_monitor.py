"""The life of a container, driven step by step through every way that it can go."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyrune.backend import Backend, EnclaveSpec, EndKind
from pyrune.errors import BackendError, PyruneError
from pyrune.linux import ProcessIdentity, connect_unix
from pyrune.monitor import monitor as monitor_module
from pyrune.monitor.control import SOCKET_NAME
from pyrune.monitor.monitor import Monitor
from pyrune.monitor.output import HIGH_WATER_BYTES
from pyrune.reactor import Reactor
from pyrune.state import ContainerRecord, ContainerStore, Status
from tests.support.containers import new_record
from tests.support.fake_backend import FACTS, FakeBackend, FakeEnclave
from tests.support.programs import TIMEOUT_S, open_descriptors
from tests.support.rounds import run_until
from tests.unit.monitor.test_control import reply_to

PANIC = (
    b"[    1.0] Kernel panic - not syncing: \x1b[2Jno init\r\n"
    b"[    1.1] ---[ end Kernel panic - not syncing: no init ]---\r\n"
)


class Life:
    """A prepared container with a fake enclave, its monitor and its reactor in this process."""

    def __init__(self, root: Path) -> None:
        self.store = ContainerStore(root)
        self.directory = self.store.create(new_record())
        self.reactor = Reactor()
        self.stdout_r, self.stdout_w = os.pipe()
        self.image_fd = os.memfd_create("image")
        os.write(self.image_fd, b"an image")
        self.exits: list[int] = []
        self.monitor = Monitor(self.directory, self.reactor, self.stdout_w, self.exits.append)
        self.monitor.announce()
        self.backend = FakeBackend()
        self.start_calls: list[object] = []

    def prepare(self, boot_timeout_s: float | None = 1000) -> None:
        backend: Backend = self.backend
        spec = EnclaveSpec(self.image_fd, "image", memory_mib=64, vcpus=1, enclave_cid=None, debug=False)
        self.monitor.prepare(backend, spec, boot_timeout_s)

    @property
    def enclave(self) -> FakeEnclave:
        return self.backend.enclave

    @property
    def record(self) -> ContainerRecord:
        with self.store.open("c1") as directory:
            return directory.read()

    def ask(self, line: bytes) -> Callable[[], object]:
        """Send a request; the answer is read by the returned function, which serves until it is there."""
        caller = connect_unix(self.directory.fd, SOCKET_NAME, TIMEOUT_S)
        caller.sendall(line + b"\n")

        def answer() -> object:
            self.serve_until(lambda: bool(_readable(caller.fileno())))
            return reply_to(caller)

        return answer

    def start(self) -> Callable[[], object]:
        """Ask for the start, and serve until the enclave has been told."""
        answer = self.ask(b'{"verb": "start"}')
        self.serve_until(lambda: "start" in self.enclave.calls)
        return answer

    def run(self) -> None:
        answer = self.start()
        self.enclave.boot()
        assert answer() == {}

    def kill(self, number: int) -> object:
        return self.ask(b'{"verb": "kill", "signal": %d}' % number)()

    def serve_until(self, condition: Callable[[], bool]) -> None:
        run_until(self.reactor, condition)

    def exit_status(self) -> int:
        self.serve_until(lambda: bool(self.exits))
        (status,) = self.exits
        assert self.enclave.closed
        return status

    def printed(self) -> bytes:
        return os.read(self.stdout_r, 1 << 20)

    def close(self) -> None:
        self.monitor.abandon()
        with contextlib.suppress(OSError):
            os.close(self.stdout_r)
        # The thread that writes ends when nobody reads and nothing more will come.
        self.monitor._output.when_drained(lambda: None)
        for thread in threading.enumerate():
            if thread.name == "output":
                thread.join(TIMEOUT_S)
        os.close(self.stdout_w)
        os.close(self.image_fd)
        self.reactor.close()
        self.directory.close()


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.fixture
def unprepared(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path / "root")
    yield made
    made.close()


@pytest.fixture
def life(unprepared: Life) -> Life:
    unprepared.prepare()
    return unprepared


# The plain ways


def test_a_created_container_waits_and_its_record_says_what_it_holds(life: Life) -> None:
    record = life.record
    assert record.written_status is Status.CREATED
    assert record.monitor == ProcessIdentity.of(os.getpid())
    assert record.facts == FACTS
    assert life.enclave.calls == []
    assert life.backend.spec is not None
    assert life.backend.spec.image_fd == life.image_fd


def test_start_is_answered_when_the_enclave_has_booted(life: Life) -> None:
    answer = life.start()
    statuses = [life.record.written_status]
    life.enclave.boot()
    assert [*statuses, life.record.written_status] == [Status.CREATED, Status.RUNNING]
    assert answer() == {}


def test_an_enclave_that_powers_off_after_its_boot_ends_with_0(life: Life) -> None:
    life.run()
    life.enclave.print(b"hello\n")
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 0
    assert life.printed() == b"hello\n"
    record = life.record
    assert (record.written_status, record.exit_status, record.reason) == (Status.STOPPED, 0, "")
    assert not (life.store.root / "c1" / SOCKET_NAME).exists()


def test_facts_that_are_known_only_after_the_boot_get_into_the_record(life: Life) -> None:
    answer = life.start()
    life.enclave.facts = replace(FACTS, enclave_cid=77)
    life.enclave.boot()
    assert answer() == {}
    assert life.record.facts == replace(FACTS, enclave_cid=77)


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        (EndKind.BROKE, "qemu was ended by SIGSEGV", "qemu was ended by SIGSEGV"),
        (EndKind.PANICKED, "", "the enclave panicked"),
        (EndKind.STOPPED, "", "the enclave stopped"),
    ],
)
def test_another_end_is_255_with_its_reason(kind: EndKind, reason: str, said: str, life: Life) -> None:
    life.run()
    life.enclave.end(kind, reason)
    assert life.exit_status() == 255
    assert (life.record.exit_status, life.record.reason) == (255, said)


# Ends before the boot


@pytest.mark.parametrize("kind", [EndKind.POWERED_OFF, EndKind.BROKE])
def test_an_end_before_the_boot_fails_start_with_the_consoles_end(kind: EndKind, life: Life) -> None:
    answer = life.start()
    life.enclave.print(b"no root \x1b[31mfound\r\n")
    life.enclave.end(kind)
    assert life.exit_status() == 255
    reason = f"the enclave {kind} before it had booted"
    assert answer() == {"error": rf"{reason}; its console ended with: no root \x1b[31mfound"}
    assert (life.record.exit_status, life.record.reason) == (255, reason)


def test_an_end_before_start_is_an_end(life: Life) -> None:
    life.enclave.end(EndKind.BROKE, "qemu was ended by SIGKILL")
    assert life.exit_status() == 255
    assert life.record.reason == "qemu was ended by SIGKILL before it had booted"


def test_a_start_that_fails_at_once_fails_start_in_its_words(life: Life) -> None:
    life.enclave.start_error = "no cpu is left"
    answer = life.start()
    assert life.exit_status() == 255
    assert answer() == {"error": "no cpu is left"}
    assert (life.record.written_status, life.record.exit_status) == (Status.STOPPED, 255)
    assert life.record.reason == "no cpu is left"


def test_a_start_of_which_not_an_instruction_ran_is_not_said_to_have_booted(life: Life) -> None:
    answer = life.start()
    life.enclave.end(EndKind.FAILED_TO_START, "no cpu is left")
    assert life.exit_status() == 255
    assert answer() == {"error": "no cpu is left"}


def test_a_boot_that_takes_too_long_is_ended(unprepared: Life) -> None:
    life = unprepared
    life.prepare(boot_timeout_s=0.01)
    answer = life.start()
    life.enclave.print(b"still booting")
    assert life.exit_status() == 255
    assert "stop" in life.enclave.calls
    assert answer() == {"error": "the enclave has not booted within 0 s; its console ended with: still booting"}


def test_a_boot_that_comes_after_its_deadline_does_not_count(unprepared: Life) -> None:
    life = unprepared
    life.prepare(boot_timeout_s=0.01)
    answer = life.start()
    life.enclave.stops_late = True
    life.serve_until(lambda: "stop" in life.enclave.calls)
    life.enclave.boot()
    assert life.record.written_status is Status.CREATED
    life.enclave.end(EndKind.STOPPED)
    assert life.exit_status() == 255
    assert answer() == {"error": "the enclave has not booted within 0 s"}


def test_the_deadline_is_over_with_the_boot(unprepared: Life) -> None:
    life = unprepared
    life.prepare(boot_timeout_s=0.02)
    life.run()
    over: list[None] = []
    life.reactor.call_later(0.05, lambda: over.append(None))
    life.serve_until(lambda: bool(over))
    assert life.enclave.calls == ["start"]


def test_without_a_timeout_of_its_own_the_image_and_the_memory_decide(unprepared: Life) -> None:
    unprepared.prepare(boot_timeout_s=None)
    assert unprepared.monitor._boot_timeout_s == 180


# Signals


@pytest.mark.parametrize(("number", "status"), [(15, 143), (2, 130), (3, 131), (9, 137)])
def test_a_signal_ends_what_runs(number: int, status: int, life: Life) -> None:
    life.run()
    assert life.kill(number) == {}
    assert life.exit_status() == status
    assert (life.record.exit_status, life.record.reason) == (status, "")


@pytest.mark.parametrize("number", [0, 1, 10, 12, 17, 28, 34, 64])
def test_other_signals_end_nothing(number: int, life: Life) -> None:
    life.run()
    assert life.kill(number) == {}
    assert life.enclave.calls == ["start"]


def test_a_signal_ends_what_was_only_created(life: Life) -> None:
    assert life.kill(signal.SIGTERM) == {}
    assert life.exit_status() == 143
    assert life.record.reason == "ended by a signal before it had booted"
    assert life.enclave.calls == ["stop"]


def test_a_signal_while_it_boots_fails_start(life: Life) -> None:
    answer = life.start()
    life.enclave.print(b"booting")
    assert life.kill(signal.SIGINT) == {}
    assert life.exit_status() == 130
    assert answer() == {"error": "the enclave was ended by signal 2 before it had booted"}


def test_a_boot_that_comes_after_the_signal_does_not_count(life: Life) -> None:
    answer = life.start()
    life.enclave.stops_late = True
    assert life.kill(signal.SIGTERM) == {}
    life.enclave.boot()
    life.enclave.end(EndKind.STOPPED)
    assert life.exit_status() == 143
    assert answer() == {"error": "the enclave was ended by signal 15 before it had booted"}


def test_the_first_signal_counts(life: Life) -> None:
    life.run()
    life.enclave.stops_late = True
    assert life.kill(signal.SIGTERM) == {}
    assert life.kill(signal.SIGINT) == {}
    assert life.enclave.calls.count("stop") == 1
    life.enclave.end(EndKind.STOPPED)
    assert life.exit_status() == 143


def test_an_end_of_its_own_just_after_the_signal_is_the_signals(life: Life) -> None:
    life.run()
    life.enclave.stops_late = True
    assert life.kill(signal.SIGTERM) == {}
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 143


def test_a_signal_to_the_monitor_is_a_kill(life: Life) -> None:
    life.run()
    life.monitor.end_by_signal(signal.SIGTERM)
    assert life.exit_status() == 143


# Wrong calls


def test_it_can_be_started_once(life: Life) -> None:
    first = life.start()
    assert life.ask(b'{"verb": "start"}')() == {"error": "cannot start an already running container"}
    life.enclave.boot()
    assert first() == {}
    assert life.ask(b'{"verb": "start"}')() == {"error": "cannot start an already running container"}


def test_what_is_being_ended_cannot_be_started(life: Life) -> None:
    life.enclave.stops_late = True
    assert life.kill(signal.SIGTERM) == {}
    assert life.ask(b'{"verb": "start"}')() == {"error": "cannot start a container that has stopped"}
    assert "start" not in life.enclave.calls


def test_what_has_ended_takes_no_more_calls(life: Life) -> None:
    life.run()
    life.enclave.print(b"x" * 1_000_000)
    life.enclave.end(EndKind.POWERED_OFF)
    # Its output is still being written.
    assert life.exits == []
    assert life.kill(signal.SIGTERM) == {"error": "container not running"}
    assert life.ask(b'{"verb": "start"}')() == {"error": "cannot start a container that has stopped"}
    life.monitor.end_by_signal(signal.SIGTERM)
    assert "stop" not in life.enclave.calls


def test_an_unknown_verb_is_named(life: Life) -> None:
    assert life.ask(b'{"verb": "pa\\nuse"}')() == {"error": "the monitor knows no verb 'pa\\nuse'"}


# Panics


def test_a_panic_is_255_whatever_comes_after_it(life: Life) -> None:
    life.run()
    life.enclave.print(PANIC)
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 255
    assert life.record.reason == r"Kernel panic - not syncing: \x1b[2Jno init"


def test_a_kernel_that_stands_still_after_its_panic_is_stopped(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_PANIC_GRACE_S", 0.01)
    life.run()
    for byte in PANIC:
        life.enclave.print(bytes([byte]))
    life.enclave.print(b"more")
    assert life.exit_status() == 255
    assert life.enclave.calls == ["start", "stop"]
    assert life.record.reason.startswith("Kernel panic")


def test_a_panic_before_the_boot_fails_start(life: Life) -> None:
    answer = life.start()
    life.enclave.print(PANIC)
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 255
    error = answer()
    assert isinstance(error, dict)
    assert str(error["error"]).startswith(
        r"Kernel panic - not syncing: \x1b[2Jno init; its console ended with: [    1.0]"
    )


# Output


def test_a_full_output_holds_the_enclave_back_until_there_is_room(life: Life) -> None:
    life.run()
    printed = 0
    while not life.enclave.paused:
        life.enclave.print(b"x" * 10_000)
        printed += 10_000
    assert printed >= HIGH_WATER_BYTES
    while printed:
        printed -= len(os.read(life.stdout_r, printed))
    life.serve_until(lambda: not life.enclave.paused)


def test_what_is_read_late_is_still_written_at_the_end(life: Life) -> None:
    life.run()
    life.enclave.print(b"x" * 500_000)
    life.enclave.end(EndKind.POWERED_OFF)
    received = bytearray()

    def read() -> None:
        if _readable(life.stdout_r):
            received.extend(os.read(life.stdout_r, 20_000))
        if len(received) < 500_000:
            life.reactor.call_later(0.001, read)

    read()
    assert life.exit_status() == 0
    received.extend(life.printed())
    assert len(received) == 500_000


def test_who_never_reads_does_not_keep_the_container_alive(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "_OUTPUT_PATIENCE_S", 0.02)
    life.run()
    life.enclave.print(b"x" * 500_000)
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 0
    assert life.record.written_status is Status.STOPPED
    # Only then does somebody read: nothing is decided twice.
    read = 0
    while read < 500_000:
        read += len(life.printed())
    drained: list[None] = []
    life.reactor.call_later(0.02, lambda: drained.append(None))
    life.serve_until(lambda: bool(drained))
    assert life.exits == [0]


def test_a_closed_output_ends_nothing(life: Life) -> None:
    life.run()
    os.close(life.stdout_r)
    life.enclave.print(b"x" * 1000)
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 0
    assert (life.store.root / "c1" / "console.log").read_bytes() == b"x" * 1000


# Failures of this machine


def test_a_preparation_that_fails_is_an_error_and_takes_nothing(unprepared: Life) -> None:
    unprepared.backend.error = "no memory is left"
    before = open_descriptors()
    with pytest.raises(BackendError, match="no memory is left"):
        unprepared.prepare()
    assert open_descriptors() == before
    assert unprepared.record.written_status is Status.CREATING


def test_a_control_socket_that_cannot_be_made_is_an_error_and_closes_the_enclave(unprepared: Life) -> None:
    (unprepared.store.root / "c1" / SOCKET_NAME).touch()
    with pytest.raises(PyruneError):
        unprepared.prepare()
    assert unprepared.enclave.closed


def broken_record(life: Life) -> None:
    """From now on the record can be neither read nor written."""
    shutil.rmtree(life.store.root / "c1")


def test_an_end_that_cannot_be_recorded_is_an_end_all_the_same(life: Life) -> None:
    life.run()
    broken_record(life)
    life.enclave.end(EndKind.POWERED_OFF)
    assert life.exit_status() == 0


def test_a_start_that_cannot_be_recorded_is_none(life: Life) -> None:
    answer = life.start()
    broken_record(life)
    life.enclave.boot()
    assert life.exit_status() == 255
    error = answer()
    assert isinstance(error, dict)
    assert "container does not exist" in str(error["error"])


def test_an_abandoned_container_gives_everything_back(life: Life) -> None:
    life.monitor.abandon()
    assert life.enclave.closed
    assert not (life.store.root / "c1" / SOCKET_NAME).exists()
