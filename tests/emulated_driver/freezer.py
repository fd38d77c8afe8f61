"""Keeping a task where it is, whatever signal it gets: as in a call that waits for the device.

A task that is frozen by the freezer of cgroup version 1 acts on no signal, SIGKILL included, until it is thawed.
Version 2 has nothing like it: what it freezes can be killed.

Source: the kernel's Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def freezer() -> Path | None:
    """Where the freezer of cgroup version 1 is mounted, if it is."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options = line.split(" ")[:4]
        if kind == "cgroup" and "freezer" in options.split(","):
            return Path(place)
    return None


@contextlib.contextmanager
def frozen(tid: int) -> Iterator[None]:
    """Keep a task that stands in a call. Raises OSError where there is no such freezer."""
    top = freezer()
    if top is None:
        raise OSError("there is no freezer of cgroup version 1")
    home = top / _group_of(tid).lstrip("/")
    group = top / f"emulated-driver-{os.getpid()}-{tid}"
    group.mkdir()
    try:
        (group / "tasks").write_text(str(tid))
        (group / "freezer.state").write_text("FROZEN")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED")
        # It may end as soon as it thaws.
        with contextlib.suppress(ProcessLookupError):
            (home / "tasks").write_text(str(tid))
        group.rmdir()


def _group_of(tid: int) -> str:
    for line in Path(f"/proc/{tid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "freezer" in controllers.split(","):
            return path
    return "/"
