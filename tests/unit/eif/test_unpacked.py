from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.files import CHUNK_BYTES
from pyrune.eif.reader import EifImage
from pyrune.eif.unpacked import gunzipped, read_ramdisk
from pyrune.errors import EifError
from tests.unit.eif.images import CMDLINE, KERNEL, RAMDISK, Layout, opened
from tests.unit.eif.test_cpio import ARCHIVE, pieces


def image_with(ramdisk: bytes) -> EifImage:
    return opened(Layout(sections=[(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, ramdisk)]).build())


def names_in(ramdisk: bytes) -> list[bytes]:
    with image_with(ramdisk) as image:
        return [entry.name for entry in read_ramdisk(image, image.ramdisks[0])]


@pytest.mark.parametrize("ramdisk", [ARCHIVE, gzip.compress(ARCHIVE), gzip.compress(ARCHIVE) + bytes(9)])
def test_an_archive_is_read_packed_or_not(ramdisk: bytes) -> None:
    assert names_in(ramdisk) == [b"dev", b"init", b"sh", b"dev/console"]


def test_packed_archives_may_follow_one_another() -> None:
    assert names_in((gzip.compress(ARCHIVE) + bytes(5)) * 2) == [b"dev", b"init", b"sh", b"dev/console"] * 2


@pytest.mark.parametrize("ramdisk", [b"", b"x", b"\x1f\x8b", b"\xfd7zXZ\0", gzip.compress(b"no archive")])
def test_what_is_no_archive_is_refused(ramdisk: bytes) -> None:
    with pytest.raises(EifError):
        names_in(ramdisk)


@given(st.binary(max_size=3000), st.integers(1, 50))
def test_what_gzip_packed_is_unpacked(data: bytes, size: int) -> None:
    assert b"".join(gunzipped(pieces(gzip.compress(data), size))) == data


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
def test_damage_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    packed = bytearray(gzip.compress(ARCHIVE, mtime=0))
    for place, value in changes:
        packed[place % len(packed)] = value
    try:
        found = b"".join(gunzipped([packed]))
    except EifError:
        return
    assert found == ARCHIVE


def test_truncation_at_every_offset_is_refused() -> None:
    packed = gzip.compress(ARCHIVE)
    for length in range(len(packed)):
        with pytest.raises(EifError, match="ends too early"):
            list(gunzipped([packed[:length]]))


def test_a_small_file_that_unpacks_to_a_large_one_takes_no_memory() -> None:
    def bomb() -> Iterator[bytes]:
        packer = zlib.compressobj(wbits=31)
        for _ in range(64):
            yield packer.compress(bytes(1 << 20))
        yield packer.flush()

    packed = b"".join(bomb())
    tracemalloc.start()
    try:
        sizes = [len(piece) for piece in gunzipped([packed])]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= CHUNK_BYTES
    assert peak < 8 << 20


def test_the_real_ramdisks_are_read(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        assert [sum(1 for _ in read_ramdisk(image, ramdisk)) for ramdisk in image.ramdisks] == [3, 459]
