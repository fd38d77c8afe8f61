"""From `create` to NE_START_ENCLAVE under the tests' emulated driver, beside what cannot be avoided.

That is: the image's bytes copied from the file into huge pages, and hashed there once. pyrune hashes most of them twice
(PCR0 and PCR2) and sums them up (CRC), takes four times as many pages, and starts two interpreters; the emulated driver
answers its calls. It does so with more than one thread, which the bare counterpart does not.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.figures import seconds
from benchmarks.repetition import in_turns
from benchmarks.report import PAIR_COLUMNS, Row, Table, pair_row
from benchmarks.workshop import Unavailable, Workshop
from tests.emulated_driver.machine import NitroMachine
from tests.emulated_driver.scenario import UNCHECKED, Behaviour, Scenario
from tests.nitro.nitro import Nitro
from tests.support.huge_pages import PAGE_BYTES, added_pages
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, Layout

LIMIT_S = 90.0
IMAGE_MIB = 1000
MEMORY_MIB = 4096
_PATIENCE_S = 60.0
_MAP_HUGETLB_2MB = 0x40000 | 21 << 26
_MIB = 1 << 20


def measure(workshop: Workshop) -> Table:
    title = "From `create` to NE_START_ENCLAVE, under the emulated driver"
    image = workshop.directory / "nitro.eif"
    _write_image(image)
    with _pages(MEMORY_MIB // 2 + 2), _machine(workshop.directory) as pyrune:
        bundle = pyrune.nitro_bundle(image, memory=str(MEMORY_MIB))
        pairs = in_turns(
            lambda: _time_to_start(pyrune, bundle), lambda: _copy_and_hash(image), most=workshop.turns, limit_s=LIMIT_S
        )
        calls = Counter(name for name in _calls_of_last_life(pyrune.machine) if name.startswith("NE_"))
    image.unlink()
    rows: list[Row] = [pair_row(f"an image of {IMAGE_MIB} MiB, {MEMORY_MIB} MiB of memory", pairs, seconds)]
    counted = ", ".join(f"{count} {name}" for name, count in calls.items())
    note = (
        f"Regions: {calls['NE_SET_USER_MEMORY_REGION']}. Ioctls for one enclave: {counted}. pyrune takes more than one "
        "thread, the counterpart one: on a machine whose CPUs are busy with other things the ratio says little."
    )
    return Table(title, PAIR_COLUMNS, rows, note)


def _write_image(path: Path) -> None:
    """Noise, nearly all of it in the second ramdisk, as in a real image."""
    noise = os.urandom(_MIB - 8)
    ramdisk = b"".join(number.to_bytes(8, "big") + noise for number in range(IMAGE_MIB - 2))
    sections = [(KERNEL, noise), (CMDLINE, b"panic=1"), (METADATA, b"{}"), (RAMDISK, noise), (RAMDISK, ramdisk)]
    path.write_bytes(Layout(sections, flags=int(os.uname().machine == "aarch64")).build())


@contextmanager
def _pages(count: int) -> Iterator[None]:
    try:
        with added_pages(count):
            yield
    except pytest.skip.Exception as exc:
        raise Unavailable(str(exc)) from exc


@contextmanager
def _machine(directory: Path) -> Iterator[Nitro]:
    scenario = Scenario(image=UNCHECKED, enclaves=(Behaviour(exit_after_s=0.05),))
    machine = NitroMachine(directory, scenario, {})
    machine.start_up()
    try:
        yield Nitro(directory, machine)
    finally:
        machine.close()


def _time_to_start(pyrune: Nitro, bundle: Path) -> float:
    """From the start of `pyrune run` to its monitor's last call before NE_START_ENCLAVE."""
    before = pyrune.machine.log_path.stat().st_size
    argv = pyrune.argv("run", "--bundle", str(bundle), "nitro")
    started = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as run:
        try:
            found = _moment_of(b'"call": "listen"', pyrune.machine.log_path, before)
            run.wait(_PATIENCE_S)
        finally:
            run.kill()
    return found - started


def _moment_of(text: bytes, log: Path, start: int) -> float:
    """When a line with `text` appeared in the log behind `start`."""
    deadline = time.perf_counter() + _PATIENCE_S
    with log.open("rb") as file:
        file.seek(start)
        seen = b""
        while text not in seen:
            if time.perf_counter() > deadline:
                raise Unavailable(f"the emulated driver has not logged {text.decode()} in time")
            time.sleep(0.002)
            seen += file.read()
    return time.perf_counter()


def _copy_and_hash(image: Path) -> float:
    """The time of the counterpart."""
    size = image.stat().st_size
    started = time.perf_counter()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB_2MB
    with image.open("rb") as file, mmap.mmap(-1, -(-size // PAGE_BYTES) * PAGE_BYTES, flags=flags) as pages:
        with memoryview(pages)[:size] as target:
            os.preadv(file.fileno(), [target], 0)
            hashlib.sha384(target).digest()
        return time.perf_counter() - started


def _calls_of_last_life(machine: NitroMachine) -> list[str]:
    calls = machine.calls()
    last = max(index for index, name in enumerate(calls) if name == "NE_CREATE_VM")
    return calls[last:]
