"""The local back end: an Enclave that is a QEMU virtual machine. Nothing about it is confidential.

A boot that says nothing at all for some seconds, neither on the console nor over vsock, is ended and tried once
more: an emulated machine sometimes hangs before its first line. The second try has no such limit, only the boot's
deadline, so that an image which is silent by intention runs, too. A KVM that does not really work is replaced by TCG
in the same way.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from dataclasses import replace

from pyrune.backend import (
    HEARTBEAT_PORT,
    BackendName,
    EnclaveEnd,
    EnclaveFacts,
    EnclaveObserver,
    EnclaveSpec,
    EndKind,
)
from pyrune.eif.reader import EifImage
from pyrune.errors import BackendError
from pyrune.linux import bind_unix
from pyrune.local.boot_files import BootFiles, take_apart
from pyrune.local.machine import MAX_VCPUS, Accelerator, Machine, kvm_works
from pyrune.local.virtual_machine import MachineObserver, VirtualMachine
from pyrune.reactor import Reactor, Timer
from pyrune.vsock.heartbeat import HeartbeatServer

# Every machine has a vsock of its own, so all may have the same address: the first that Nitro gives.
DEFAULT_GUEST_CID = 16
DEFAULT_MEMORY_MIB = 512
SILENCE_S = 20.0
_VSOCK_SOCKET_NAME = "vsock"
_MIB = 1 << 20


class LocalBackend:
    """See pyrune.backend.Backend."""

    def prepare(
        self, spec: EnclaveSpec, directory_fd: int, reactor: Reactor, observer: EnclaveObserver
    ) -> LocalEnclave:
        with EifImage.from_fd(os.dup(spec.image_fd), spec.image_name) as image:
            image.require_bootable()
            image.require_unambiguous()
            spec = _sized(spec, image.size_bytes)
            files = take_apart(image)
        enclave = LocalEnclave(spec, files, directory_fd, reactor, observer)
        try:
            enclave.prepare()
        except BaseException:
            enclave.close()
            raise
        return enclave


class LocalEnclave:
    """See pyrune.backend.Enclave. Owns `files`."""

    def __init__(
        self, spec: EnclaveSpec, files: BootFiles, directory_fd: int, reactor: Reactor, observer: EnclaveObserver
    ) -> None:
        self._spec = spec
        self._files = files
        self._directory_fd = directory_fd
        self._reactor = reactor
        self._observer = observer
        self._guest_cid = spec.enclave_cid or DEFAULT_GUEST_CID
        self._accelerator = Accelerator.KVM if kvm_works(files.architecture) else Accelerator.TCG
        self._held = ExitStack()
        self._held.callback(files.close)
        self._machine: VirtualMachine | None = None
        self._silence: Timer | None = None
        self._tries = 0
        self._heard = False
        self._booted = False
        self._console_paused = False
        self._stop_asked = False

    @property
    def facts(self) -> EnclaveFacts:
        pcrs = self._files.measurements
        return EnclaveFacts(
            backend=BackendName.LOCAL,
            enclave_cid=self._guest_cid,
            memory_mib=self._spec.memory_mib or DEFAULT_MEMORY_MIB,
            vcpus=self._spec.vcpus,
            pcr0=pcrs.pcr0,
            pcr1=pcrs.pcr1,
            pcr2=pcrs.pcr2,
            pcr8=pcrs.pcr8,
        )

    def prepare(self) -> None:
        """Listen for the heartbeat and have a paused machine. Raises BackendError."""
        name = f"{_VSOCK_SOCKET_NAME}_{HEARTBEAT_PORT}"
        try:
            listener = bind_unix(self._directory_fd, name)
        except OSError as exc:
            raise BackendError(f"the heartbeat's socket {name} cannot be made (error {exc.errno})") from exc
        heartbeat = HeartbeatServer(listener, self._reactor, self._on_beat)
        self._held.callback(self._unlink, name)
        self._held.callback(heartbeat.close)
        self._prepare_machine()

    def start(self) -> None:
        assert self._machine is not None
        self._tries += 1
        self._observer.noted(f"boots under {self._accelerator} (try {self._tries})")
        if self._tries == 1:
            self._silence = self._reactor.call_later(SILENCE_S, self._on_silence)
        self._machine.run()

    def stop(self) -> None:
        self._stop_asked = True
        self._cancel_silence()
        if self._machine is not None:
            self._machine.stop()

    def pause_console(self) -> None:
        self._console_paused = True
        if self._machine is not None:
            self._machine.pause_console()

    def resume_console(self) -> None:
        self._console_paused = False
        if self._machine is not None:
            self._machine.resume_console()

    def close(self) -> None:
        self._cancel_silence()
        self._drop_machine()
        self._held.close()

    def _prepare_machine(self) -> None:
        observer = MachineObserver(self._on_console, self._on_end, self._on_internal_error, self._observer.noted)
        machine = VirtualMachine(self._reactor, observer)
        machine.prepare(self._describe_machine, self._guest_cid, self._directory_fd)
        self._machine = machine
        if self._console_paused:
            machine.pause_console()

    def _describe_machine(self, console_fd: int, vsock_fd: int, qmp_fd: int) -> Machine:
        return Machine(
            name="pyrune-enclave",
            architecture=self._files.architecture,
            accelerator=self._accelerator,
            memory_mib=self.facts.memory_mib,
            vcpus=self._spec.vcpus,
            kernel_fd=self._files.kernel_fd,
            initrd_fd=self._files.initrd_fd,
            cmdline=self._files.cmdline,
            console_fd=console_fd,
            vsock_fd=vsock_fd,
            qmp_fd=qmp_fd,
        )

    def _on_console(self, data: bytes) -> None:
        self._heard = True
        self._cancel_silence()
        self._observer.console_output(data)

    def _on_beat(self) -> None:
        self._heard = True
        self._cancel_silence()
        if not self._booted:
            self._booted = True
            self._observer.booted()

    def _on_end(self, end: EnclaveEnd) -> None:
        self._cancel_silence()
        self._observer.ended(end)

    def _on_silence(self) -> None:
        self._try_again(f"the enclave said nothing for {SILENCE_S:.0f} s")

    def _on_internal_error(self) -> None:
        if self._stop_asked:
            # It is being killed already, and ends as stopped.
            return
        if self._accelerator is Accelerator.KVM and not self._booted:
            self._accelerator = Accelerator.TCG
            self._try_again("kvm failed with an internal error; from here on without kvm")
        else:
            self._drop_machine()
            self._on_end(EnclaveEnd(EndKind.BROKE, "the virtual machine stands still after an internal error"))

    def _try_again(self, why: str) -> None:
        self._observer.noted(f"{why}: ended, and tried once more")
        self._cancel_silence()
        self._drop_machine()
        try:
            self._prepare_machine()
        except BackendError as exc:
            self._on_end(EnclaveEnd(EndKind.BROKE, str(exc)))
            return
        self.start()

    def _drop_machine(self) -> None:
        if self._machine is not None:
            self._machine.close()
            self._machine = None
        self._unlink(_VSOCK_SOCKET_NAME)

    def _cancel_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory_fd)


def _sized(spec: EnclaveSpec, image_bytes: int) -> EnclaveSpec:
    """`spec` with its memory filled in, or a BackendError for sizes that cannot work."""
    # The image stays in memory as QEMU loads it, and is unpacked beside itself; a kernel wants some room of its own.
    least_mib = 64 + -(-2 * image_bytes // _MIB)
    memory_mib = spec.memory_mib or max(DEFAULT_MEMORY_MIB, least_mib)
    if memory_mib < least_mib:
        raise BackendError(
            f"the enclave is given {memory_mib} MiB of memory, its image needs at least {least_mib} MiB",
            remedy=f"say memory={least_mib} or more",
        )
    machine_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MIB
    if memory_mib > machine_mib:
        raise BackendError(
            f"the enclave is given {memory_mib} MiB of memory, this machine has {machine_mib} MiB in all",
            remedy="say memory= with less",
        )
    if spec.vcpus > MAX_VCPUS:
        raise BackendError(
            f"the enclave is given {spec.vcpus} vCPUs, the local virtual machine has {MAX_VCPUS} at most",
            remedy=f"say vcpus={MAX_VCPUS} or less",
        )
    return replace(spec, memory_mib=memory_mib)
