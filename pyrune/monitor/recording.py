"""The recording of an enclave's console in the container's directory: bounded, and gone with the container.

Two files take turns: `console.log` is the newer, `console.log.1` the older half. Bytes are kept as they came.
"""

from __future__ import annotations

import contextlib
import os

from pyrune.errors import printable

RECORDING_NAME = "console.log"
HALF_BYTES = 512 * 1024
_TAIL_BYTES = 400


class ConsoleRecording:
    """Append-only; a full disk ends the recording, never the enclave."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd
        self._fd = -1
        self._size = 0
        self._tail = b""
        with contextlib.suppress(OSError):
            self._fd = self._open()

    def append(self, data: bytes) -> None:
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        if self._fd < 0:
            return
        data = data[-HALF_BYTES:]
        if self._size + len(data) > HALF_BYTES:
            self._turn()
        # Where there was no turn, the file is filled up and no more.
        with contextlib.suppress(OSError):
            self._size += os.write(self._fd, data[: HALF_BYTES - self._size])

    def tail(self) -> str:
        """The last lines, escaped, joined by ` | `: fit for an error message."""
        lines = self._tail.decode(errors="replace").replace("\r", "").split("\n")
        return " | ".join(printable(line) for line in lines[-6:] if line.strip())

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        return os.open(RECORDING_NAME, flags, 0o600, dir_fd=self._directory_fd)

    def _turn(self) -> None:
        with contextlib.suppress(OSError):
            older = RECORDING_NAME + ".1"
            os.rename(RECORDING_NAME, older, src_dir_fd=self._directory_fd, dst_dir_fd=self._directory_fd)
            # The old file is closed last: a number without a file behind it might be another file's next.
            fresh, old = self._open(), self._fd
            self._fd, self._size = fresh, 0
            os.close(old)
