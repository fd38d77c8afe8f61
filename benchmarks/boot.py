"""From `pyrune run` to the line that the enclave prints, beside QEMU alone booting the same image."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bare_machine import BOOT_TIMEOUT_S, END_TIMEOUT_S, BareMachine
from benchmarks.console import drain, wait_for
from benchmarks.figures import Pairs, milliseconds, seconds
from benchmarks.repetition import in_turns
from benchmarks.report import PAIR_COLUMNS, Row, Table, pair_row
from benchmarks.workshop import Unavailable, Workshop

VCPUS = 1
LIMIT_S = 45.0


def measure(workshop: Workshop) -> Table:
    rows: list[Row] = []
    notes = []
    subjects: list[tuple[str, Callable[[], Path], bytes, int]] = [
        ("AWS's hello.eif, aarch64", workshop.aws_image, b"Hello (from a nitro enclave!)", 512),
        ("pyrune's init, Debian's kernel, x86_64", lambda: workshop.image("print", "1"), b"line 1", 256),
    ]
    for name, find_image, line, memory_mib in subjects:
        try:
            pairs, accelerator = _boots(workshop, find_image(), line, memory_mib)
        except Unavailable as exc:
            notes.append(f"Not measured: {name} ({exc}).")
            continue
        rows.append(pair_row(f"{name}, {accelerator}", pairs, seconds))
        notes.append(f"{name}: pyrune adds {pairs.differences.written(milliseconds)}.")
    return Table("From `run` to the hello line, beside QEMU alone", PAIR_COLUMNS, rows, " ".join(notes))


def _boots(workshop: Workshop, image: Path, line: bytes, memory_mib: int) -> tuple[Pairs, str]:
    bundle = workshop.pyrune.bundle(image, memory=str(memory_mib), vcpus=str(VCPUS))
    with BareMachine(image, memory_mib, VCPUS) as machine:
        pairs = in_turns(
            lambda: _run_to(workshop, bundle, line),
            lambda: machine.seconds_to(line),
            most=workshop.turns,
            limit_s=LIMIT_S,
        )
        return pairs, machine.accelerator.value


def _run_to(workshop: Workshop, bundle: Path, line: bytes) -> float:
    argv = workshop.pyrune.argv("run", "--bundle", str(bundle), "boot")
    started = time.perf_counter()
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=workshop.pyrune.environment
    ) as process:
        assert process.stdout is not None
        try:
            said = wait_for(process.stdout.fileno(), line, BOOT_TIMEOUT_S)
            drain(process.stdout.fileno(), END_TIMEOUT_S)
            process.wait(END_TIMEOUT_S)
        except BaseException:
            # The command passes it on to the container and deletes that; what is left the workshop cleans up.
            process.terminate()
            raise
    return said - started
