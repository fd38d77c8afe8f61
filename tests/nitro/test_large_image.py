"""An image of 1 GiB, in huge pages of two sizes: every byte of it arrives, and the monitor stays small."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pyrune.eif.measure import measure
from pyrune.eif.reader import EifImage
from pyrune.ne.hugepages import PageRun
from pyrune.ne.memory import EnclaveMemory, HugeRegion
from pyrune.ne.placement import place
from tests.emulated_driver.machine import Entry
from tests.needs import missing
from tests.nitro.conftest import NitroMaker
from tests.support.command import wait_until
from tests.support.huge_pages import PAGE_BYTES, added_pages
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, Layout

MIB = 1 << 20
LARGE_POOL = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB")
MONITOR_LIMIT_KIB = 40 << 10


def _noise(mebibytes: int) -> bytes:
    """No two mebibytes of it are the same, and none holds a long run of zeros."""
    noise = os.urandom(MIB - 8)
    return b"".join(number.to_bytes(8, "big") + noise for number in range(1, mebibytes + 1))


@pytest.fixture(scope="module")
def large_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("images") / "large.eif"
    sections = [(KERNEL, _noise(8)), (CMDLINE, b"panic=1"), (METADATA, b"{}"), (RAMDISK, _noise(1))]
    flags = int(os.uname().machine == "aarch64")
    path.write_bytes(Layout([*sections, (RAMDISK, _noise(1016))], flags=flags).build())
    yield path
    path.unlink()


@pytest.fixture
def one_large_page() -> Iterator[None]:
    """A free huge page of 1 GiB. Not every machine can have one, so its absence never fails a test."""
    if os.geteuid() != 0:
        missing("root", "huge pages can only be added by root")
    if not LARGE_POOL.is_dir():
        pytest.skip("hugepages: this machine has none of 1 GiB")
    before = (LARGE_POOL / "nr_hugepages").read_text()
    with ExitStack() as undo:
        undo.callback((LARGE_POOL / "nr_hugepages").write_text, before)
        for _ in range(5):
            (LARGE_POOL / "nr_hugepages").write_text(str(int(before) + 1))
            if int((LARGE_POOL / "free_hugepages").read_text()) == 1:
                break
            time.sleep(0.5)
        else:
            pytest.skip("hugepages: this machine's memory has no gibibyte in one piece")
        yield


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("one_large_page")
def test_every_byte_of_1_gib_arrives_across_regions_of_two_page_sizes(nitro: NitroMaker, large_image: Path) -> None:
    # 1 GiB in a large page, 3080 MiB in small ones: the image begins in the large page and ends in the small ones.
    pyrune = nitro(pages=1542, image=str(large_image))
    machine = pyrune.machine
    bundle = pyrune.nitro_bundle(large_image, memory="4104")
    pyrune.create("one", bundle)
    status = Path(f"/proc/{_monitor(pyrune.file('one', 'enclave.json'))}/status").read_text()
    peak = re.search(r"VmHWM:\s+([0-9]+) kB", status)
    assert peak is not None
    assert int(peak[1]) < MONITOR_LIMIT_KIB
    regions = [entry for entry in machine.log if entry.get("call") == "NE_SET_USER_MEMORY_REGION"]
    sizes = [_argument(entry, "memory_size") for entry in regions]
    assert sizes == [1 << 30, 3080 * MIB]
    pyrune.ok("start", "one")
    [found] = machine.events("image")
    assert (found["good"], found["compared_bytes"]) == (True, large_image.stat().st_size)
    pyrune.ok("delete", "--force", "one")
    wait_until(lambda: not machine.leaks(), "something stays taken", timeout_s=10)
    assert (LARGE_POOL / "free_hugepages").read_text() == "1\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_byte_of_1_gib_arrives_across_many_regions(large_image: Path) -> None:
    with added_pages(640):
        regions = [HugeRegion(PageRun(PAGE_BYTES, count), None) for count in (5, 1, 100, 2, 300, 7, 225)]
        with closing(EnclaveMemory(regions)) as memory, EifImage.open(large_image) as image:
            assert place(image, memory, 8 * MIB) == measure(image)
            with large_image.open("rb") as file:
                for offset in range(0, image.size_bytes, MIB):
                    part = file.read(MIB)
                    assert memory.read(8 * MIB + offset, len(part)) == part


def _argument(entry: Entry, name: str) -> int:
    arguments = entry["arguments"]
    assert isinstance(arguments, dict)
    return int(arguments[name])


def _monitor(record: str) -> int:
    return int(json.loads(record)["monitor"]["pid"])
