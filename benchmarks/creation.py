"""Where the time of `create` goes, and what the imports of its three programs cost.

The phases are read from the times of what an untouched pyrune leaves in its directories: each of these appears at one
moment of a create and is not written again until the container starts.

    <root>                      its last change is the container's own directory, named after the bundle was checked
    <id>/console.log            the monitor has read its order; all its modules are there
    <id>/vsock_9000             the image has been read, measured and copied
    <id>/vsock                  the vsock device listens
    <id>/control                QEMU has answered on QMP, its devices being ready
    <id>/enclave.json           the monitor has written that the container is created
    the command's end

A file's time is as fine as the kernel's tick: 4 ms on a kernel of Debian's.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Pairs, Series, milliseconds
from benchmarks.repetition import turns
from benchmarks.report import Row, Table
from benchmarks.workshop import Workshop, run, running_time_s

CREATE_LIMIT_S = 20.0
IMPORTS_LIMIT_S = 20.0

PHASES = (
    "command: interpreter, imports, config.json against its schema",
    "monitor: interpreter, imports",
    "image read, measured, copied into memory",
    "vsock device: interpreter, imports, until it listens",
    "QEMU: until it answers with its devices ready (it starts along with the device)",
    "record written",
    "report to the command, and the command's end",
)
_CONTAINER = "phases"
_LEFT = (".", *(f"{_CONTAINER}/{name}" for name in ("console.log", "vsock_9000", "vsock", "control", "enclave.json")))
WHOLE = "`pyrune create`, whole"

PROGRAMS: Mapping[str, Sequence[str]] = {
    "nothing, with site (`python -I -c pass`)": ("-I", "-c", "pass"),
    "click": ("-I", "-c", "import click"),
    "the command, before its verb": ("-I", "-c", "import pyrune.cli"),
    "the command, with the verbs' part": ("-I", "-c", "import pyrune.cli, pyrune.lifecycle"),
    "the same and jsonschema: `create`, `run`": ("-I", "-c", "import pyrune.cli, pyrune.lifecycle, jsonschema"),
    "the monitor, with the local back end": ("-I", "-c", "import pyrune.monitor.__main__, pyrune.local.backend"),
    "the vsock device": ("-I", "-c", "import pyrune.local.vsock_device"),
}


def measure(workshop: Workshop) -> Table:
    bundle = workshop.pyrune.bundle(workshop.image("print", "1"), vcpus="1")
    _create(workshop, bundle)
    moments = [_create(workshop, bundle) for _ in turns(2 * workshop.turns, CREATE_LIMIT_S)]
    return Table("Where the time of `create` goes", ("phase", "takes", "is over after"), phase_rows(moments))


def phase_rows(moments: Sequence[Sequence[float]]) -> list[Row]:
    """From the moments at which the phases of each create were over, in seconds from its start."""
    takes = [phase_durations(each) for each in moments]
    rows: list[Row] = []
    for number, name in enumerate(PHASES):
        duration = Series(tuple(each[number] for each in takes))
        over = Series(tuple(each[number] for each in moments))
        rows.append((name, duration.written(milliseconds), milliseconds(over.median)))
    whole = Series(tuple(each[-1] for each in moments))
    return [*rows, (WHOLE, whole.written(milliseconds), milliseconds(whole.median))]


def phase_durations(moments: Sequence[float]) -> list[float]:
    """What lies between the moments. The kernel's clock for files may lag a tick behind: nothing takes less than 0."""
    starts = [0.0, *moments]
    return [max(0.0, end - start) for start, end in zip(starts, moments, strict=False)]


def _create(workshop: Workshop, bundle: Path) -> list[float]:
    root = workshop.pyrune.root
    started = time.time()
    run(workshop.pyrune.argv("create", "--bundle", str(bundle), _CONTAINER))
    ended = time.time()
    moments = [os.stat(root / name).st_mtime for name in _LEFT]
    workshop.pyrune.ok("delete", "--force", _CONTAINER)
    return [moment - started for moment in [*moments, ended]]


def measure_imports(workshop: Workshop) -> Table:
    programs = {name: running_time_s(sys.executable, *arguments) for name, arguments in PROGRAMS.items()}
    empty = running_time_s(sys.executable, "-I", "-S", "-c", "pass")
    for program in programs.values():
        program()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in turns(2 * workshop.turns, IMPORTS_LIMIT_S):
        bare = empty()
        for name, program in programs.items():
            taken[name].append((program(), bare))
    rows: list[Row] = []
    for name, pairs in taken.items():
        series = Pairs.of(pairs)
        rows.append((name, series.ours.written(milliseconds), milliseconds(series.differences.median)))
    note = f"An empty program, `python -I -S -c pass`, takes {series.bare.written(milliseconds)}."
    return Table("What starting and importing costs", ("program", "takes", "above an empty program"), rows, note)
