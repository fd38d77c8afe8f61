"""What the two processes of pyrune that stay beside a running enclave take of this machine's memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.figures import Series, mib
from benchmarks.guest import CONTAINER, serving_enclave
from benchmarks.report import Row, Table
from benchmarks.workshop import Workshop

NAMES = {
    "monitor": "the monitor (`pyrune-monitor`)",
    "vsock": "the vsock device (`pyrune-vsock`)",
    "qemu": "QEMU, with the guest's memory",
}
SETTLING_S = 2.0
SAMPLES = 3


def measure(workshop: Workshop) -> Table:
    with serving_enclave(workshop):
        pids = workshop.pyrune.pids(CONTAINER)
        time.sleep(SETTLING_S)
        rows = [_row(name, pids[process]) for process, name in NAMES.items()]
    version = ".".join(map(str, sys.version_info[:3]))
    return Table(
        "Memory while an enclave runs and is idle",
        ("process", "RssAnon", "Pss"),
        rows,
        f"RssAnon is the process's own; Pss counts what is shared, such as the interpreter ({version}) "
        "and the guest's memory, in parts.",
    )


def _row(name: str, pid: int) -> Row:
    own, shared = [], []
    for _ in range(SAMPLES):
        own.append(kib_field(Path(f"/proc/{pid}/status").read_text(), "RssAnon") * 1024.0)
        shared.append(kib_field(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss") * 1024.0)
    return (name, mib(Series(tuple(own)).median), mib(Series(tuple(shared)).median))


def kib_field(text: str, name: str) -> int:
    """The number of the line `name:   N kB`, as proc(5) writes it. Raises KeyError."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(name)
