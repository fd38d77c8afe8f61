"""What an enclave does between NE_START_ENCLAVE and its end: boot, print, say that it is up, exit.

It does what AWS's init does: one connection to the parent's port 9000, one byte each way; it exits (panics) when nobody
takes the connection or the answer is wrong, and waits for ever when there is no answer. So does one whose image is
damaged, which never gets that far.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import Final

from tests.emulated_driver.driver import Driver, Enclave
from tests.emulated_driver.image import Finding, look
from tests.emulated_driver.journal import Journal
from tests.emulated_driver.scenario import Behaviour, Heartbeat, Scenario
from tests.emulated_driver.vsock import CONSOLE_PORT_BASE, HYPERVISOR_CID, PARENT_CID, Address, VsockSpace

HEARTBEAT_PORT: Final = 9000
_CONNECT_TIMEOUT_S: Final = 5.0


class Console:
    """The debug console: a port of the hypervisor's. Who connects gets what was printed before, and what follows.

    How much of what came before the hypervisor keeps is not known: `kept_bytes`, the last ones.
    """

    def __init__(self, space: VsockSpace, cid: int, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        self._printed = bytearray()
        self._dropped = 0
        self._closed = False
        self._more = threading.Condition()
        self._listener = space.listen(Address(HYPERVISOR_CID, CONSOLE_PORT_BASE + cid))
        self._listener.setblocking(False)
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC)
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def write(self, data: bytes) -> None:
        with self._more:
            self._printed += data
            excess = max(0, len(self._printed) - self._kept_bytes)
            del self._printed[:excess]
            self._dropped += excess
            self._more.notify_all()

    def close(self) -> None:
        """Nothing more will be printed; readers get the rest, and then the end."""
        with self._more:
            self._closed = True
            self._more.notify_all()
        os.close(self._wake_w)
        self._server.join()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake_r, 0)
        over = False
        # Who connected before the end is still served.
        while not over:
            over = any(fd == self._wake_r for fd, _ in poll.poll())
            with contextlib.suppress(BlockingIOError):
                while True:
                    reader, _ = self._listener.accept()
                    reader.setblocking(True)
                    threading.Thread(target=self._feed, args=[reader], daemon=True).start()
        self._listener.close()
        os.close(self._wake_r)

    def _feed(self, reader: socket.socket) -> None:
        position = 0
        with reader, contextlib.suppress(OSError):
            while True:
                with self._more:
                    while not self._closed and position >= self._dropped + len(self._printed):
                        self._more.wait()
                    data = bytes(self._printed[max(0, position - self._dropped) :])
                    position = self._dropped + len(self._printed)
                if not data:
                    return
                reader.sendall(data)


class PretendedLife:
    """An enclave that only pretends to run its image, after the image was found in its memory. See driver.Life."""

    def __init__(
        self,
        driver: Driver,
        enclave: Enclave,
        scenario: Scenario,
        behaviour: Behaviour,
        space: VsockSpace,
        log: Journal,
    ) -> None:
        self._driver = driver
        self._enclave = enclave
        self._scenario = scenario
        self._behaviour = behaviour
        self._space = space
        self._log = log
        self._console: Console | None = None
        self._over = threading.Event()
        self._reason = ""

    def begin(self) -> None:
        finding = look(self._enclave.memory, self._scenario.image)
        log_finding(self._log, self._enclave, finding)
        if self._enclave.debug:
            self._console = Console(self._space, self._enclave.cid, self._scenario.console_kept_bytes)
        peer = None
        if finding.good and self._behaviour.heartbeat is Heartbeat.BEFORE:
            peer = self._connect()
        threading.Thread(target=self._run, args=[finding.good, peer], daemon=True).start()

    def end(self) -> None:
        self.exit("closed")

    def exit(self, reason: str) -> None:
        """Have it exit, for a reason that goes into the log."""
        self._reason = self._reason or reason
        self._over.set()

    def print(self, text: str) -> None:
        """Print on the console, if it has one."""
        if self._console is not None:
            self._console.write(text.encode())

    def beat(self) -> bool:
        """Another heartbeat, which AWS's init never sends. Whether it was answered."""
        peer = self._connect()
        return peer is not None and exchange_heartbeat(peer)

    def _run(self, good: bool, peer: socket.socket | None) -> None:
        if good:
            self._live(peer)
        else:
            self.exit("damaged image")
        self._driver.exited(self._enclave, self._reason)
        if self._console is not None:
            self._console.close()

    def _live(self, peer: socket.socket | None) -> None:
        self.print(self._behaviour.console)
        if self._behaviour.heartbeat is not Heartbeat.NEVER:
            threading.Thread(target=self._say_up, args=[peer], daemon=True).start()
        if not self._over.wait(self._behaviour.exit_after_s):
            self.exit("by itself")

    def _say_up(self, peer: socket.socket | None) -> None:
        if self._behaviour.heartbeat is Heartbeat.AFTER:
            if self._over.wait(self._behaviour.heartbeat_delay_s):
                return
            peer = self._connect()
        answered = peer is not None and exchange_heartbeat(peer)
        if not self._over.is_set():
            self._log.event("heartbeat", enclave=self._enclave.number, cid=self._enclave.cid, answered=answered)
        if not answered:
            self.exit("heartbeat refused")

    def _connect(self) -> socket.socket | None:
        return connect_heartbeat(self._space, self._enclave.cid, self._behaviour.heartbeat_byte)


def connect_heartbeat(space: VsockSpace, cid: int, beat: int) -> socket.socket | None:
    """A connection to the parent with the beat under way; None where nobody takes it."""
    try:
        peer = space.connect(cid, Address(PARENT_CID, HEARTBEAT_PORT), _CONNECT_TIMEOUT_S)
        peer.sendall(bytes([beat]))
    except OSError:
        return None
    return peer


def exchange_heartbeat(peer: socket.socket) -> bool:
    """Wait for the answer, as long as it takes; whether it is the right one. Closes the connection."""
    with peer, contextlib.suppress(OSError):
        peer.settimeout(None)
        return peer.recv(1) == b"\xb7"
    return False


def log_finding(log: Journal, enclave: Enclave, finding: Finding) -> None:
    log.event(
        "image",
        enclave=enclave.number,
        compared_bytes=finding.compared_bytes,
        good=finding.good,
        difference=finding.difference,
        moved_pages=finding.moved_pages,
    )
