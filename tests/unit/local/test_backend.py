"""The local enclave: its tries, its word that it is up, and what it leaves behind. QEMU is a fake one."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyrune.backend import Backend, BackendName, Enclave, EnclaveEnd, EnclaveSpec, EndKind
from pyrune.errors import BackendError, EifError
from pyrune.linux import connect_unix, descendants
from pyrune.local import backend as backend_module
from pyrune.local.backend import LocalBackend
from pyrune.local.qmp import QmpEvent
from pyrune.reactor import Reactor
from tests.support.command import wait_until
from tests.support.programs import TIMEOUT_S, open_descriptors
from tests.support.rounds import run_until
from tests.unit.eif.images import Layout
from tests.unit.local.conftest import POWEROFF, FakeQemu


class Holder:
    """A directory, a reactor and an image for one enclave, and what its observer hears."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.before = set(open_descriptors())
        self.reactor = Reactor()
        self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.image_fd = os.memfd_create("image")
        os.write(self.image_fd, Layout().build())
        self.spec = EnclaveSpec(self.image_fd, "test.eif", memory_mib=None, vcpus=1, enclave_cid=None, debug=False)
        self.printed = b""
        self.boots = 0
        self.ends: list[EnclaveEnd] = []
        self.notes: list[str] = []
        self.enclave: Enclave

    def console_output(self, data: bytes) -> None:
        self.printed += data

    def booted(self) -> None:
        self.boots += 1

    def ended(self, end: EnclaveEnd) -> None:
        self.ends.append(end)

    def noted(self, sentence: str) -> None:
        self.notes.append(sentence)

    def prepare(self) -> Enclave:
        backend: Backend = LocalBackend()
        self.enclave = backend.prepare(self.spec, self.directory_fd, self.reactor, self)
        return self.enclave

    def end(self) -> EnclaveEnd:
        run_until(self.reactor, lambda: bool(self.ends))
        (end,) = self.ends
        return end

    def beat(self) -> None:
        with connect_unix(self.directory_fd, "vsock_9000", TIMEOUT_S) as peer:
            peer.sendall(b"\xb7")
            run_until(self.reactor, lambda: bool(select.select([peer], [], [], 0)[0]))
            assert peer.recv(1) == b"\xb7"

    def serve_for(self, seconds: float) -> None:
        over: list[None] = []
        self.reactor.call_later(seconds, lambda: over.append(None))
        run_until(self.reactor, lambda: bool(over))

    def close(self) -> None:
        if hasattr(self, "enclave"):
            self.enclave.close()
            self.enclave.close()
        wait_until(lambda: not descendants(os.getpid()), "a process is left", timeout_s=10)
        assert os.listdir(self.directory) == []
        os.close(self.directory_fd)
        os.close(self.image_fd)
        self.reactor.close()
        assert set(open_descriptors()) == self.before


@pytest.fixture
def holder(tmp_path: Path, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holder]:
    monkeypatch.setattr(backend_module, "kvm_works", lambda _architecture: False)
    made = Holder(tmp_path / "container")
    yield made
    made.close()


STOP = 'event {"event": "STOP"}'


def test_its_facts_are_the_images_and_what_it_was_given(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script("run wait")
    holder.spec = replace(holder.spec, memory_mib=300, vcpus=3, enclave_cid=77)
    facts = holder.prepare().facts
    assert (facts.backend, facts.memory_mib, facts.vcpus, facts.enclave_cid) == (BackendName.LOCAL, 300, 3, 77)
    assert [len(pcr) for pcr in (facts.pcr0, facts.pcr1, facts.pcr2)] == [96, 96, 96]
    assert facts.pcr8 is None
    # The device makes its own a moment later.
    wait_until(lambda: sorted(os.listdir(holder.directory)) == ["vsock", "vsock_9000"], "a socket is missing")
    assert (fake_qemu.arguments[fake_qemu.arguments.index("-m") + 1]) == "300M"


def test_a_beat_is_a_boot_once(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script("run print hello | wait")
    holder.prepare().start()
    holder.beat()
    holder.beat()
    assert holder.boots == 1
    run_until(holder.reactor, lambda: holder.printed == b"hello\n")
    holder.enclave.stop()
    assert holder.end() == EnclaveEnd(EndKind.STOPPED)


def test_a_silent_boot_is_tried_once_more_and_only_once(
    holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "SILENCE_S", 0.1)
    fake_qemu.script("run wait", "run wait", "run exit 9")
    holder.prepare().start()
    run_until(holder.reactor, lambda: len(holder.notes) == 3)
    holder.serve_for(0.3)
    assert holder.notes == [
        "boots under tcg (try 1)",
        "the enclave said nothing for 0 s: ended, and tried once more",
        "boots under tcg (try 2)",
    ]
    assert holder.ends == []
    holder.beat()


@pytest.mark.parametrize("sign", ["print", "beat"])
def test_an_enclave_that_says_something_is_not_tried_again(
    sign: str, holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu.script("run print hello | wait" if sign == "print" else "run wait")
    holder.prepare()
    monkeypatch.setattr(backend_module, "SILENCE_S", 0.5)
    holder.enclave.start()
    if sign == "print":
        run_until(holder.reactor, lambda: bool(holder.printed))
    else:
        holder.beat()
    holder.serve_for(0.6)
    assert holder.notes == ["boots under tcg (try 1)"]


def test_a_second_try_that_fails_is_the_end(
    holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "SILENCE_S", 0.05)
    fake_qemu.script("run wait", "say no memory | exit 1")
    holder.prepare().start()
    assert holder.end() == EnclaveEnd(EndKind.BROKE, "qemu ended before it was ready: no memory")
    holder.enclave.stop()


def test_a_kvm_that_fails_is_replaced(holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "kvm_works", lambda _architecture: True)
    # Two events of one read are one failure.
    fake_qemu.script(f"run {STOP} | {STOP} | wait", f"run print hello | {POWEROFF}")
    holder.prepare().start()
    assert holder.end().kind is EndKind.POWERED_OFF
    assert holder.notes == [
        "boots under kvm (try 1)",
        "kvm failed with an internal error; from here on without kvm: ended, and tried once more",
        "boots under tcg (try 2)",
    ]
    assert fake_qemu.arguments[fake_qemu.arguments.index("-accel") + 1] == "tcg"


def test_an_emulator_that_fails_is_the_end(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script(f"run {STOP} | wait")
    holder.prepare().start()
    assert holder.end() == EnclaveEnd(EndKind.BROKE, "the virtual machine stands still after an internal error")
    assert "vsock" not in os.listdir(holder.directory)


def test_what_is_being_stopped_is_not_tried_again(
    holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "kvm_works", lambda _architecture: True)
    fake_qemu.script("run wait", "run wait")
    enclave = LocalBackend().prepare(holder.spec, holder.directory_fd, holder.reactor, holder)
    holder.enclave = enclave
    enclave.start()
    enclave.stop()
    assert enclave._machine is not None
    # It was under way when the stop was asked for.
    enclave._machine._on_event(QmpEvent("STOP", ""))
    assert holder.end() == EnclaveEnd(EndKind.STOPPED)
    assert len(holder.notes) == 1


def test_a_paused_console_stays_so_in_the_second_try(
    holder: Holder, fake_qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "SILENCE_S", 0.05)
    fake_qemu.script("run wait", "run print hello | wait")
    holder.prepare().start()
    holder.enclave.pause_console()
    run_until(holder.reactor, lambda: len(holder.notes) == 3)
    holder.serve_for(0.1)
    assert holder.printed == b""
    holder.enclave.resume_console()
    run_until(holder.reactor, lambda: holder.printed == b"hello\n")


def test_what_was_never_started_can_be_stopped_or_closed(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script("run wait")
    holder.prepare().stop()
    assert holder.end() == EnclaveEnd(EndKind.STOPPED)


def test_after_close_nothing_is_heard(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script(f"run print hello | {POWEROFF}")
    holder.prepare().start()
    holder.enclave.close()
    holder.serve_for(0.1)
    assert (holder.printed, holder.ends) == (b"", [])
    holder.enclave.stop()
    holder.enclave.pause_console()
    holder.enclave.resume_console()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"memory_mib": 10}, r"is given 10 MiB of memory, its image needs at least 65 MiB; say memory=65 or more"),
        ({"memory_mib": 1 << 40}, r"this machine has [0-9]+ MiB in all; say memory= with less"),
        ({"vcpus": 256}, r"is given 256 vCPUs, the local virtual machine has 255 at most; say vcpus=255 or less"),
    ],
)
def test_sizes_that_cannot_work_are_named(changes: dict[str, int], problem: str, holder: Holder) -> None:
    holder.spec = replace(holder.spec, **changes)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=problem):
        holder.prepare()


def test_a_damaged_image_takes_nothing(holder: Holder) -> None:
    os.pwrite(holder.image_fd, b"\xff", 600)
    with pytest.raises(EifError, match="it is damaged"):
        holder.prepare()


def test_a_qemu_that_does_not_come_up_takes_nothing(holder: Holder, fake_qemu: FakeQemu) -> None:
    fake_qemu.script("exit 1")
    with pytest.raises(BackendError, match="qemu ended before it was ready"):
        holder.prepare()


def test_a_port_that_is_taken_is_an_error_of_ours(holder: Holder) -> None:
    (holder.directory / "vsock_9000").touch()
    with pytest.raises(BackendError, match=r"heartbeat.*\(error 98\)"):
        holder.prepare()
    (holder.directory / "vsock_9000").unlink()
