"""Enclave images copied into real huge pages and measured there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pyrune.eif.measure import measure
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from pyrune.ne.hugepages import PageRun
from pyrune.ne.memory import EnclaveMemory, HugeRegion
from pyrune.ne.placement import place
from tests.support.huge_pages import PAGE_BYTES, added_pages
from tests.unit.eif.images import CMDLINE, KERNEL, RAMDISK, SIGNATURE, SMALL, Layout, opened
from tests.unit.eif.signing import certificate_for, signer

OFFSET = PAGE_BYTES - 1000


@pytest.fixture(autouse=True)
def pages() -> Iterator[None]:
    with added_pages(12):
        yield


@pytest.fixture
def memory() -> Iterator[EnclaveMemory]:
    """Enclave memory of 16 MiB in four regions."""
    with closing(EnclaveMemory([HugeRegion(PageRun(PAGE_BYTES, count), None) for count in (1, 2, 1, 4)])) as memory:
        yield memory


def _image(ramdisk_bytes: int = 3 * PAGE_BYTES) -> bytes:
    ramdisk = os.urandom(1 << 16) * (ramdisk_bytes >> 16) + b"end"
    return Layout([(KERNEL, b"kernel" * 9999), (CMDLINE, b"panic=1"), (RAMDISK, b"first"), (RAMDISK, ramdisk)]).build()


def test_the_bytes_and_the_measurements_are_the_images(memory: EnclaveMemory) -> None:
    data = _image()
    with opened(data) as image:
        assert place(image, memory, OFFSET) == measure(image)
    assert memory.read(OFFSET, len(data)) == data
    assert memory.read(0, OFFSET) == bytes(OFFSET)


def test_every_page_is_there_afterwards(memory: EnclaveMemory) -> None:
    with opened(_image(1 << 16)) as image:
        place(image, memory, OFFSET)
    with open("/proc/self/pagemap", "rb") as pagemap:
        for region in memory.regions:
            for page in range(region.address, region.address + region.size_bytes, PAGE_BYTES):
                entry = os.pread(pagemap.fileno(), 8, page // 4096 * 8)
                assert int.from_bytes(entry, "little") >> 63


def test_no_thread_is_left(memory: EnclaveMemory) -> None:
    before = threading.active_count()
    with opened(_image()) as image:
        place(image, memory, OFFSET)
    assert threading.active_count() == before


def test_a_wrong_checksum_is_refused(memory: EnclaveMemory) -> None:
    with opened(Layout(crc=7).build()) as image, pytest.raises(EifError, match="damaged: its checksum is 0x"):
        place(image, memory, OFFSET)


def _signed(pcr0: str | None = None, days: int = 36500) -> bytes:
    """An image that its signer vouches for, or for an image with another PCR0."""
    key = ec.generate_private_key(ec.SECP384R1())
    someone = replace(signer(), key=key, certificate=certificate_for(key, days))
    with opened(Layout().build()) as image:
        section = someone.section(pcr0 or measure(image).pcr0)
    return Layout([*SMALL, (SIGNATURE, section)]).build()


def test_a_signature_that_holds_is_fine_and_gives_pcr8(memory: EnclaveMemory) -> None:
    with opened(_signed()) as image:
        placed = place(image, memory, OFFSET)
        assert placed.pcr8 is not None
        assert placed == measure(image)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (_signed(pcr0="ab" * 48), "the signature is for another PCR0 than the image has"),
        (_signed(days=30), "the signing certificate is valid only from Apr"),
    ],
)
def test_a_signature_that_does_not_hold_is_refused(memory: EnclaveMemory, image: bytes, problem: str) -> None:
    with opened(image) as opened_image, pytest.raises(EifError, match=f"its signature does not hold: {problem}"):
        place(opened_image, memory, OFFSET)


def _reopened(data: bytes) -> tuple[EifImage, int]:
    image = opened(data)
    return image, os.open(f"/proc/self/fd/{image.fd}", os.O_WRONLY | os.O_CLOEXEC)


def test_an_image_that_shrinks_is_an_error(memory: EnclaveMemory) -> None:
    image, fd = _reopened(_image())
    with image:
        os.ftruncate(fd, PAGE_BYTES)
        os.close(fd)
        with pytest.raises(EifError, match="became shorter while it was read"):
            place(image, memory, OFFSET)


@pytest.mark.parametrize("at", [6, 548, 548 + 4])
def test_an_image_whose_structure_changes_after_the_check_is_an_error(memory: EnclaveMemory, at: int) -> None:
    image, fd = _reopened(_image(1 << 16))
    with image:
        os.pwrite(fd, b"\xff", at)
        os.close(fd)
        with pytest.raises(EifError, match="changed while it was read"):
            place(image, memory, OFFSET)


def test_what_is_measured_is_what_lies_in_memory(memory: EnclaveMemory) -> None:
    image, fd = _reopened(_image(1 << 16))
    with image:
        before = measure(image)
        os.pwrite(fd, b"K", 548 + 12)
        os.close(fd)
        # The checksum of the header tells, too; the measurement in its message is of the changed bytes.
        with pytest.raises(EifError) as caught:
            place(image, memory, OFFSET)
        assert f"{measure(image).crc32:#010x}" in str(caught.value)
        assert f"{before.crc32:#010x}" in str(caught.value)
