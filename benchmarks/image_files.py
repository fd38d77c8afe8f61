"""Building and describing an image of 100 MiB, beside one SHA-384 of the same bytes."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import milliseconds
from benchmarks.repetition import in_turns
from benchmarks.report import PAIR_COLUMNS, Table, pair_row
from benchmarks.workshop import Workshop, running_time_s
from tests.support.command import COMMAND
from tests.unit.eif.kernels import bzimage

RAMDISK_BYTES = 100 << 20
CHUNK_BYTES = 1 << 20
LIMIT_S = 20.0
# What Python does where there is no openssl: the same library, in the end.
HASHING = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha384')"


def measure(workshop: Workshop) -> Table:
    kernel, ramdisk, image = (workshop.directory / name for name in ("kernel", "ramdisk", "image.eif"))
    kernel.write_bytes(bzimage())
    _fill(ramdisk)
    build = running_time_s(
        *(str(COMMAND), "eif", "build", "--kernel", str(kernel), "--cmdline", "quiet"),
        *("--ramdisk", str(ramdisk), "--output", str(image)),
    )
    name, digest = _digest_of(ramdisk)
    rows = []
    for verb, ours in (("build", build), ("describe", running_time_s(str(COMMAND), "eif", "describe", str(image)))):
        pairs = in_turns(ours, digest, most=workshop.turns, limit_s=LIMIT_S)
        rows.append(pair_row(f"`eif {verb}`; `{name}`", pairs, milliseconds))
    return Table(
        f"An image of {RAMDISK_BYTES >> 20} MiB, beside one hash of the same bytes",
        PAIR_COLUMNS,
        rows,
        "An image with one ramdisk needs one SHA-384 of every byte (its PCR1 is its PCR0) and a CRC; "
        "both columns hold the start of a program, too.",
    )


def _fill(path: Path) -> None:
    noise = random.Random(1)
    with path.open("wb") as file:
        for _ in range(RAMDISK_BYTES // CHUNK_BYTES):
            file.write(noise.randbytes(CHUNK_BYTES))


def _digest_of(path: Path) -> tuple[str, Callable[[], float]]:
    openssl = shutil.which("openssl")
    if openssl:
        return "openssl dgst -sha384", running_time_s(openssl, "dgst", "-sha384", str(path))
    return "hashlib.sha384", running_time_s(sys.executable, "-I", "-S", "-c", HASHING, str(path))
