"""The log: a line of JSON for each call that the emulation answered and for each thing that happened meanwhile.

    {"n": 3, "time_s": 0.0123, "pid": 71, "call": "NE_ADD_VCPU", "arguments": {"vcpu_id": 0}, "result": 0, ...}
    {"n": 9, "time_s": 0.1, "event": "heartbeat", "enclave": 1, "answered": true}

`result` is what the call returned; a call that failed has `error`, a name or, for the driver's own, a number. A call
whose caller was killed before the answer has `"result": "killed"`. `time_s` counts from the supervisor's start.
"""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path
from typing import TypeAlias

Fact: TypeAlias = str | int | float | bool | list[int] | dict[str, int] | None


class Journal:
    """Appends to a file; any thread may."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._lines = 0
        self._begin = time.monotonic()

    def write(self, **facts: Fact) -> None:
        with self._lock:
            self._lines += 1
            line = {"n": self._lines, "time_s": round(time.monotonic() - self._begin, 6), **facts}
            self._file.write(json.dumps(line) + "\n")

    def event(self, name: str, **facts: Fact) -> None:
        self.write(event=name, **facts)


def error_name(number: int) -> str | int:
    """ENOMEM for 12; the driver's own errors, and what has no name, stay numbers."""
    return number if number >= 256 else errno.errorcode.get(number, number)


def error_number(name: str | int) -> int:
    """The other way round. Raises ValueError for what is none."""
    if isinstance(name, int):
        return name
    number = getattr(errno, name, None)
    if not isinstance(number, int):
        raise ValueError(f"{name} is no errno")
    return number
