from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.eif.format import Architecture, Header, SectionType
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, SMALL, Layout, opened

MISREAD_BY_CALLERS = (
    "no such file or directory",
    "not found",
    "not a directory",
    "permission denied",
    "is a directory",
    "executable file",
)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_sections_are_found_with_their_data() -> None:
    with opened(Layout().build()) as image:
        assert [(section.type, image.read(section)) for section in image.sections] == list(SMALL)
        assert image.ambiguities == ()
        image.require_unambiguous()
        image.require_bootable()


def test_the_sections_have_names() -> None:
    with opened(Layout(sections=[*SMALL, (SIGNATURE, b"x")]).build()) as image:
        assert image.kernel is image.sections[0]
        assert image.cmdline is image.sections[1]
        assert image.metadata is image.sections[2]
        assert image.ramdisks == image.sections[3:6]
        assert [ramdisk.label for ramdisk in image.ramdisks] == ["ramdisk 0", "ramdisk 1", "ramdisk 2"]
        assert image.signature is image.sections[6]
        assert image.cmdline_text() == "console=ttyS0 panic=30"


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize(("flags", "arch"), [(0, Architecture.X86_64), (1, Architecture.AARCH64)])
def test_versions_2_to_4_of_both_architectures_are_read(version: int, flags: int, arch: Architecture) -> None:
    sections = [entry for entry in SMALL if entry[0] != METADATA]
    with opened(Layout(sections=sections, version=version, flags=flags).build()) as image:
        assert image.header.version == version
        assert image.header.arch is arch
        assert image.header.default_memory_bytes == 1 << 30
        assert image.header.default_cpus == 2
        assert image.ambiguities == ()


def test_a_header_packs_into_the_bytes_it_came_from() -> None:
    data = bytes(b".eif" + bytes(range(256)) * 3)[:548]
    assert Header.unpack(data).pack() == data


def test_the_real_image_is_read(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        assert image.size_bytes == 15_415_213
        assert image.header.arch is Architecture.AARCH64
        assert image.header.crc32 == 0x7DB75A75
        assert [section.offset for section in image.sections] == [548, 10548272, 10548368, 10550165, 11311009]
        assert image.ambiguities == ()
        image.require_bootable()
        assert image.cmdline_text().startswith("reboot=k panic=30")


def test_chunks_stream_through_a_buffer_of_any_size() -> None:
    with opened(Layout().build()) as image:
        buffer = bytearray(7)
        pieces = [bytes(piece) for piece in image.chunks(image.ramdisks[1], buffer)]
        assert b"".join(pieces) == SMALL[4][1]
        assert max(map(len, pieces)) == 7


def test_the_head_of_a_section_ends_with_the_section() -> None:
    with opened(Layout().build()) as image:
        assert image.kernel is not None
        assert image.cmdline is not None
        assert image.head(image.kernel, 8) == b"kernelke"
        assert image.head(image.cmdline, 1000) == b"console=ttyS0 panic=30"


def test_reading_does_not_move_the_position_of_a_shared_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "image.eif"
    path.write_bytes(Layout().build())
    with path.open("rb") as file, EifImage.from_fd(os.dup(file.fileno()), "shared") as image:
        for section in image.sections:
            image.read(section)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0


def make_nothing(path: Path) -> None:
    pass


def make_below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_socket(path: Path) -> None:
    os.mknod(path, 0o140600)


UNOPENABLE: list[tuple[Callable[[Path], object], str]] = [
    (make_nothing, "nothing is there"),
    (make_below_a_file, "no folder"),
    (make_loop, "circle"),
    (lambda path: path.mkdir(), "a folder"),
    (os.mkfifo, "a FIFO"),
    (make_socket, "a socket"),
    (lambda path: path.symlink_to("/dev/null"), "a device"),
]


@pytest.mark.parametrize(("make", "words"), UNOPENABLE)
def test_what_is_no_regular_file_is_refused_without_blocking(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "folder" / "image.eif"
    path.parent.mkdir()
    make(path)
    before = open_descriptors()
    with pytest.raises(EifError, match=words) as caught:
        EifImage.open(path)
    assert open_descriptors() == before
    assert str(path) in str(caught.value)
    assert not any(text in str(caught.value).lower() for text in MISREAD_BY_CALLERS)


@pytest.mark.parametrize("path", ["a\0b", "a" * 5000, "", "\ud800"])
def test_a_path_that_is_none_is_one_clear_error(path: str) -> None:
    with pytest.raises(EifError, match="does not open"):
        EifImage.open(path)


def test_control_characters_of_a_name_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[31m.eif"
    path.write_bytes(b"junk")
    with pytest.raises(EifError) as caught:
        EifImage.open(path)
    assert str(caught.value).isprintable()


def test_a_failed_open_closes_the_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "image.eif"
    path.write_bytes(Layout(version=9).build())
    before = open_descriptors()
    with pytest.raises(EifError):
        EifImage.open(path)
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("layout", "words", "offset"),
    [
        (Layout(magic=b"\x7fELF"), "no enclave image", 0),
        (Layout(version=1), "version is 1", 4),
        (Layout(version=5), "version is 5", 4),
        (Layout(told_count=33), "33 sections", 26),
        (Layout(told_count=7), "unknown type", 0),
        (Layout(told_offsets={2: 1 << 63}), "header of section 2", 1 << 63),
        (Layout(told_offsets={2: (1 << 64) - 1}), "header of section 2", (1 << 64) - 1),
        (Layout(sections=[*SMALL, (0, b"")]), "section 6 has the unknown type 0", None),
        (Layout(sections=[*SMALL, (6, b"")]), "section 6 has the unknown type 6", None),
    ],
)
def test_a_malformed_image_is_one_error_that_names_the_offset(layout: Layout, words: str, offset: int | None) -> None:
    with pytest.raises(EifError, match=words) as caught:
        opened(layout.build())
    assert caught.value.offset is not None
    assert offset is None or caught.value.offset == offset
    assert "test.eif" in str(caught.value)


@pytest.mark.parametrize("size", [0xFFFF_FFFF_FFFF_FFFF, 1 << 63, 100_000])
def test_a_section_larger_than_the_file_is_refused(size: int) -> None:
    data = bytearray(Layout().build())
    struct.pack_into(">Q", data, 548 + 4, size)
    with pytest.raises(EifError, match=f"inside the kernel section of {size} bytes") as caught:
        opened(bytes(data))
    assert caught.value.offset == 548


@pytest.mark.parametrize("layout", [Layout(), Layout(version=3, sections=SMALL[:2] + SMALL[3:])])
def test_truncation_at_every_offset_is_one_error(layout: Layout) -> None:
    data = layout.build()
    for length in range(len(data)):
        with pytest.raises(EifError) as caught:
            opened(data[:length])
        assert caught.value.offset is not None
        assert caught.value.offset <= len(data)


def test_truncation_of_the_real_image_at_every_page_is_one_error(vectors: Path) -> None:
    source = vectors / "eif" / "aws-hello-aarch64.eif"
    fd = os.memfd_create("copy", os.MFD_CLOEXEC)
    data = source.read_bytes()
    with os.fdopen(fd, "r+b") as file:
        file.write(data)
        file.flush()
        for length in range(len(data) // 4096 * 4096, -1, -4096):
            file.truncate(length)
            with pytest.raises(EifError):
                EifImage.from_fd(os.dup(file.fileno()), "truncated")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image.eif"
    path.write_bytes(Layout().build())
    with EifImage.open(path) as image:
        os.truncate(path, 600)
        assert image.kernel is not None
        with pytest.raises(EifError, match="became shorter"):
            image.read(image.kernel)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(gap=b"xy"), "2 bytes at offset 548 belong to no section"),
        (Layout(tail=b"z"), "1 bytes follow the last section"),
        (Layout(told_offsets={1: 548}), "overlaps"),
        (Layout(told_offsets={5: 548}), "there are 2 kernel sections"),
        (Layout(file_order=(0, 1, 3, 2, 4, 5)), "names the metadata section before the ramdisk 0 section"),
        (Layout(sections=[*SMALL, (KERNEL, b"k")]), "there are 2 kernel sections"),
        (Layout(sections=[*SMALL, (CMDLINE, b"k")]), "there are 2 command line sections"),
        (Layout(sections=[*SMALL, (METADATA, b"k")]), "there are 2 metadata sections"),
        (Layout(sections=[*SMALL, (SIGNATURE, b"k")] * 2), "there are 2 signature sections"),
        (Layout(told_sizes={0: 5}), "600 bytes by its own header, 5 by the file header"),
        (Layout(told_sizes={9: 5}), "its tables name more"),
        (Layout(told_offsets={9: 5}), "its tables name more"),
        (Layout(reserved=1), "reserved"),
        (Layout(unused=1), "reserved"),
        (Layout(flags=0x8001), "unknown flags"),
        (Layout(section_flags=2), "unknown flags"),
        (Layout(version=3), "version 3 of the format has no metadata section"),
        (Layout(version=2, sections=[*SMALL, (SIGNATURE, b"")]), "has no signature section"),
    ],
)
def test_an_ambiguous_image_is_described_but_not_run(layout: Layout, words: str) -> None:
    with opened(layout.build()) as image:
        assert any(words in sentence for sentence in image.ambiguities)
        with pytest.raises(EifError, match="more than one way"):
            image.require_unambiguous()


def test_a_section_that_overlaps_the_file_header_is_ambiguous() -> None:
    data = bytearray(Layout().build())
    struct.pack_into(">Q", data, 28, 500)
    struct.pack_into(">HHQ", data, 500, KERNEL, 0, 600)
    with opened(bytes(data)) as image:
        assert any("overlaps what ends at 548" in sentence for sentence in image.ambiguities)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([], "no kernel"),
        ([(CMDLINE, b"c"), (RAMDISK, b"r")], "no kernel"),
        ([(KERNEL, b"k"), (RAMDISK, b"r")], "no command line"),
        ([(KERNEL, b"k"), (CMDLINE, b"c")], "no ramdisk"),
        ([(KERNEL, b""), (CMDLINE, b"c"), (RAMDISK, b"r")], "kernel is empty"),
        ([(KERNEL, b"k"), (CMDLINE, b""), (RAMDISK, b"r")], "command line is empty"),
        ([(KERNEL, b"k"), (CMDLINE, b"c"), (RAMDISK, b"")], "no ramdisk"),
    ],
)
def test_an_image_without_what_a_boot_needs_is_read_but_not_run(sections: list[tuple[int, bytes]], words: str) -> None:
    with (
        opened(Layout(sections=sections).build()) as image,
        pytest.raises(EifError, match=words),
    ):
        image.require_bootable()


@pytest.mark.parametrize(("data", "words"), [(b"ab\0c", "a NUL"), (b"ab\xff", "not UTF-8")])
def test_a_command_line_that_is_no_text_is_refused(data: bytes, words: str) -> None:
    with (
        opened(Layout(sections=[(KERNEL, b"k"), (CMDLINE, data)]).build()) as image,
        pytest.raises(EifError, match=words) as caught,
    ):
        image.cmdline_text()
    assert caught.value.offset == 548 + 13 + 12 + 2


@pytest.mark.parametrize(("kind", "limit"), [(CMDLINE, 64 << 10), (SIGNATURE, 1 << 20), (METADATA, 16 << 20)])
def test_small_sections_have_a_limit(tmp_path: Path, kind: int, limit: int) -> None:
    path = tmp_path / "sparse.eif"
    head = bytearray(Layout(sections=[(kind, b"")]).build())
    struct.pack_into(">Q", head, 552, limit + 1)
    path.write_bytes(head)
    os.truncate(path, len(head) + limit + 1)
    with EifImage.open(path) as image, pytest.raises(EifError, match="more than"):
        image.read(image.sections[0])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_headers_are_read_or_refused(data: st.DataObject) -> None:
    image_bytes = bytearray(Layout().build())
    interesting = st.one_of(
        st.integers(0, 0xFFFF_FFFF_FFFF_FFFF), st.sampled_from([0, 1, 536, 547, 548, 560, 1160, 1172])
    )
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from([*range(0, 64, 2), *range(284, 340, 8), 540, 544, 548, 552, 1160, 1164]))
        width = data.draw(st.sampled_from([(">H", 0xFFFF), (">Q", 0xFFFF_FFFF_FFFF_FFFF)]))
        struct.pack_into(width[0], image_bytes, place, data.draw(interesting) & width[1])
    image = None
    try:
        image = opened(bytes(image_bytes))
    except EifError as exc:
        offset = exc.offset
    if image is None:
        assert offset is not None
        return
    with image:
        for section in image.sections:
            assert section.type in SectionType
            assert len(image.read(section)) == section.size_bytes
        if not image.ambiguities:
            assert image.sections[-1].end == image.size_bytes if image.sections else image.size_bytes == 548


@given(st.binary(max_size=700))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(EifError):
        opened(data).close()
