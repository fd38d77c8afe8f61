"""A back end without any machine: an enclave that does what a test, or a script, tells it.

A real implementation of pyrune.backend's contract, and strict about it: it fails when it is used otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrune.backend import BackendName, EnclaveEnd, EnclaveFacts, EnclaveObserver, EnclaveSpec, EndKind
from pyrune.errors import BackendError
from pyrune.reactor import Reactor

FACTS = EnclaveFacts(BackendName.LOCAL, enclave_cid=16, memory_mib=64, vcpus=1, pcr0="0" * 96, pcr1="1", pcr2="2")


class FakeEnclave:
    """See pyrune.backend.Enclave. `calls` says what was asked of it."""

    def __init__(self, reactor: Reactor, observer: EnclaveObserver) -> None:
        self.reactor = reactor
        self.observer = observer
        self.calls: list[str] = []
        self.facts = FACTS
        self.start_error = ""
        self.on_start: Callable[[], object] = lambda: None
        self.stops_late = False
        self.paused = False
        self.has_ended = False
        self.closed = False

    def start(self) -> None:
        assert not self.closed
        assert "start" not in self.calls
        self.calls.append("start")
        if self.start_error:
            raise BackendError(self.start_error)
        self.on_start()

    def stop(self) -> None:
        self.calls.append("stop")
        if not self.stops_late:
            self.reactor.call_soon(self.end_stopped)

    def end_stopped(self) -> None:
        if not self.has_ended:
            self.end(EndKind.STOPPED)

    def end(self, kind: EndKind, reason: str = "") -> None:
        """It comes to its end."""
        assert not self.has_ended
        self.has_ended = True
        if not self.closed:
            self.observer.ended(EnclaveEnd(kind, reason))

    def boot(self) -> None:
        self.observer.booted()

    def print(self, data: bytes) -> None:
        assert not self.closed
        self.observer.console_output(data)

    def pause_console(self) -> None:
        self.paused = True

    def resume_console(self) -> None:
        assert not self.closed
        self.paused = False

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """See pyrune.backend.Backend. Makes one enclave, which `enclave` then is."""

    def __init__(self) -> None:
        self.enclave: FakeEnclave
        self.spec: EnclaveSpec | None = None
        self.error = ""

    def prepare(self, spec: EnclaveSpec, directory_fd: int, reactor: Reactor, observer: EnclaveObserver) -> FakeEnclave:
        self.spec = spec
        if self.error:
            raise BackendError(self.error)
        self.enclave = FakeEnclave(reactor, observer)
        return self.enclave
