"""One enclave on Nitro hardware, from being prepared to having given everything back.

    prepared    slot, memory and CPUs are taken; the image lies in the memory
    waiting     `start` has been called, and the heartbeat's port is not ours yet
    starting    NE_START_ENCLAVE is on its way, in a thread: the device may keep it for two minutes
    started     the enclave runs; it has said that it is up, or is expected to
    returning   all is being given back, in a thread: that is a call to the device, too
    over        nothing is held any more, and the observer knows

Whatever ends the enclave leads through `returning`. If that happens while starting, it has to wait for the device:
there is no call that stops a start, and the descriptor cannot really be closed while a call is using it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from pyrune.backend import EnclaveEnd, EnclaveFacts, EnclaveObserver, EndKind
from pyrune.errors import BackendError
from pyrune.ne.console import EnclaveConsole
from pyrune.ne.device import EnclaveVm
from pyrune.ne.heartbeat_port import HeartbeatPort
from pyrune.ne.hugepages import free_pages, in_words
from pyrune.ne.memory import EnclaveMemory
from pyrune.ne.parent_vsock import ParentVsock
from pyrune.reactor import READ, Callback, Reactor

_LAST_WORDS_S: Final = 1.0


class Stage(Enum):
    PREPARED = auto()
    WAITING = auto()
    STARTING = auto()
    STARTED = auto()
    RETURNING = auto()
    OVER = auto()


@dataclass(slots=True)
class Holdings:
    """What an enclave holds of the machine. `give_back` may be called again."""

    vm: EnclaveVm
    memory: EnclaveMemory

    def give_back(self) -> list[str]:
        """Stop the enclave and free all; blocks. Returns what is amiss afterwards, in sentences."""
        expected: dict[int, int] = {}
        for region in self.memory.regions:
            expected[region.run.page_bytes] = expected.get(region.run.page_bytes, 0) + region.run.count
        before = free_pages(None)
        # In this order: the kernel keeps the pages of an enclave that runs.
        self.vm.close()
        self.memory.close()
        after = free_pages(None)
        returned = {size: after.get(size, 0) - before.get(size, 0) for size in expected}
        return [
            f"{count} huge pages of {in_words(size)} were given back, but only {returned[size]} more are free: "
            "another program may have taken them, or something still holds the enclave"
            for size, count in expected.items()
            if returned[size] < count
        ]


class NitroEnclave:
    """See pyrune.backend.Enclave. Owns what it is given."""

    def __init__(
        self,
        holdings: Holdings,
        facts: EnclaveFacts,
        vsock: ParentVsock,
        reactor: Reactor,
        observer: EnclaveObserver,
    ) -> None:
        self.facts = facts
        self._holdings = holdings
        self._reactor = reactor
        self._observer = observer
        self._stage = Stage.PREPARED
        self._stop_asked = False
        self._in_thread = False
        self._silent = False
        self._booted = False
        with ExitStack() as undo:
            # Both make their sockets now, in the network namespace that this process is still in.
            self._port = HeartbeatPort(vsock, reactor, self._on_beat)
            undo.callback(self._port.close)
            self._console = EnclaveConsole(vsock, reactor, self._on_console, self._note) if facts.debug else None
            undo.pop_all()

    def start(self) -> None:
        assert self._stage is Stage.PREPARED
        self._stage = Stage.WAITING
        if self._console is None:
            self._note("the enclave is not in debug mode: it has no console, and nothing that it prints can be seen")
        self._port.open(self._on_port, self._on_port_failed)

    def stop(self) -> None:
        if self._stage is Stage.STARTING:
            self._stop_asked = True
            self._note("the device is starting the enclave: it is ended as soon as the device answers")
        elif self._stage not in (Stage.RETURNING, Stage.OVER):
            self._return(EnclaveEnd(EndKind.STOPPED), last_words_s=0)

    def pause_console(self) -> None:
        if self._console is not None:
            self._console.pause()

    def resume_console(self) -> None:
        if self._console is not None:
            self._console.resume()

    def close(self) -> None:
        self._silent = True
        self._stop_asked = True
        self._close_sockets()
        # What a thread is using is given back by the callback that follows it.
        if not self._in_thread and self._stage is not Stage.OVER:
            self._unwatch()
            self._holdings.give_back()
            self._stage = Stage.OVER

    # Starting

    def _on_port(self) -> None:
        if self._stage is Stage.WAITING:
            self._stage = Stage.STARTING
            self._in_thread = True
            self._reactor.in_thread(self._start_vm)

    def _on_port_failed(self, error: BackendError) -> None:
        if self._stage is Stage.WAITING:
            self._return(EnclaveEnd(EndKind.FAILED_TO_START, str(error)), last_words_s=0)

    def _start_vm(self) -> Callback:
        """In a thread. Returns what is to be done in the reactor."""
        try:
            cid = self._holdings.vm.start(self.facts.enclave_cid or 0, debug=self.facts.debug)
        except BackendError as exc:
            end = EnclaveEnd(EndKind.FAILED_TO_START, str(exc))
            return lambda: self._return(end, last_words_s=0)
        return lambda: self._on_started(cid)

    def _on_started(self, cid: int) -> None:
        self._stage = Stage.STARTED
        self._in_thread = False
        if self._stop_asked:
            self._return(EnclaveEnd(EndKind.STOPPED), last_words_s=0)
            return
        self.facts = replace(self.facts, enclave_cid=cid)
        self._note(f"the device has started the enclave as CID {cid}")
        self._reactor.watch(self._holdings.vm.fd, READ, self._on_hang_up)
        if self._console is not None:
            self._console.connect(cid)
        self._port.expect(cid)

    def _on_beat(self) -> None:
        if self._stage is Stage.STARTED and not self._booted:
            self._booted = True
            # Not from within the port's own callback.
            self._reactor.call_soon(self._port.close)
            self._observer.booted()

    # Ending

    def _on_hang_up(self) -> None:
        self._return(EnclaveEnd(EndKind.POWERED_OFF), last_words_s=_LAST_WORDS_S)

    def _return(self, end: EnclaveEnd, last_words_s: float) -> None:
        """Give back everything, in a thread; `ended` follows, after the last of the console."""
        self._in_thread = False
        if self._silent:
            self.close()
            return
        self._stage = Stage.RETURNING
        self._unwatch()
        self._port.close()

        def give_back() -> None:
            self._in_thread = True
            self._reactor.in_thread(lambda: self._returned(self._holdings.give_back(), end))

        if self._console is None:
            give_back()
        else:
            self._console.finish(last_words_s, give_back)

    def _returned(self, notes: list[str], end: EnclaveEnd) -> Callback:
        def tell() -> None:
            self._stage = Stage.OVER
            self._in_thread = False
            self._close_sockets()
            for note in notes:
                self._note(note)
            if not self._silent:
                self._observer.ended(end)

        return tell

    def _unwatch(self) -> None:
        if self._holdings.vm.fd >= 0:
            self._reactor.unwatch(self._holdings.vm.fd)

    def _close_sockets(self) -> None:
        self._port.close()
        if self._console is not None:
            self._console.close()

    def _on_console(self, data: bytes) -> None:
        if not self._silent:
            self._observer.console_output(data)

    def _note(self, sentence: str) -> None:
        if not self._silent:
            self._observer.noted(sentence)
