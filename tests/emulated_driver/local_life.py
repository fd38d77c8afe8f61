"""An enclave that boots: the image found in its memory runs in a local virtual machine.

Its console is the enclave's. Its heartbeat is answered by the local back end, and passed on: when the machine has said
that it is up, the enclave says so to the parent, and is ended if the parent does not take it. The parent reaches the
machine's ports; the machine reaches no other port of the parent's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from pyrune.backend import Enclave as BackendEnclave
from pyrune.backend import EnclaveEnd, EnclaveSpec
from pyrune.errors import PyruneError
from pyrune.local.backend import LocalBackend
from pyrune.reactor import Reactor
from tests.emulated_driver.driver import Driver, Enclave
from tests.emulated_driver.image import look, pieces
from tests.emulated_driver.journal import Journal
from tests.emulated_driver.life import Console, connect_heartbeat, exchange_heartbeat, log_finding
from tests.emulated_driver.scenario import Scenario
from tests.emulated_driver.vsock import VsockSpace


class MachineRoom:
    """A loop in a thread of its own, where all machines are looked after: they block, and calls must not wait for them.

    The thread lives as long as the process: QEMU is killed when the thread that started it ends.
    """

    def __init__(self) -> None:
        self.reactor = Reactor()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], object]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self.reactor.run, daemon=True)
            self._thread.start()
        self.reactor.call_soon(work)

    def close(self) -> None:
        """After all that was asked for has been done."""
        if self._thread is not None:
            self.do(self.reactor.stop)
            self._thread.join()


class LocalLife:
    """See driver.Life, and pyrune.backend.EnclaveObserver, which it is, too. Its state is the room's."""

    def __init__(
        self, driver: Driver, enclave: Enclave, scenario: Scenario, space: VsockSpace, log: Journal, room: MachineRoom
    ) -> None:
        self._driver = driver
        self._enclave = enclave
        self._scenario = scenario
        self._space = space
        self._log = log
        self._room = room
        self._console: Console | None = None
        self._machine: BackendEnclave | None = None
        self._directory: Path | None = None
        self._directory_fd = -1
        self._over = False
        self._reason = ""

    def begin(self) -> None:
        finding = look(self._enclave.memory, self._scenario.image)
        log_finding(self._log, self._enclave, finding)
        if self._enclave.debug:
            self._console = Console(self._space, self._enclave.cid, self._scenario.console_kept_bytes)
        if finding.good:
            image_fd = os.memfd_create("image")
            for piece in pieces(self._enclave.memory):
                os.write(image_fd, piece)
            self._room.do(lambda: self._boot(image_fd))
        else:
            self._room.do(lambda: self._finish("damaged image"))

    def end(self) -> None:
        self._room.do(lambda: self._finish("closed"))

    def exit(self, reason: str) -> None:
        """End the machine, for a reason that goes into the log."""
        self._room.do(lambda: self._finish(reason))

    # --- what the machine says -------------------------------------------------------------------------------------

    def console_output(self, data: bytes) -> None:
        if self._console is not None:
            self._console.write(data)

    def booted(self) -> None:
        threading.Thread(target=self._say_up, daemon=True).start()

    def ended(self, end: EnclaveEnd) -> None:
        reason = f"{end.kind}: {end.reason}" if end.reason else end.kind.value
        self._room.do(lambda: self._finish(reason))

    def noted(self, sentence: str) -> None:
        self._log.event("machine", enclave=self._enclave.number, note=sentence)

    # --- in the room -----------------------------------------------------------------------------------------------

    def _boot(self, image_fd: int) -> None:
        try:
            if not self._over:
                self._start_machine(image_fd)
        except PyruneError as exc:
            self._finish(f"does not boot: {exc}")
        finally:
            os.close(image_fd)

    def _start_machine(self, image_fd: int) -> None:
        spec = EnclaveSpec(
            image_fd=image_fd,
            image_name="the image in the enclave's memory",
            memory_mib=self._enclave.memory.donated_bytes >> 20,
            vcpus=len(self._enclave.vcpus),
            enclave_cid=self._enclave.cid,
            debug=self._enclave.debug,
        )
        self._directory = Path(tempfile.mkdtemp(prefix="emulated-enclave-"))
        self._directory_fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._machine = LocalBackend().prepare(spec, self._directory_fd, self._room.reactor, self)
        self._space.add_machine(self._enclave.cid, self._directory / "vsock")
        self._machine.start()

    def _finish(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        self._space.remove_machine(self._enclave.cid)
        if self._machine is not None:
            self._machine.close()
        if self._directory is not None:
            os.close(self._directory_fd)
            shutil.rmtree(self._directory)
        self._driver.exited(self._enclave, reason)
        if self._console is not None:
            self._console.close()

    def _say_up(self) -> None:
        peer = connect_heartbeat(self._space, self._enclave.cid, 0xB7)
        answered = peer is not None and exchange_heartbeat(peer)
        if not self._over:
            self._log.event("heartbeat", enclave=self._enclave.number, cid=self._enclave.cid, answered=answered)
        if not answered:
            self.exit("heartbeat refused")
