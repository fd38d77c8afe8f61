from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from pyrune.eif.measure import Measurements, Measurer, check_crc, extend_once, measure
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, SMALL, Layout, opened

# PCR2 of any image with one ramdisk; also in github.com/tkhq/qos, src/integration/mock/dist/aws-x86_64.pcrs.
NO_APPLICATION = "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"


def pcr(*pieces: bytes) -> str:
    inner = hashlib.sha384(b"".join(pieces)).digest()
    return hashlib.sha384(b"\0" * 48 + inner).hexdigest()


def measured(layout: Layout) -> Measurements:
    with opened(layout.build()) as image:
        return measure(image)


def test_the_real_image_has_the_measurements_that_are_known(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        assert measure(image) == Measurements(
            pcr0="bb284bdbdb58acc5378b549b0f8aa74663f306dd7f37fe612c2f255ed957d0747ebe5f4e1e521aba45703be7fbb44478",
            # Attested by hardware, too: the same image base was run on a real parent.
            pcr1="3b4a7e1b5f13c5a1000b3ed32ef8995ee13e9876329f9bc72650b918329ef9cf4e2e4d1e1e37375dab0ba56ba0974d03",
            pcr2="fcb50b1cdbd84c5517696f7aec573eb5f725e20856e1c4a8da91288d3830a9a0fa90d1525f8340848665b2d696306a86",
            pcr8=None,
            crc32=0x7DB75A75,
        )
        assert check_crc(image)


def test_each_pcr_covers_its_sections() -> None:
    kernel, cmdline, _, *ramdisks = (data for _, data in SMALL)
    found = measured(Layout())
    assert found.pcr0 == pcr(kernel, cmdline, *ramdisks)
    assert found.pcr1 == pcr(kernel, cmdline, ramdisks[0])
    assert found.pcr2 == pcr(*ramdisks[1:])
    assert found.pcr8 is None


def test_an_image_with_one_ramdisk_has_no_application() -> None:
    found = measured(Layout(sections=SMALL[:4]))
    assert found.pcr0 == found.pcr1
    assert found.pcr2 == NO_APPLICATION == extend_once(hashlib.sha384().digest())


def test_metadata_and_header_do_not_count() -> None:
    other = measured(Layout(sections=[*SMALL[:2], *SMALL[3:], (METADATA, b"other")], flags=1, version=4))
    first = measured(Layout())
    assert (other.pcr0, other.pcr1, other.pcr2) == (first.pcr0, first.pcr1, first.pcr2)
    assert other.crc32 != first.crc32


def test_an_empty_first_ramdisk_is_still_the_first() -> None:
    sections = [(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b""), (RAMDISK, b"r")]
    found = measured(Layout(sections=sections))
    assert found.pcr1 == pcr(b"kc")
    assert found.pcr2 == pcr(b"r")


def test_sections_count_in_file_order() -> None:
    sections = [(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"1"), (RAMDISK, b"2")]
    found = measured(Layout(sections=sections, file_order=(3, 1, 2, 0)))
    assert found.pcr0 == pcr(b"2c1k")
    assert found.pcr1 == pcr(b"2ck")
    assert found.pcr2 == pcr(b"1")


@pytest.mark.parametrize("layout", [Layout(), Layout(sections=()), Layout(flags=1, version=3), Layout(unused=7)])
def test_the_checksum_covers_header_and_sections(layout: Layout) -> None:
    data = layout.build()
    with opened(data) as image:
        assert check_crc(image)
        assert measure(image).crc32 == image.header.crc32


@pytest.mark.parametrize("place", [5, 7, 8, 16, 547, 700, 1300, -1])
def test_a_changed_byte_breaks_the_checksum(place: int) -> None:
    data = bytearray(Layout(version=2).build())
    data[place] ^= 1
    with opened(bytes(data)) as image:
        assert not check_crc(image)
        assert measure(image).crc32 != image.header.crc32


def test_pieces_of_any_size_measure_alike() -> None:
    with opened(Layout().build()) as image:
        measurer = Measurer(image.header, image.sections)
        buffer = bytearray(13)
        for section in image.sections:
            for chunk in image.chunks(section, buffer):
                measurer.update(section, chunk)
        assert measurer.finish() == measure(image)


def test_a_caller_that_leaves_data_out_is_told() -> None:
    with opened(Layout().build()) as image:
        sections = image.sections
        data = [image.read(section) for section in sections]
        short = Measurer(image.header, sections)
        short.update(sections[0], data[0][:-1])
        with pytest.raises(ValueError, match="1 bytes of the kernel section were not measured"):
            short.update(sections[1], data[1])
        skipping = Measurer(image.header, sections)
        skipping.update(sections[0], data[0])
        with pytest.raises(ValueError, match="command line section were not measured"):
            skipping.update(sections[2], data[2])
        unfinished = Measurer(image.header, sections)
        with pytest.raises(ValueError, match="kernel section were not measured"):
            unfinished.finish()


def test_a_caller_that_measures_twice_is_told() -> None:
    with opened(Layout(sections=[(KERNEL, b"k")]).build()) as image:
        measurer = Measurer(image.header, image.sections)
        measurer.update(image.sections[0], b"k")
        with pytest.raises(ValueError, match="more data than it has"):
            measurer.update(image.sections[0], b"k")
    with opened(Layout().build()) as image:
        measurer = Measurer(image.header, image.sections)
        for section in image.sections:
            measurer.update(section, image.read(section))
        with pytest.raises(ValueError, match="or twice"):
            measurer.update(image.sections[0], b"k")


@pytest.mark.parametrize("data", [b"", b"junk"])
def test_a_broken_signature_section_is_an_error_that_names_the_image(data: bytes) -> None:
    with pytest.raises(EifError, match=r"image test\.eif: the signature section"):
        measured(Layout(sections=[*SMALL, (SIGNATURE, data)]))


def test_an_absurd_signature_section_is_not_taken_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.eif"
    head = bytearray(Layout(sections=[(SIGNATURE, b"")]).build())
    struct.pack_into(">Q", head, 552, 1 << 32)
    path.write_bytes(head)
    os.truncate(path, len(head) + (1 << 32))
    with EifImage.open(path) as image, pytest.raises(EifError, match="more than"):
        measure(image)


def test_memory_stays_flat_however_large_the_image_is(tmp_path: Path) -> None:
    path = tmp_path / "sparse.eif"
    size = 64 << 20
    head = bytearray(Layout(sections=[(KERNEL, b"")]).build())
    struct.pack_into(">Q", head, 284, size)
    struct.pack_into(">Q", head, 552, size)
    path.write_bytes(head)
    os.truncate(path, len(head) + size)
    with EifImage.open(path) as image:
        assert image.ambiguities == ()
        tracemalloc.start()
        try:
            measure(image)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


def test_the_json_is_that_of_nitro_cli() -> None:
    found = Measurements("0", "1", "2", None, 3)
    assert found.as_json() == {"HashAlgorithm": "Sha384 { ... }", "PCR0": "0", "PCR1": "1", "PCR2": "2"}
    assert list(Measurements("0", "1", "2", "8", 3).as_json()) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2", "PCR8"]
