"""Single calls of the command, beside the same calls of runc and beside a Python that does nothing."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Pairs, milliseconds
from benchmarks.repetition import duration_s, in_turns
from benchmarks.report import PAIR_COLUMNS, Row, Table, pair_row
from benchmarks.workshop import ProgramFailed, Unavailable, Workshop, compile_streams, need, run, running_time_s
from pyrune.eif.format import Architecture

LIMIT_S = 20.0
LIFE_LIMIT_S = 30.0


class Program:
    """pyrune or runc, by its first words: both get each verb alike."""

    def __init__(self, *prefix: str) -> None:
        self.prefix = prefix

    def call(self, *words: str) -> Callable[[], float]:
        """A measurement: the time of one call."""
        return running_time_s(*self.prefix, *words)

    def life(self, bundle: Path) -> Callable[[], float]:
        """A measurement: create, start and delete, one after another."""

        def live() -> None:
            run([*self.prefix, "create", "--bundle", str(bundle), "life"])
            run([*self.prefix, "start", "life"])
            run([*self.prefix, "delete", "--force", "life"])

        return lambda: duration_s(live)


def measure(workshop: Workshop) -> Table:
    enclave = workshop.pyrune.bundle(workshop.image("sleep"), vcpus="1")
    pyrune = Program(*workshop.pyrune.argv())
    empty = running_time_s(sys.executable, "-I", "-S", "-c", "pass")

    def compare(ours: Callable[[], float], bare: Callable[[], float], limit_s: float = LIMIT_S) -> Pairs:
        return in_turns(ours, bare, most=3 * workshop.turns, limit_s=limit_s)

    run([*pyrune.prefix, "create", "--bundle", str(enclave), "still"])
    note = ""
    try:
        state = pyrune.call("state", "still")
        rows = [_row("`state` of an enclave; `python -I -S -c pass`", compare(state, empty))]
        try:
            rows += _beside_runc(workshop, pyrune, state, enclave, compare)
        except Unavailable as exc:
            note = f"Not measured beside runc: {exc}."
    finally:
        run([*pyrune.prefix, "delete", "--force", "still"])
    return Table("Single calls", PAIR_COLUMNS, rows, note)


def _beside_runc(
    workshop: Workshop,
    pyrune: Program,
    state: Callable[[], float],
    enclave: Path,
    compare: Callable[..., Pairs],
) -> list[Row]:
    runc = Program(need("runc"), "--root", str(workshop.directory / "runc"))
    ordinary = _ordinary_bundle(workshop)
    with _container(runc, ordinary, "still"):
        rows = [
            _row("`state` of an enclave; runc's of a container", compare(state, runc.call("state", "still"))),
        ]
        # pyrune becomes runc for what is not its own, with the same root.
        with _container(pyrune, ordinary, "ordinary"):
            handed_over = compare(pyrune.call("state", "ordinary"), runc.call("state", "still"))
        rows.append(_row("`state` of an ordinary container, handed over; runc", handed_over))
    lives = compare(pyrune.life(ordinary), runc.life(ordinary))
    rows.append(_row("`create`, `start`, `delete` of an ordinary container, handed over; runc", lives))
    lives = compare(pyrune.life(enclave), runc.life(ordinary), LIFE_LIMIT_S)
    rows.append(_row("`create`, `start` (a boot), `delete` of an enclave; runc, a container", lives))
    return rows


def _row(name: str, pairs: Pairs) -> Row:
    return pair_row(name, pairs, milliseconds)


@contextmanager
def _container(program: Program, bundle: Path, name: str) -> Iterator[None]:
    """A container in the status created. Raises Unavailable where this machine does not let runc make any."""
    try:
        run([*program.prefix, "create", "--bundle", str(bundle), name])
    except ProgramFailed as exc:
        raise Unavailable(f"{os.path.basename(program.prefix[0])} cannot create a container here") from exc
    try:
        yield
    finally:
        run([*program.prefix, "delete", "--force", name])


def _ordinary_bundle(workshop: Workshop) -> Path:
    """A bundle for runc: one static program that ends at once."""
    bundle = workshop.directory / "ordinary"
    (bundle / "rootfs").mkdir(parents=True)
    compile_streams(Architecture(platform.machine()), bundle / "rootfs" / "program")
    workshop.pyrune.ok("spec", "--bundle", str(bundle))
    config = json.loads((bundle / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/program", "exit"]}
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle
