"""The program: which parts, how often, where the tables go. Progress goes to standard error."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import boot, calls, creation, image_files, memory, nitro, streams
from benchmarks.console import Silence
from benchmarks.host import describe_host
from benchmarks.report import Table, skipped, with_measured
from benchmarks.workshop import ProgramFailed, Unavailable, Workshop, workshop

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
DEFAULT_TURNS = 7

# Each part limits its own time; all of them together take about five minutes, however slow the machine.
PARTS: Mapping[str, Callable[[Workshop], Table]] = {
    "boot": boot.measure,
    "create": creation.measure,
    "imports": creation.measure_imports,
    "memory": memory.measure,
    "streams": streams.measure,
    "calls": calls.measure,
    "images": image_files.measure,
    "nitro": nitro.measure,
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure what pyrune costs, in pairs.")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be repeated")
    parser.add_argument("--turns", type=int, default=DEFAULT_TURNS, help="pairs to measure of each (%(default)s)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCUMENT.name}, too")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write replaces all tables: leave out --only")
    measured, failed = _measure(options.only or list(PARTS), options.turns)
    print(measured)
    if options.write and not failed:
        DOCUMENT.write_text(with_measured(DOCUMENT.read_text(), measured))
    return 1 if failed else 0


def _measure(parts: Sequence[str], turns: int) -> tuple[str, bool]:
    """All tables as one text, and whether a part failed: then the others are still worth reading."""
    load_before = os.getloadavg()[0]
    texts = []
    failed = False
    with workshop(turns) as place:
        for part in parts:
            print(f"{part} ...", end=" ", file=sys.stderr, flush=True)
            started = time.monotonic()
            try:
                texts.append(PARTS[part](place).markdown())
            except Unavailable as exc:
                texts.append(skipped(part, str(exc)))
            except (ProgramFailed, Silence) as exc:
                failed = True
                texts.append(skipped(part, f"it failed: {exc}"))
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    return "\n".join([describe_host(load_before).markdown(), *texts]), failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
