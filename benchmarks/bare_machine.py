"""QEMU without a runtime: what a boot of an image costs when nobody but QEMU does anything.

It has the arguments that pyrune would give it, for the same kernel, ramdisks and devices, less the one that has it wait
for a word before it begins. What can be ready beforehand is: the image is taken apart, the vsock device is up, and
somebody listens for the heartbeat. The clock starts with QEMU.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.console import drain, wait_for, wait_until
from benchmarks.workshop import need
from pyrune.backend import HEARTBEAT_PORT
from pyrune.eif.reader import EifImage
from pyrune.linux import bind_unix
from pyrune.local.backend import DEFAULT_GUEST_CID
from pyrune.local.boot_files import BootFiles, take_apart
from pyrune.local.machine import Accelerator, Machine, arguments, kvm_works, program_name
from pyrune.vsock.heartbeat import HEARTBEAT_BYTE

BOOT_TIMEOUT_S = 60.0
END_TIMEOUT_S = 20.0


class BareMachine:
    """Boots one image again and again. Use it in a with."""

    def __init__(self, image: Path, memory_mib: int, vcpus: int) -> None:
        with EifImage.open(image) as opened:
            self._files: BootFiles = take_apart(opened)
        self._memory_mib = memory_mib
        self._vcpus = vcpus
        self._program = need(program_name(self._files.architecture))

    def __enter__(self) -> BareMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def accelerator(self) -> Accelerator:
        return Accelerator.KVM if kvm_works(self._files.architecture) else Accelerator.TCG

    def seconds_to(self, line: bytes) -> float:
        """How long it takes from the start of QEMU until the console has said `line`; then the machine ends."""
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyrune-bare-")))
            directory_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory_fd)
            stack.enter_context(_answering_heartbeats(directory_fd))
            vsock = _device(stack, place, directory_fd)
            console, qemu_console = _pair(stack)
            qmp, qemu_qmp = _pair(stack)
            machine = self._machine(qemu_console.fileno(), vsock.fileno(), qemu_qmp.fileno())
            argv = [self._program, *(word for word in arguments(machine) if word != "-S")]
            started = time.perf_counter()
            qemu = _started(stack, argv, machine.descriptors())
            for end in (qemu_console, qemu_qmp, vsock):
                end.close()
            said = wait_for(console.fileno(), line, BOOT_TIMEOUT_S)
            drain(console.fileno(), END_TIMEOUT_S)
            qmp.close()
            qemu.wait(END_TIMEOUT_S)
            return said - started

    def _machine(self, console_fd: int, vsock_fd: int, qmp_fd: int) -> Machine:
        return Machine(
            name="bare",
            architecture=self._files.architecture,
            accelerator=self.accelerator,
            memory_mib=self._memory_mib,
            vcpus=self._vcpus,
            kernel_fd=self._files.kernel_fd,
            initrd_fd=self._files.initrd_fd,
            cmdline=self._files.cmdline,
            console_fd=console_fd,
            vsock_fd=vsock_fd,
            qmp_fd=qmp_fd,
        )


def _device(stack: ExitStack, place: Path, directory_fd: int) -> socket.socket:
    """A vsock device that is ready, as QEMU's end of the socket to it."""
    device_end, qemu_end = _pair(stack)
    argv = [sys.executable, "-I", "-m", "pyrune.local.vsock_device"]
    argv += ["--vhost-fd", str(device_end.fileno()), "--dir-fd", str(directory_fd)]
    argv += ["--guest-cid", str(DEFAULT_GUEST_CID), "--parent-pid", str(os.getpid())]
    _started(stack, argv, [device_end.fileno(), directory_fd])
    device_end.close()
    wait_until((place / "vsock").exists, "the vsock device", BOOT_TIMEOUT_S)
    return qemu_end


def _pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return stack.enter_context(ours), stack.enter_context(theirs)


def _started(stack: ExitStack, argv: list[str], pass_fds: list[int]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=pass_fds)

    def end() -> None:
        process.kill()
        process.wait()

    stack.callback(end)
    return process


@contextmanager
def _answering_heartbeats(directory_fd: int) -> Iterator[None]:
    """Say back, once, what an enclave says when it is up."""
    listener = bind_unix(directory_fd, f"vsock_{HEARTBEAT_PORT}")

    def answer() -> None:
        # The listener's end is the thread's, too.
        with suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                if peer.recv(1) == HEARTBEAT_BYTE:
                    peer.sendall(HEARTBEAT_BYTE)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # A close alone would not wake the thread.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(END_TIMEOUT_S)
        listener.close()
