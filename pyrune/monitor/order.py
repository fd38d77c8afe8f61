"""What `create` hands to the monitor that it starts, and what the monitor reports back before it is on its own.

The order is one JSON document in an anonymous file, whose descriptor number is the monitor's only argument. The report
is one line of JSON on a pipe: {"ready": true} or {"error": text}. A pipe that closes without one means that the monitor
died.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from pyrune.backend import BackendName
from pyrune.errors import MonitorError, ReportedError

_REPORT_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MonitorOrder:
    """All descriptors are inherited ones. `boot_timeout_s` is None for the back end's own rule."""

    directory_fd: int
    report_fd: int
    image_fd: int
    console_socket_fd: int | None
    backend: BackendName
    image_name: str
    memory_mib: int | None
    vcpus: int
    enclave_cid: int | None
    debug: bool
    boot_timeout_s: float | None
    log_level: str
    notes: tuple[str, ...]
    cpu_ids: tuple[int, ...] = ()

    def descriptors(self) -> list[int]:
        """Every descriptor that the order names."""
        named = [self.directory_fd, self.report_fd, self.image_fd, self.console_socket_fd]
        return [fd for fd in named if fd is not None]

    def to_memory_file(self) -> int:
        """A descriptor of an anonymous file that holds the order. The caller closes it. Raises OSError."""
        fd = os.memfd_create("pyrune-order", os.MFD_CLOEXEC)
        try:
            _write_all(fd, json.dumps(asdict(self)).encode())
        except BaseException:
            os.close(fd)
            raise
        return fd

    @classmethod
    def from_memory_file(cls, fd: int) -> MonitorOrder:
        """Read what `to_memory_file` wrote, and close it."""
        content = os.pread(fd, os.fstat(fd).st_size, 0)
        os.close(fd)
        raw = json.loads(content)
        tuples = {"notes": tuple(raw["notes"]), "cpu_ids": tuple(raw["cpu_ids"])}
        return cls(**{**raw, "backend": BackendName(raw["backend"]), **tuples})


def report_ready(fd: int) -> None:
    """Raises BrokenPipeError when nobody waits for it any more."""
    _send(fd, {"ready": True})


def report_error(fd: int, text: str) -> None:
    """Raises BrokenPipeError when nobody waits for it any more."""
    _send(fd, {"error": text})


def await_report(fd: int) -> None:
    """Return when the monitor is ready. Raises ReportedError with its reason, MonitorError if it died."""
    content = b""
    while b"\n" not in content and len(content) < _REPORT_LIMIT_BYTES:
        chunk = os.read(fd, 65536)
        if not chunk:
            raise MonitorError("the container's monitor ended before it was ready")
        content += chunk
    match _parsed(content):
        case {"ready": True}:
            return
        case {"error": str(text)}:
            raise ReportedError(text)
    raise MonitorError("the container's monitor made no sense")


def _parsed(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _send(fd: int, report: dict[str, bool | str]) -> None:
    _write_all(fd, json.dumps(report).encode() + b"\n")


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
