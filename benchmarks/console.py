"""Waiting for a line that a program or a machine prints."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable


class Silence(Exception):
    """The awaited line has not come."""


def wait_for(fd: int, wanted: bytes, timeout_s: float) -> float:
    """Read until `wanted` has come and return that moment, as time.perf_counter has it. Raises Silence."""
    deadline = time.monotonic() + timeout_s
    seen = b""
    while wanted not in seen:
        chunk = _read_until(fd, deadline)
        if not chunk:
            raise Silence(f"{wanted!r} has not come; the last that came is {seen[-200:]!r}")
        seen += chunk
    return time.perf_counter()


def drain(fd: int, timeout_s: float) -> None:
    """Read and drop the rest, so that who writes can end."""
    deadline = time.monotonic() + timeout_s
    while _read_until(fd, deadline):
        pass


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Look every millisecond. Raises Silence."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Silence(f"{what} has not come")
        time.sleep(0.001)


def _read_until(fd: int, deadline: float) -> bytes:
    ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        return b""
    try:
        return os.read(fd, 65536)
    except ConnectionResetError:
        return b""
