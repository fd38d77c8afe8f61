"""The life of one container, as its monitor leads it.

    created   the enclave is prepared; nothing of it has run
    booting   `start` has been asked for and waits for the enclave's word, or the deadline
    running   the enclave has said that it is up
    ended     everything is given back; the exit status is decided, its output is still being written

The exit status of an image that reports none is 0 when it ends by itself after its heartbeat, 255 with a reason before
it or after a kernel panic, and 128 + N when signal N ended it.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from enum import Enum, auto

from pyrune.backend import Backend, Enclave, EnclaveEnd, EnclaveSpec, EndKind, boot_deadline_s
from pyrune.errors import BackendError, BootError, PyruneError
from pyrune.linux import ProcessIdentity
from pyrune.monitor.control import ControlServer, Reply, Request
from pyrune.monitor.kernel_panic import PanicWatch
from pyrune.monitor.output import OutputWriter
from pyrune.monitor.recording import ConsoleRecording
from pyrune.reactor import Reactor, Timer
from pyrune.state import ContainerDirectory, Status

FAILED_STATUS = 255
_OUTPUT_PATIENCE_S = 10.0
_PANIC_GRACE_S = 1.0
# What ends a container whose guest takes no signals. The init of a container ignores what it has no handler for, and so
# does such a guest with every other signal.
ENDING_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL})

logger = logging.getLogger(__name__)


class Phase(Enum):
    CREATED = auto()
    BOOTING = auto()
    RUNNING = auto()
    ENDED = auto()


class Monitor:
    """Drives one enclave and observes it. `on_exit` is called with the exit status once nothing is left to do."""

    def __init__(
        self, directory: ContainerDirectory, reactor: Reactor, output_fd: int, on_exit: Callable[[int], None]
    ) -> None:
        self._directory = directory
        self._reactor = reactor
        self._on_exit = on_exit
        self._phase = Phase.CREATED
        self._enclave: Enclave | None = None
        self._recording = ConsoleRecording(directory.fd)
        self._output = OutputWriter(output_fd, reactor, self._resume_console)
        self._panic = PanicWatch()
        self._ending_signal = 0
        self._boot_deadline: Timer | None = None
        self._boot_timeout_s = 0.0
        self._boot_failure = ""
        self._start_reply: Reply | None = None
        self._control: ControlServer | None = None

    def announce(self) -> None:
        """Write into the record that this process is the container's from now on."""
        identity = ProcessIdentity.of(os.getpid())
        self._directory.write(replace(self._directory.read(), monitor=identity))

    def prepare(self, backend: Backend, spec: EnclaveSpec, boot_timeout_s: float | None) -> None:
        """Take all that the enclave needs and be ready for `start`. Raises PyruneError, having taken nothing."""
        self._enclave = backend.prepare(spec, self._directory.fd, self._reactor, self)
        try:
            self._get_ready(self._enclave, spec, boot_timeout_s)
        except BaseException:
            self.abandon()
            raise

    def _get_ready(self, enclave: Enclave, spec: EnclaveSpec, boot_timeout_s: float | None) -> None:
        image_bytes = os.fstat(spec.image_fd).st_size
        self._boot_timeout_s = boot_timeout_s or boot_deadline_s(image_bytes, enclave.facts.memory_mib)
        self._control = ControlServer(self._directory.fd, self._reactor, self._on_request)
        record = self._directory.read()
        self._directory.write(replace(record, written_status=Status.CREATED, facts=enclave.facts))
        logger.info("created: backend %s, PCR0 %s", enclave.facts.backend, enclave.facts.pcr0)

    def abandon(self) -> None:
        """Give everything back: the call that wanted this container is gone."""
        if self._enclave is not None:
            self._enclave.close()
        if self._control is not None:
            self._control.close()

    def end_by_signal(self, number: int) -> None:
        """What `kill` does, and a signal that reaches the monitor itself."""
        if number not in ENDING_SIGNALS:
            logger.info("signal %d is not delivered: the enclave takes no signals", number)
        elif self._phase is not Phase.ENDED and not self._ending_signal:
            self._ending_signal = number
            logger.info("signal %d ends the enclave", number)
            self._held_enclave.stop()

    # What the enclave says (pyrune.backend.EnclaveObserver)

    def console_output(self, data: bytes) -> None:
        self._recording.append(data)
        was_over = self._panic.over
        self._panic.feed(data)
        if not self._output.write(data):
            self._held_enclave.pause_console()
        if self._panic.over and not was_over:
            # Some kernels stand still for ever after a panic.
            self._reactor.call_later(_PANIC_GRACE_S, self._stop_panicked)

    def booted(self) -> None:
        if self._phase is not Phase.BOOTING or self._ending_signal or self._boot_failure:
            # It comes too late: this enclave is being ended.
            return
        try:
            # Some facts are known only now.
            facts = self._held_enclave.facts
            self._directory.write(replace(self._directory.read(), written_status=Status.RUNNING, facts=facts))
        except PyruneError as exc:
            # Nobody would know of it that it runs.
            self._boot_failure = str(exc)
            self._held_enclave.stop()
            return
        self._phase = Phase.RUNNING
        self._cancel_deadline()
        logger.info("running")
        self._answer_start(None)

    def ended(self, end: EnclaveEnd) -> None:
        had_booted = self._phase is Phase.RUNNING
        self._phase = Phase.ENDED
        self._cancel_deadline()
        status, reason = self._judge(end, had_booted)
        logger.info("ended with status %d%s", status, f": {reason}" if reason else "")
        self._held_enclave.close()
        self._finish_output(lambda: self._finish(status, reason))

    def noted(self, sentence: str) -> None:
        logger.info("%s", sentence)

    # How it goes on

    @property
    def _held_enclave(self) -> Enclave:
        assert self._enclave is not None
        return self._enclave

    def _on_request(self, request: Request, reply: Reply) -> None:
        if request.verb == "start":
            self._start(reply)
        elif request.verb == "kill":
            if self._phase is Phase.ENDED:
                reply("container not running")
                return
            self.end_by_signal(request.signal)
            reply(None)
        else:
            reply(f"the monitor knows no verb {request.verb!r}")

    def _start(self, reply: Reply) -> None:
        if self._phase is Phase.ENDED or self._ending_signal:
            reply("cannot start a container that has stopped")
        elif self._phase is not Phase.CREATED:
            reply("cannot start an already running container")
        else:
            self._phase = Phase.BOOTING
            self._start_reply = reply
            self._boot_deadline = self._reactor.call_later(self._boot_timeout_s, self._on_deadline)
            try:
                self._held_enclave.start()
            except BackendError as exc:
                self.ended(EnclaveEnd(EndKind.FAILED_TO_START, str(exc)))

    def _on_deadline(self) -> None:
        self._boot_failure = f"the enclave has not booted within {self._boot_timeout_s:.0f} s"
        self._held_enclave.stop()

    def _stop_panicked(self) -> None:
        if self._phase is not Phase.ENDED:
            self._held_enclave.stop()

    def _resume_console(self) -> None:
        if self._phase is not Phase.ENDED:
            self._held_enclave.resume_console()

    def _judge(self, end: EnclaveEnd, had_booted: bool) -> tuple[int, str]:
        """The exit status, and its reason when that is not plain."""
        if self._ending_signal:
            return 128 + self._ending_signal, "" if had_booted else "ended by a signal before it had booted"
        if self._panic.reason:
            return FAILED_STATUS, self._panic.reason
        if self._boot_failure:
            return FAILED_STATUS, self._boot_failure
        if had_booted and end.kind is EndKind.POWERED_OFF:
            return 0, ""
        reason = end.reason or f"the enclave {end.kind}"
        if end.kind is EndKind.FAILED_TO_START:
            return FAILED_STATUS, reason
        return FAILED_STATUS, reason if had_booted else f"{reason} before it had booted"

    def _finish_output(self, then: Callable[[], None]) -> None:
        """Call `then` when all output is written, or when nobody has taken any of it for a while."""
        done = False

        def finish_once() -> None:
            nonlocal done
            if not done:
                done = True
                then()

        def look(written_before: int) -> None:
            if self._output.written_bytes == written_before:
                finish_once()
            else:
                written = self._output.written_bytes
                self._reactor.call_later(_OUTPUT_PATIENCE_S, lambda: look(written))

        self._output.when_drained(finish_once)
        written = self._output.written_bytes
        self._reactor.call_later(_OUTPUT_PATIENCE_S, lambda: look(written))

    def _finish(self, status: int, reason: str) -> None:
        try:
            record = self._directory.read()
            self._directory.write(replace(record, written_status=Status.STOPPED, exit_status=status, reason=reason))
        except PyruneError as exc:
            # That this process has ended says the rest, and its exit status matters more.
            logger.error("the end cannot be recorded: %s", exc)
        if self._start_reply is not None:
            self._answer_start(self._start_error(reason))
        if self._control is not None:
            self._control.close()
        self._recording.close()
        self._on_exit(status)

    def _start_error(self, reason: str) -> str:
        if self._ending_signal:
            return str(BackendError(f"the enclave was ended by signal {self._ending_signal} before it had booted"))
        return str(BootError(reason, console_tail=self._recording.tail()))

    def _answer_start(self, error: str | None) -> None:
        if self._start_reply is not None:
            self._start_reply(error)
            self._start_reply = None

    def _cancel_deadline(self) -> None:
        if self._boot_deadline is not None:
            self._boot_deadline.cancel()
