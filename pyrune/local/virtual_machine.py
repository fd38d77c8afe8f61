"""One QEMU process with its vsock device: a single try to run an image.

The two processes die with the one that made them. The machine has ended when QEMU has exited and all that its console
said has been handed over; QEMU's own exit says how, with what its last event said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from pyrune.backend import EnclaveEnd, EndKind
from pyrune.errors import BackendError, printable
from pyrune.local.machine import Machine, arguments, program_name
from pyrune.local.qmp import QmpClient, QmpEvent
from pyrune.process import Child, find_program, spawn_child
from pyrune.reactor import READ, Reactor

# QEMU is up within a second; a machine that is busy enough may need many.
_READY_TIMEOUT_S = 60.0
_QEMU_EXIT_PATIENCE_S = 5.0
# Longer than the device lingers, see LINGER_S of pyrune.local.vsock_device.
_DEVICE_EXIT_PATIENCE_S = 3.0
_CONSOLE_CHUNK_BYTES = 65536
# QMP's SHUTDOWN reasons that come from the guest itself, see QEMU's qapi/run-state.json.
_GUEST_REASONS = frozenset({"guest-shutdown", "guest-reset"})


@dataclass(frozen=True, slots=True)
class MachineObserver:
    """What a machine reports. `internal_error` is KVM's: the guest stands still and QEMU lives on."""

    console_output: Callable[[bytes], None]
    ended: Callable[[EnclaveEnd], None]
    internal_error: Callable[[], None]
    noted: Callable[[str], None]


class VirtualMachine:
    """See the module. `close` may be called at any time, and more than once; then no callback follows."""

    def __init__(self, reactor: Reactor, observer: MachineObserver) -> None:
        self._reactor = reactor
        self._observer = observer
        self._undo = ExitStack()
        self._qemu_status: int | None = None
        self._shutdown_reason = ""
        self._device_ended = False
        self._stop_asked = False
        self._reported = False
        self._prepared = False
        self._closed = False

    def prepare(self, make_machine: Callable[[int, int, int], Machine], guest_cid: int, directory_fd: int) -> None:
        """Start QEMU, paused, and the device. `make_machine` is given QEMU's ends of console, vsock and QMP.

        The device's sockets appear in the directory. Raises BackendError, with nothing left running.
        """
        with ExitStack() as undo:
            self._complaints = undo.enter_context(Complaints())
            console, qemu_console = self._pair(undo)
            device_vsock, qemu_vsock = self._pair(undo)
            qmp, qemu_qmp = self._pair(undo)
            machine = make_machine(qemu_console.fileno(), qemu_vsock.fileno(), qemu_qmp.fileno())
            complaints_fd = self._complaints.write_fd
            device = _start_device(device_vsock, guest_cid, directory_fd, complaints_fd)
            self._device = undo.enter_context(_ended_with(device))
            self._qemu = undo.enter_context(_ended_with(_start_qemu(machine, complaints_fd)))
            for end in (qemu_console, device_vsock, qemu_vsock, qemu_qmp):
                end.close()
            self._qmp = QmpClient(qmp)
            self._shake_hands()
            self._console = console
            self._undo = undo.pop_all()
        self._prepared = True
        self._watch()

    def run(self) -> None:
        """Let the guest execute."""
        self._qmp.send("cont")

    def stop(self) -> None:
        """End the machine now; the observer hears STOPPED."""
        self._stop_asked = True
        self._qemu.kill()
        if self._qemu_status is not None:
            self._report_end()

    def pause_console(self) -> None:
        self._reactor.unwatch(self._console.fileno())

    def resume_console(self) -> None:
        if self._qemu_status is None and not self._closed:
            self._reactor.watch(self._console.fileno(), READ, self._read_console)

    def close(self) -> None:
        if self._prepared and not self._closed:
            self._closed = True
            for fd in (self._console.fileno(), self._qemu.pidfd, self._device.pidfd, self._complaints.read_fd):
                self._reactor.unwatch(fd)
            self._qmp.close()
            self._undo.close()

    @staticmethod
    def _pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        undo.callback(theirs.close)
        return ours, theirs

    def _watch(self) -> None:
        self._console.setblocking(False)
        self.resume_console()
        self._qmp.attach(self._reactor, self._on_event)
        self._reactor.watch(self._complaints.read_fd, READ, self._note_complaints)
        self._reactor.watch(self._qemu.pidfd, READ, self._on_qemu_exit)
        self._reactor.watch(self._device.pidfd, READ, self._on_device_exit)

    def _shake_hands(self) -> None:
        try:
            self._qmp.handshake(_READY_TIMEOUT_S)
        except BackendError as exc:
            said = " | ".join(self._complaints.read())
            raise BackendError(f"{exc}: {said}" if said else str(exc)) from exc

    def _note_complaints(self) -> None:
        for line in self._complaints.read():
            self._observer.noted(line)

    def _on_event(self, event: QmpEvent) -> None:
        if event.name == "SHUTDOWN":
            self._shutdown_reason = event.reason
        elif event.name == "STOP" and not self._shutdown_reason:
            self._observer.internal_error()

    def _read_console(self) -> bool:
        try:
            data = self._console.recv(_CONSOLE_CHUNK_BYTES)
        except (BlockingIOError, ConnectionResetError):
            return False
        if data:
            self._observer.console_output(data)
        else:
            self._reactor.unwatch(self._console.fileno())
        return bool(data)

    def _on_qemu_exit(self) -> None:
        self._reactor.unwatch(self._qemu.pidfd)
        self._qemu_status = self._qemu.poll()
        # Its last event may be waiting still.
        self._qmp.catch_up()
        # What is still under way is no more than a socket's buffer holds: it is handed over even to who had said pause.
        while not self._closed and self._read_console():
            pass
        if self._stop_asked or self._device.poll() is not None:
            self._report_end()
        else:
            # The device has a moment to pass on what the guest said last; it ends by itself.
            self._reactor.call_later(_DEVICE_EXIT_PATIENCE_S, self._report_end)

    def _on_device_exit(self) -> None:
        self._reactor.unwatch(self._device.pidfd)
        status = self._device.poll()
        if self._qemu_status is not None:
            self._report_end()
        else:
            # It ends well when QEMU closes its connection, which QEMU does a moment before it exits.
            patience_s = _QEMU_EXIT_PATIENCE_S if status == 0 else 0
            self._reactor.call_later(patience_s, self._end_without_device)

    def _report_end(self) -> None:
        if not self._closed and not self._reported:
            self._reported = True
            self._note_complaints()
            self._observer.ended(self._end())

    def _end_without_device(self) -> None:
        # QEMU would live on with a dead vsock, and cannot connect to another device.
        if not self._closed and self._qemu.poll() is None:
            self._device_ended = True
            self._qemu.kill()

    def _end(self) -> EnclaveEnd:
        if self._stop_asked:
            return EnclaveEnd(EndKind.STOPPED)
        if self._device_ended:
            return EnclaveEnd(EndKind.BROKE, "the vsock device of the local virtual machine ended")
        if self._qemu_status == 0 and self._shutdown_reason in _GUEST_REASONS:
            return EnclaveEnd(EndKind.POWERED_OFF)
        if self._shutdown_reason == "guest-panic":
            return EnclaveEnd(EndKind.PANICKED, "the guest reported a panic")
        return EnclaveEnd(EndKind.BROKE, f"qemu {_describe_status(self._qemu_status)}")


class Complaints:
    """What QEMU and the device say on their standard error, escaped line by line.

    A guest can make QEMU complain without end, so only so many lines are ever passed on; the rest is read and dropped.
    """

    LINE_LIMIT = 100

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The writers' end is theirs alone and must block: they do not expect to be told to come back later.
        os.set_blocking(self.write_fd, True)
        self._partial = ""
        self._lines = 0

    def __enter__(self) -> Complaints:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)

    def read(self) -> list[str]:
        """The whole lines that have come since the last call, within the limit."""
        try:
            data = os.read(self.read_fd, 65536)
        except BlockingIOError:
            return []
        *lines, self._partial = (self._partial + data.decode(errors="replace")).split("\n")
        self._partial = self._partial[-1000:]
        allowed = lines[: max(0, self.LINE_LIMIT - self._lines)]
        self._lines += len(lines)
        return [printable(line[:1000]) for line in allowed if line.strip()]


@contextlib.contextmanager
def _ended_with(child: Child) -> Iterator[Child]:
    try:
        yield child
    finally:
        child.close()


def _start_qemu(machine: Machine, output_fd: int) -> Child:
    name = program_name(machine.architecture)
    program = find_program(name)
    if program is None:
        raise BackendError(
            f"the local virtual machine for {machine.architecture} images needs {name}, which is not installed",
            remedy=f"install it (on Debian and Ubuntu: the package {_DEBIAN_PACKAGES[name]})",
        )
    return spawn_child([program, *arguments(machine)], pass_fds=machine.descriptors(), output_fd=output_fd)


_DEBIAN_PACKAGES = {"qemu-system-x86_64": "qemu-system-x86", "qemu-system-aarch64": "qemu-system-arm"}


def _start_device(vhost: socket.socket, guest_cid: int, directory_fd: int, output_fd: int) -> Child:
    argv = [sys.executable, "-I", "-m", "pyrune.local.vsock_device"]
    argv += ["--vhost-fd", str(vhost.fileno()), "--dir-fd", str(directory_fd)]
    argv += ["--guest-cid", str(guest_cid), "--parent-pid", str(os.getpid())]
    return spawn_child(argv, pass_fds=[vhost.fileno(), directory_fd], output_fd=output_fd)


def _describe_status(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended by itself with status {status}"
