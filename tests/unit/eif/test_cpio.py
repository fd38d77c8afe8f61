from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.cpio import CpioReader, CpioWriter, Entry, archive_bytes
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError

DIRECTORY = Entry(b"dev", 0o040755, mtime=1492533000)
FILE = Entry(b"init", 0o100755, size_bytes=5, uid=1, gid=2, mtime=3)
LINK = Entry(b"sh", 0o120777, size_bytes=4)
DEVICE = Entry(b"dev/console", 0o020600, rdev_major=5, rdev_minor=1)


def packed(*entries: tuple[Entry, bytes]) -> bytes:
    out = io.BytesIO()
    writer = CpioWriter(out)
    for entry, data in entries:
        writer.add(entry, [data] if data else [])
    writer.finish()
    assert writer.size_bytes == len(out.getvalue())
    return out.getvalue()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def unpacked(data: bytes, size: int = 1000, base: int = 0) -> list[tuple[Entry, bytes]]:
    reader = CpioReader(pieces(data, size), base)
    return [(entry, b"".join(bytes(piece) for piece in reader.data())) for entry in reader]


ARCHIVE = packed((DIRECTORY, b""), (FILE, b"hello"), (LINK, b"init"), (DEVICE, b""))


def test_the_dialect_is_that_of_linuxkit() -> None:
    numbers = [721, 0o100755, 1, 2, 1, 3, 5, 3, 1, 0, 0, 5, 0]
    trailer = [722, 0, 0, 0, 1, 0, 0, 3, 1, 0, 0, 11, 0]
    assert packed((FILE, b"hello")) == (
        b"070701"
        + b"".join(b"%08x" % number for number in numbers)
        + b"init\0\0"
        + b"hello\0\0\0"
        + b"070701"
        + b"".join(b"%08x" % number for number in trailer)
        + b"TRAILER!!!\0\0\0\0"
    ).ljust(512, b"\0")


def test_both_ramdisks_of_the_real_image_are_written_again_byte_for_byte(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        counts = []
        for section in image.ramdisks:
            reader = CpioReader(image.chunks(section, bytearray(50_000)), section.data_offset)
            out = io.BytesIO()
            writer = CpioWriter(out)
            entries = []
            for entry in reader:
                writer.add(entry, reader.data())
                entries.append(entry)
            writer.finish()
            assert out.getvalue() == image.read(section)
            assert archive_bytes(entries) == section.size_bytes
            counts.append(len(entries))
    assert counts == [3, 459]


def test_entries_say_where_they_are() -> None:
    (_, _), (entry, data), _, (device, _) = unpacked(ARCHIVE, base=7000)
    assert ARCHIVE[entry.offset - 7000 :].startswith(b"070701")
    assert ARCHIVE[entry.data_offset - 7000 :].startswith(b"hello")
    assert data == b"hello"
    assert (entry.name, entry.mode, entry.uid, entry.gid, entry.mtime) == (b"init", 0o100755, 1, 2, 3)
    assert (entry.ino, entry.nlink, entry.dev_major, entry.dev_minor) == (722, 1, 3, 1)
    assert (device.rdev_major, device.rdev_minor) == (5, 1)


@given(st.integers(1, 600))
def test_pieces_of_any_size_are_read_alike(size: int) -> None:
    assert unpacked(ARCHIVE, size) == unpacked(ARCHIVE)


def test_data_that_nobody_asked_for_are_skipped() -> None:
    assert [entry.name for entry in CpioReader([ARCHIVE])] == [b"dev", b"init", b"sh", b"dev/console"]


def test_several_archives_with_zeros_between_are_one() -> None:
    both = ARCHIVE + bytes(512) + packed((LINK, b"abcd"))
    assert [entry.name for entry, _ in unpacked(both)] == [b"dev", b"init", b"sh", b"dev/console", b"sh"]


NAMES = st.binary(min_size=1, max_size=30).filter(lambda name: 0 not in name and name != b"TRAILER!!!")
NUMBERS = st.integers(0, 0xFFFF_FFFF)


@given(st.lists(st.tuples(NAMES, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=50)), max_size=5))
def test_what_is_written_is_read(rows: list[tuple[bytes, int, int, int, int, bytes]]) -> None:
    entries = [
        (Entry(name, mode, size_bytes=len(data), uid=uid, gid=gid, mtime=mtime), data)
        for name, mode, uid, gid, mtime, data in rows
    ]
    data = packed(*entries)
    assert len(data) == archive_bytes(entry for entry, _ in entries)
    found = unpacked(data)
    assert [(e.name, e.mode, e.uid, e.gid, e.mtime, data) for e, data in found] == rows
    assert packed(*found) == data


def test_truncation_at_every_offset_is_an_error() -> None:
    end = ARCHIVE.rindex(b"TRAILER!!!") + 14
    for length in range(end):
        with pytest.raises(EifError) as caught:
            unpacked(ARCHIVE[:length])
        assert caught.value.offset is not None
    assert len(unpacked(ARCHIVE[:end])) == 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ends without a trailer"),
        (b"\x1f\x8b" + bytes(200), "no archive entry"),
        (b"070707" + bytes(200), "no archive entry"),
        (ARCHIVE + b"junk" * 50, "no archive entry"),
        (b"070701" + b"g" * 104, "not hexadecimal"),
        (b"070701" + b" " * 104, "not hexadecimal"),
        (b"070701" + b"\xff" * 104, "not hexadecimal"),
        (b"070701" + b"+0000001" * 13, "not hexadecimal"),
        (ARCHIVE.replace(b"0000000400000000dev\0", b"0000000000000000dev\0"), "a name of 0 bytes"),
        (ARCHIVE.replace(b"0000000400000000dev\0", b"0000100100000000dev\0"), "a name of 4097 bytes"),
        (ARCHIVE.replace(b"dev\0", b"devx"), "does not end with a NUL"),
        (ARCHIVE.replace(b"dev\0", b"d\0v\0"), "does not end with a NUL"),
    ],
)
def test_what_is_no_archive_is_one_error(data: bytes, words: str) -> None:
    with pytest.raises(EifError, match=words):
        unpacked(data)


@given(st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutated_archives_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ARCHIVE)
    for place, value in changes:
        data[place] = value
    try:
        found = unpacked(bytes(data))
    except EifError as exc:
        offset = exc.offset
    else:
        offset = max((entry.data_offset for entry, _ in found), default=0)
    assert offset is not None
    assert offset <= len(data)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry(b"TRAILER!!!", 0o100644), "ends an archive"),
        (Entry(b"", 0o100644), "empty"),
        (Entry(b"a\0b", 0o100644), "has a NUL"),
        (Entry(b"a" * 4096, 0o100644), "too long"),
        (Entry(b"big\x1b", 0o100644, size_bytes=1 << 32), r"big\\x1b cannot be packed: it has 4 GiB"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(entry: Entry, words: str) -> None:
    with pytest.raises(EifError, match=words):
        CpioWriter(io.BytesIO()).add(entry)


@pytest.mark.parametrize(("data", "words"), [(b"hell", "became shorter"), (b"hello!", "became longer")])
def test_data_of_another_size_than_promised_are_an_error(data: bytes, words: str) -> None:
    with pytest.raises(EifError, match=words):
        packed((FILE, data))


def test_hard_links_share_an_inode_number() -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    ino = writer.add(FILE, [b"hello"], nlink=2)
    writer.add(Entry(b"other", 0o100755), ino=ino, nlink=2)
    writer.add(Entry(b"last", 0o100644))
    writer.finish()
    assert [(e.name, e.ino, e.nlink) for e, _ in unpacked(out.getvalue())] == [
        (b"init", 721, 2),
        (b"other", 721, 2),
        (b"last", 723, 1),
    ]
