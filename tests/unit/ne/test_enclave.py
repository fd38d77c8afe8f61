"""The stages of an enclave, with a scripted device and unix sockets for vsock. The real calls: tests/nitro."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from pyrune.backend import BackendName, EnclaveEnd, EnclaveFacts, EndKind
from pyrune.ne.device import EnclaveVm, ioctl_error
from pyrune.ne.enclave import Holdings, NitroEnclave
from pyrune.ne.memory import EnclaveMemory
from pyrune.reactor import Reactor
from tests.unit.ne.loop import new_reactor, run_for, run_until
from tests.unit.ne.unix_vsock import UnixVsock

CID = 33


class ScriptedVm:
    """A descriptor that hangs up when told to, and a start that takes as long as it is told to."""

    def __init__(self, error: int = 0) -> None:
        self.fd, self._other = os.pipe2(os.O_CLOEXEC)
        self._error = error
        self.may_start = threading.Event()
        self.may_start.set()
        self.may_close = threading.Event()
        self.may_close.set()
        self.started_as: tuple[int, bool] | None = None
        self.before_return: Callable[[], object] = list
        self.closes = 0

    def start(self, enclave_cid: int, *, debug: bool) -> int:
        assert self.closes == 0
        self.before_return()
        assert self.may_start.wait(30)
        if self._error:
            raise ioctl_error("the enclave cannot be started (NE_START_ENCLAVE)", self._error)
        self.started_as = (enclave_cid, debug)
        return enclave_cid or CID

    def hang_up(self) -> None:
        other, self._other = self._other, -1
        if other >= 0:
            os.close(other)

    def close(self) -> None:
        assert self.may_close.wait(30)
        self.closes += 1
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self.hang_up()


class Observer:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.console = b""
        self.ends: list[EnclaveEnd] = []
        self.notes: list[str] = []

    def console_output(self, data: bytes) -> None:
        self.console += data

    def booted(self) -> None:
        self.heard.append("booted")

    def ended(self, end: EnclaveEnd) -> None:
        self.heard.append(str(end.kind))
        self.ends.append(end)

    def noted(self, sentence: str) -> None:
        self.notes.append(sentence)


class Stand:
    """One enclave on its stand."""

    def __init__(self, reactor: Reactor, *, debug: bool = False, cid: int | None = None, error: int = 0) -> None:
        self.reactor = reactor
        self.vsock = UnixVsock()
        self.vm = ScriptedVm(error)
        self.observer = Observer()
        facts = EnclaveFacts(BackendName.NITRO, cid, 64, 2, "0" * 96, "1" * 96, "2" * 96, debug=debug)
        holdings = Holdings(cast(EnclaveVm, self.vm), EnclaveMemory([]))
        self.enclave = NitroEnclave(holdings, facts, self.vsock, reactor, self.observer)

    def until(self, done: Callable[[], bool]) -> None:
        run_until(self.reactor, done)

    def beat(self, cid: int = CID) -> None:
        with self.vsock.call_parent(cid, 9000) as enclave:
            enclave.sendall(b"\xb7")
            self.until(lambda: self.observer.heard != [])
            assert enclave.recv(1) == b"\xb7"

    def start(self) -> None:
        self.enclave.start()
        self.until(lambda: self.vm.started_as is not None and not self.enclave._in_thread)

    def boot(self) -> None:
        self.start()
        self.beat()


MakeStand = Callable[..., Stand]


@pytest.fixture
def make_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MakeStand]:
    monkeypatch.setattr("pyrune.ne.heartbeat_port.default_directory", lambda: tmp_path / "m")
    with new_reactor() as reactor, ExitStack() as cleanup:

        def make(**options: object) -> Stand:
            stand = Stand(reactor, **options)  # type: ignore[arg-type]
            cleanup.callback(run_for, reactor, 0.05)
            cleanup.callback(stand.enclave.close)
            cleanup.callback(stand.vm.may_start.set)
            return stand

        yield make


def test_it_boots_with_its_heartbeat_and_ends_with_the_hang_up(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    assert stand.vm.started_as == (0, False)
    assert stand.enclave.facts.enclave_cid == CID
    stand.vm.hang_up()
    stand.until(lambda: bool(stand.observer.ends))
    assert stand.observer.heard == ["booted", "powered off"]
    assert stand.vm.closes == 1


def test_a_given_cid_is_passed_on(make_stand: MakeStand) -> None:
    stand = make_stand(cid=77)
    assert stand.enclave.facts.enclave_cid == 77
    stand.start()
    assert stand.vm.started_as == (77, False)
    stand.beat(77)


def test_a_heartbeat_before_the_start_returns_counts_once_it_has_returned(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.vm.may_start.clear()
    stand.enclave.start()
    stand.until(lambda: stand.enclave._in_thread)
    with stand.vsock.call_parent(CID, 9000) as enclave:
        enclave.sendall(b"\xb7")
        run_for(stand.reactor, 0.1)
        assert stand.observer.heard == []
        stand.vm.may_start.set()
        stand.until(lambda: stand.observer.heard == ["booted"])
        assert enclave.recv(1) == b"\xb7"


def test_the_port_is_released_after_the_boot(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    run_for(stand.reactor, 0.05)
    with stand.vsock.make() as another:
        stand.vsock.listen(another, 9000)


def test_a_start_that_fails_returns_everything_and_says_why(make_stand: MakeStand) -> None:
    stand = make_stand(error=269)
    stand.enclave.start()
    stand.until(lambda: bool(stand.observer.ends))
    [end] = stand.observer.ends
    assert end.kind is EndKind.FAILED_TO_START
    assert end.reason.startswith("the enclave cannot be started (NE_START_ENCLAVE): ")
    assert stand.vm.closes == 1


def test_stop_ends_a_running_enclave(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    stand.enclave.stop()
    stand.enclave.stop()
    stand.until(lambda: bool(stand.observer.ends))
    assert stand.observer.heard == ["booted", "stopped"]
    assert stand.vm.closes == 1


def test_stop_before_the_start_ends_it(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.enclave.stop()
    stand.until(lambda: bool(stand.observer.ends))
    assert stand.observer.heard == ["stopped"]
    assert stand.vm.started_as is None


def test_stop_while_the_port_is_waited_for_ends_it(make_stand: MakeStand) -> None:
    stand = make_stand()
    with stand.vsock.make() as another_program:
        stand.vsock.listen(another_program, 9000)
        stand.enclave.start()
        run_for(stand.reactor, 0.15)
        stand.enclave.stop()
        stand.until(lambda: bool(stand.observer.ends))
    run_for(stand.reactor, 0.15)
    assert stand.observer.heard == ["stopped"]
    assert stand.vm.started_as is None


def test_stop_while_the_device_starts_it_waits_for_the_device_only(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.vm.may_start.clear()
    stand.enclave.start()
    stand.until(lambda: stand.enclave._in_thread)
    stand.enclave.stop()
    run_for(stand.reactor, 0.1)
    assert stand.observer.ends == []
    assert "as soon as the device answers" in stand.observer.notes[-1]
    stand.vm.may_start.set()
    stand.until(lambda: bool(stand.observer.ends))
    assert stand.observer.heard == ["stopped"]
    assert stand.vm.closes == 1


def test_the_reactor_goes_on_while_the_device_takes_its_time_to_stop_it(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    stand.vm.may_close.clear()
    stand.enclave.stop()
    run_for(stand.reactor, 0.1)
    assert stand.observer.heard == ["booted"]
    stand.vm.may_close.set()
    stand.until(lambda: bool(stand.observer.ends))


def test_a_heartbeat_from_another_enclave_boots_nothing(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.start()
    with stand.vsock.call_parent(CID + 1, 9000) as another:
        another.sendall(b"\xb7")
        run_for(stand.reactor, 0.1)
    assert stand.observer.heard == []


def test_the_console_is_handed_over_up_to_its_end(make_stand: MakeStand) -> None:
    stand = make_stand(debug=True)
    with stand.vsock.serve(0, 10000 + CID) as listener:
        listener.settimeout(20)
        stand.start()
        assert stand.vm.started_as == (0, True)
        with listener.accept()[0] as console:
            console.sendall(b"early ")
            stand.beat()
            console.sendall(b"late")
            stand.vm.hang_up()
    stand.until(lambda: bool(stand.observer.ends))
    assert stand.observer.console == b"early late"


def test_without_debug_mode_the_lack_of_a_console_is_noted_once(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    assert len([note for note in stand.observer.notes if "has no console" in note]) == 1


def test_close_is_silent_and_final(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.boot()
    stand.enclave.close()
    stand.enclave.close()
    run_for(stand.reactor, 0.1)
    assert stand.observer.heard == ["booted"]
    assert stand.vm.closes == 1


def test_close_while_the_device_starts_it_returns_everything_later(make_stand: MakeStand) -> None:
    stand = make_stand()
    stand.vm.may_start.clear()
    stand.enclave.start()
    stand.until(lambda: stand.enclave._in_thread)
    stand.enclave.close()
    assert stand.vm.closes == 0
    stand.vm.may_start.set()
    stand.until(lambda: stand.vm.closes == 1)
    assert stand.observer.heard == []
