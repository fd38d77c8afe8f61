from __future__ import annotations

import gzip
import os
import resource
import signal
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pyrune.eif.builder import MAX_RAMDISKS, build
from pyrune.eif.cpio import CpioReader
from pyrune.eif.format import Architecture, SectionType
from pyrune.eif.measure import Measurements, check_crc, measure
from pyrune.eif.metadata import parse_metadata
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.unit.eif.kernels import arm64_image, bzimage
from tests.unit.eif.test_measure import pcr

CMDLINE = "console=ttyS0 panic=30"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A directory with a kernel, a ramdisk and a tree."""
    directory = tmp_path / "parts"
    (directory / "tree" / "bin").mkdir(parents=True)
    (directory / "tree" / "init").write_bytes(b"#!/bin/sh\n")
    (directory / "tree" / "bin" / "app").write_bytes(b"application" * 1000)
    (directory / "kernel").write_bytes(bzimage())
    (directory / "arm64").write_bytes(arm64_image())
    (directory / "ramdisk.gz").write_bytes(gzip.compress(b"first ramdisk" * 100, mtime=0))
    return directory


def built(parts: Path, name: str = "image.eif") -> tuple[Path, Measurements]:
    output = parts / name
    ramdisks = [parts / "ramdisk.gz", parts / "tree"]
    return output, build(output, kernel=parts / "kernel", cmdline=CMDLINE, ramdisks=ramdisks)


def test_the_reader_finds_in_an_image_what_the_builder_was_given(parts: Path) -> None:
    output, _ = built(parts)
    with EifImage.open(output) as image:
        assert image.ambiguities == ()
        assert (image.header.version, image.header.flags, image.header.arch) == (4, 0, Architecture.X86_64)
        assert (image.header.default_memory_bytes, image.header.default_cpus) == (1 << 30, 2)
        assert [section.type for section in image.sections] == [
            SectionType.KERNEL,
            SectionType.CMDLINE,
            SectionType.METADATA,
            SectionType.RAMDISK,
            SectionType.RAMDISK,
        ]
        assert image.read(image.sections[0]) == bzimage()
        assert image.cmdline_text() == CMDLINE
        assert image.read(image.ramdisks[0]) == (parts / "ramdisk.gz").read_bytes()
        names = [entry.name for entry in CpioReader(image.chunks(image.ramdisks[1], bytearray(1000)))]
        assert names == [b"bin", b"bin/app", b"init"]


def test_the_measurements_are_those_of_the_file(parts: Path) -> None:
    output, measurements = built(parts)
    with EifImage.open(output) as image:
        assert measure(image) == measurements
        assert check_crc(image)
        first, second = (image.read(ramdisk) for ramdisk in image.ramdisks)
    assert measurements.pcr1 == pcr(bzimage(), CMDLINE.encode(), first)
    assert measurements.pcr2 == pcr(second)


def test_the_real_image_is_built_again_byte_for_byte_but_for_its_metadata(vectors: Path, tmp_path: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        expected = measure(image)
        cmdline = image.cmdline_text()
        for section in image.sections:
            (tmp_path / section.label).write_bytes(image.read(section))
    found = build(
        tmp_path / "again.eif",
        kernel=tmp_path / "kernel",
        cmdline=cmdline,
        ramdisks=[tmp_path / "ramdisk 0", tmp_path / "ramdisk 1"],
    )
    assert (found.pcr0, found.pcr1, found.pcr2) == (expected.pcr0, expected.pcr1, expected.pcr2)
    with EifImage.open(tmp_path / "again.eif") as again:
        assert again.header.arch is Architecture.AARCH64


def test_the_same_inputs_give_the_same_bytes(parts: Path) -> None:
    first, _ = built(parts, "same.eif")
    data = first.read_bytes()
    os.utime(parts / "tree" / "init", (5, 5))
    second, _ = built(parts, "same.eif")
    assert second.read_bytes() == data


def test_the_metadata_say_what_was_built(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    output, plain = built(parts)
    with EifImage.open(output) as image:
        assert image.metadata is not None
        metadata = parse_metadata(image.read(image.metadata))
    assert (metadata.image_name, metadata.image_version) == ("image", "")
    assert metadata.build.kernel_version == "6.12.9-cloud-amd64"
    assert metadata.build.build_time == "1980-01-01T00:00:00+00:00"
    other = build(
        output,
        kernel=parts / "kernel",
        cmdline=CMDLINE,
        ramdisks=[parts / "ramdisk.gz", parts / "tree"],
        name="other",
        version="2",
        custom_metadata={"a": 1},
        build_time=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert (other.pcr0, other.pcr1, other.pcr2) == (plain.pcr0, plain.pcr1, plain.pcr2)
    assert other.crc32 != plain.crc32
    with EifImage.open(output) as image:
        assert image.metadata is not None
        metadata = parse_metadata(image.read(image.metadata))
    assert (metadata.image_name, metadata.image_version, metadata.custom) == ("other", "2", {"a": 1})
    assert metadata.build.build_time == "2026-01-01T00:00:00+00:00"


def architecture_of(parts: Path, kernel: str, arch: Architecture | None = None) -> Architecture:
    output = parts / "image.eif"
    build(output, kernel=parts / kernel, cmdline=CMDLINE, ramdisks=[parts / "tree"], arch=arch)
    with EifImage.open(output) as image:
        return image.header.arch


def test_the_architecture_is_the_kernels_unless_told_otherwise(parts: Path) -> None:
    assert architecture_of(parts, "kernel") is Architecture.X86_64
    assert architecture_of(parts, "arm64") is Architecture.AARCH64
    assert architecture_of(parts, "kernel", Architecture.AARCH64) is Architecture.AARCH64
    (parts / "kernel").write_bytes(b"a kernel of some kind")
    assert architecture_of(parts, "kernel") == os.uname().machine


def test_blanks_around_the_command_line_are_dropped(parts: Path) -> None:
    output = parts / "image.eif"
    build(output, kernel=parts / "kernel", cmdline=f" {CMDLINE}\n", ramdisks=[parts / "tree"])
    with EifImage.open(output) as image:
        assert image.cmdline_text() == CMDLINE


@pytest.mark.parametrize("cmdline", ["", " \n", "a\0b", "a\nb", "\udc80", "x" * 70_000])
def test_a_command_line_that_is_none_is_refused(parts: Path, cmdline: str) -> None:
    with pytest.raises(EifError, match="command line"):
        build(parts / "image.eif", kernel=parts / "kernel", cmdline=cmdline, ramdisks=[parts / "tree"])


@pytest.mark.parametrize("count", [0, MAX_RAMDISKS + 1])
def test_an_image_has_a_limited_number_of_ramdisks(parts: Path, count: int) -> None:
    with pytest.raises(EifError, match=f"1 to 28 ramdisks, not {count}"):
        build(parts / "image.eif", kernel=parts / "kernel", cmdline=CMDLINE, ramdisks=[parts / "tree"] * count)


def test_an_image_takes_all_the_ramdisks_it_may_have(parts: Path) -> None:
    ramdisks = [parts / "ramdisk.gz"] * MAX_RAMDISKS
    build(parts / "image.eif", kernel=parts / "kernel", cmdline=CMDLINE, ramdisks=ramdisks)
    with EifImage.open(parts / "image.eif") as image:
        assert len(image.ramdisks) == MAX_RAMDISKS


@pytest.mark.parametrize(
    ("kernel", "ramdisk", "words"),
    [
        ("missing", "tree", "kernel .*/missing does not open: nothing is there"),
        ("tree", "tree", "kernel .*/tree does not open: it is no regular file but a folder"),
        ("empty", "tree", "kernel .*/empty is empty"),
        ("kernel", "missing", "ramdisk .*/missing does not open: nothing is there"),
        ("kernel", "empty", "ramdisk .*/empty is empty"),
        ("kernel", "fifo", "ramdisk .*/fifo does not open: it is no regular file but a FIFO"),
        ("kernel", "bad", "bad/fifo cannot be packed"),
        ("kernel", "a\0b", "its path is no file name"),
    ],
)
def test_a_part_that_cannot_be_used_is_one_error_and_leaves_nothing(
    parts: Path, kernel: str, ramdisk: str, words: str
) -> None:
    (parts / "empty").touch()
    (parts / "bad").mkdir()
    os.mkfifo(parts / "fifo")
    os.mkfifo(parts / "bad" / "fifo")
    before = (sorted(os.listdir(parts)), len(os.listdir("/proc/self/fd")))
    with pytest.raises(EifError, match=words):
        build(parts / "image.eif", kernel=parts / kernel, cmdline=CMDLINE, ramdisks=[parts / ramdisk])
    assert (sorted(os.listdir(parts)), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("output", ["", "missing/image.eif", "tree", "a\0b", "kernel/image.eif"])
def test_an_output_that_cannot_be_written_is_one_error_and_leaves_nothing(
    parts: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(parts)
    before = sorted(os.listdir(parts))
    with pytest.raises(EifError, match="cannot be written"):
        build(output, kernel="kernel", cmdline=CMDLINE, ramdisks=["tree"])
    assert sorted(os.listdir(parts)) == before


def test_a_full_disk_is_one_error_and_leaves_the_old_image(parts: Path) -> None:
    output, _ = built(parts)
    old = output.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(EifError, match="cannot be written: the system says EFBIG"):
            built(parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert output.read_bytes() == old
    assert not [name for name in os.listdir(parts) if name.startswith(".pyrune")]


def test_an_image_has_the_mode_of_any_new_file(parts: Path) -> None:
    old = os.umask(0o027)
    try:
        output, _ = built(parts)
    finally:
        os.umask(old)
    assert output.stat().st_mode & 0o777 == 0o640


def test_memory_stays_flat_however_large_the_parts_are(parts: Path) -> None:
    with (parts / "tree" / "large").open("wb") as file:
        file.truncate(48 << 20)
    with (parts / "ramdisk.gz").open("r+b") as file:
        file.truncate(48 << 20)
    tracemalloc.start()
    try:
        built(parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
