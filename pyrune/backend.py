"""The contract between the monitor and what runs an enclave: an EnclaveSpec in, an Enclave out.

No I/O here, and no word of containers, bundles or annotations. A back end is used by one process, in its reactor:

    prepare   takes memory, CPUs and whatever else can fail; nothing of the image runs yet
    start     lets the enclave boot; returns at once; then `booted`, or `ended`
    stop      ends it; `ended` follows
    close     gives everything back

The observer hears of one enclave: any number of `console_output`, at most one `booted`, exactly one `ended`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pyrune.reactor import Reactor

# The vsock addresses of a Nitro parent, as every enclave knows it (AWS's enclave init connects to 3:9000).
PARENT_CID = 3
HEARTBEAT_PORT = 9000


class BackendName(StrEnum):
    """What --backend takes, less `auto`."""

    NITRO = "nitro"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class EnclaveSpec:
    """What to run. `image_fd` stays the caller's; `image_name` is for messages only. `cpu_ids` names CPUs of the
    machine, as many as `vcpus`; empty leaves the choice to the back end."""

    image_fd: int
    image_name: str
    memory_mib: int | None
    vcpus: int
    enclave_cid: int | None
    debug: bool
    cpu_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EnclaveFacts:
    """What a back end took and measured. PCRs are the image's, in lower-case hex; `pcr8` only for a signed image.
    `debug` says that the enclave's attestation shows zeros in their place. `enclave_cid` may be None until it boots."""

    backend: BackendName
    enclave_cid: int | None
    memory_mib: int
    vcpus: int
    pcr0: str
    pcr1: str
    pcr2: str
    pcr8: str | None = None
    debug: bool = False


class EndKind(StrEnum):
    """How an enclave came to its end, in words for a log. FAILED_TO_START: not one instruction of it has run."""

    FAILED_TO_START = "failed to start"
    POWERED_OFF = "powered off"
    PANICKED = "panicked"
    BROKE = "broke"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class EnclaveEnd:
    """`reason` says more than `kind`, in one escaped line; it may be empty."""

    kind: EndKind
    reason: str = ""


class EnclaveObserver(Protocol):
    """Who hears what happens to an enclave. All calls come from the reactor."""

    def console_output(self, data: bytes) -> None:
        """Bytes that the enclave printed on its console."""

    def booted(self) -> None:
        """The enclave has said that it is up."""

    def ended(self, end: EnclaveEnd) -> None:
        """The enclave runs no longer. All it printed has been handed over before."""

    def noted(self, sentence: str) -> None:
        """Something for the log, such as a second try."""


class Enclave(Protocol):
    """One enclave that `Backend.prepare` made."""

    @property
    def facts(self) -> EnclaveFacts: ...

    def start(self) -> None:
        """Let it boot. Raises BackendError if that fails at once."""

    def stop(self) -> None:
        """End it now. `ended` follows, with STOPPED; no matter if it has ended."""

    def pause_console(self) -> None:
        """Hand over no console output until `resume_console`; the enclave waits when its own buffers are full."""

    def resume_console(self) -> None: ...

    def close(self) -> None:
        """Return everything, running or not. No call to the observer follows; may be called again."""


class Backend(Protocol):
    """A way to run enclaves."""

    def prepare(self, spec: EnclaveSpec, directory_fd: int, reactor: Reactor, observer: EnclaveObserver) -> Enclave:
        """Take all that `spec` needs. Sockets and the like go into the directory, which is the enclave's alone.

        Raises BackendError or EifError, having taken nothing.
        """
        ...


def boot_deadline_s(image_bytes: int, memory_mib: int) -> float:
    """How long a boot may take: 90 s for each begun 6 GiB of image and 90 s for each begun 100 GiB of memory.

    The rule is nitro-cli's (facts from its run-enclave, version 1.5).
    """
    gib = 1 << 30
    return 90.0 * (-(-image_bytes // (6 * gib)) + -(-memory_mib * (1 << 20) // (100 * gib)))
