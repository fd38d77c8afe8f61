from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyrune.eif.cpio import CpioReader, Entry
from pyrune.eif.diff import images
from pyrune.eif.diff.images import Comparison, compare_images
from pyrune.eif.metadata import Metadata, build_metadata
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.unit.eif.diff.test_archives import file
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, Layout, opened
from tests.unit.eif.signing import signer
from tests.unit.eif.test_cpio import packed

BOOT = packed(file("init", b"\x7fELF\0"))
APPLICATION = packed(file("cmd", b"/app\n"), file("env", b"TOKEN=secret\n"), file("rootfs/app", b"app"))
METADATA_BYTES = Metadata("hello", "1", build_metadata(), {"Config": {"Env": ["TOKEN=secret"]}}).encode()
PARTS: list[tuple[int, bytes]] = [
    (KERNEL, b"kernel"),
    (CMDLINE, b"panic=1"),
    (METADATA, METADATA_BYTES),
    (RAMDISK, BOOT),
    (RAMDISK, APPLICATION),
]


def image(changes: dict[int, bytes] | None = None, more: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """An image whose parts of some indexes have other data."""
    parts = [(kind, (changes or {}).get(index, data)) for index, (kind, data) in enumerate(PARTS)]
    return Layout(sections=[*parts, *more]).build()


def compared(before: bytes, after: bytes, show: bool = False) -> Comparison:
    with opened(before) as old, opened(after) as new:
        return compare_images(old, new, show_values=show)


def told(found: Comparison) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(one.section, one.path, one.attribute, one.pcrs) for one in found.differences]


def test_an_image_is_the_same_as_itself() -> None:
    found = compared(image(), image())
    assert (found.differences, found.moved, found.notes) == ((), (), ())
    assert found.as_lines() == ["the measurements are the same"]


def test_the_real_image_is_the_same_as_itself(vectors: Path) -> None:
    path = vectors / "eif" / "aws-hello-aarch64.eif"
    with EifImage.open(path) as one, EifImage.open(path) as other:
        assert compare_images(one, other).differences == ()


def test_a_file_in_the_real_image_is_found(vectors: Path) -> None:
    data = bytearray((vectors / "eif" / "aws-hello-aarch64.eif").read_bytes())
    with opened(bytes(data)) as before:
        section = before.ramdisks[1]
        reader = CpioReader(before.chunks(section, bytearray(50_000)), section.data_offset)
        entry = max(reader, key=lambda entry: entry.size_bytes)
        data[entry.data_offset + 1000] ^= 1
        with opened(bytes(data)) as after:
            found = compare_images(before, after)
    assert [one for one in told(found) if one[1]] == [("ramdisk 1", entry.label, "content", ("PCR0", "PCR2"))]
    assert found.moved == ("PCR0", "PCR2")
    assert told(found)[0] == ("header", "", "checksum", ())


@pytest.mark.parametrize(
    ("index", "data", "expected", "moved"),
    [
        (0, b"KERNEL", [("kernel", "", "content")], ("PCR0", "PCR1")),
        (1, b"panic=2", [("command line", "", "content"), ("command line", "", "text")], ("PCR0", "PCR1")),
        (3, packed(file("init", b"\x7fELF\1")), [("ramdisk 0", "", "content")], ("PCR0", "PCR1")),
    ],
)
def test_a_section_moves_the_pcrs_it_counts_into(
    index: int, data: bytes, expected: list[tuple[str, str, str]], moved: tuple[str, ...]
) -> None:
    found = compared(image(), image({index: data}))
    assert found.moved == moved
    assert [one[:3] for one in told(found)][: len(expected)] == expected
    assert {one.pcrs for one in found.differences} == {moved}


def test_a_variable_is_named_and_its_value_is_not() -> None:
    other = packed(file("cmd", b"/app\n"), file("env", b"TOKEN=SECRET\n"), file("rootfs/app", b"app"))
    found = compared(image(), image({4: other}))
    assert ("ramdisk 1", "env", "variable TOKEN", ("PCR0", "PCR2")) in told(found)
    text = "\n".join(found.as_lines())
    assert "ramdisk 1: env: variable TOKEN: differs (PCR0, PCR2)" in text
    assert "secret" not in (text + json.dumps(found.as_json())).lower()
    shown = compared(image(), image({4: other}), show=True)
    assert "ramdisk 1: env: variable TOKEN: secret -> SECRET (PCR0, PCR2)" in shown.as_lines()


def test_metadata_move_nothing_and_show_only_what_the_build_says() -> None:
    other = Metadata("hello", "2", build_metadata(), {"Config": {"Env": ["TOKEN=SECRET"]}}).encode()
    found = compared(image(), image({2: other}))
    lines = found.as_lines()
    assert 'metadata: ImageVersion: value: "1" -> "2" (not measured)' in lines
    assert "metadata: DockerInfo.Config.Env[0]: value: differs (not measured)" in lines
    assert lines[-1] == "the measurements are the same"


@pytest.mark.parametrize("data", [b"junk", b"[]", b"\xff"])
def test_metadata_that_are_none_are_noted(data: bytes) -> None:
    found = compared(image(), image({2: data}))
    assert [note.partition(":")[0] for note in found.notes] == ["metadata"]
    assert ("metadata", "", "content", ()) in told(found)


def test_what_is_only_packed_otherwise_is_noted() -> None:
    found = compared(image(), image({4: gzip.compress(APPLICATION)}))
    assert found.moved == ("PCR0", "PCR2")
    assert [one[1] for one in told(found)] == ["", ""]
    assert found.notes == ("ramdisk 1: the entries are the same; only their numbering, padding or packing differs",)


def test_a_ramdisk_that_is_no_archive_is_noted() -> None:
    found = compared(image(), image({4: b"junk"}))
    assert found.moved == ("PCR0", "PCR2")
    (note,) = found.notes
    assert note.startswith("ramdisk 1: its entries cannot be compared to the end: ")


def test_a_signature_moves_pcr8_if_the_certificate_is_another() -> None:
    someone, other = signer(), signer()
    first, again, third = (image(more=[(SIGNATURE, who.section("0" * 96))]) for who in (someone, someone, other))
    same = compared(first, again)
    assert same.moved == ()
    assert {one[:3] for one in told(same)} <= {("signature", "", "content"), ("signature", "", "size")}
    differs = compared(first, third)
    assert differs.moved == ("PCR8",)
    assert ("signature", "", "certificate", ("PCR8",)) in told(differs)
    assert compared(image(), first).moved == ("PCR8",)


def test_a_section_that_only_one_has_is_told() -> None:
    found = compared(image(), image(more=[(RAMDISK, BOOT)]))
    assert told(found) == [("ramdisk 2", "", "section", ("PCR0", "PCR2"))]
    assert found.as_lines()[0] == f"ramdisk 2: section: absent -> {len(BOOT)} bytes (PCR0, PCR2)"


def test_the_order_of_the_sections_counts() -> None:
    swapped = Layout(sections=[PARTS[1], PARTS[0], *PARTS[2:]]).build()
    found = compared(image(), swapped)
    assert told(found) == [("header", "", "order of the sections", ("PCR0", "PCR1"))]


def test_the_header_is_compared() -> None:
    found = compared(Layout(sections=PARTS).build(), Layout(sections=PARTS, flags=1, crc=0).build())
    assert found.as_lines() == [
        "header: architecture: x86_64 -> aarch64 (not measured)",
        "header: checksum: right -> wrong (not measured)",
        "the measurements are the same",
    ]


def test_bytes_that_move_between_sections_are_told_although_no_pcr_moves() -> None:
    found = compared(image(), image({0: b"kernelpanic", 1: b"=1"}))
    assert found.moved == ()
    assert {one[0] for one in told(found)} == {"kernel", "command line"}


def test_differences_are_listed_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_DIFFERENCES", 5)
    other = packed(*(file(f"{number}") for number in range(20)))
    found = compared(image(), image({4: other}))
    assert (len(found.differences), found.left_out) == (5, 20)
    assert "20 more differences are left out" in found.as_lines()


def test_an_image_with_more_than_one_reading_is_refused() -> None:
    with pytest.raises(EifError, match="more than one way"):
        compared(image(), Layout(sections=PARTS, tail=b"x").build())


def test_json_says_the_same() -> None:
    found = compared(image(), image({1: b"panic=\x1b"}))
    shown = json.loads(json.dumps(found.as_json()))
    assert shown["SameMeasurements"] is False
    assert shown["Moved"] == ["PCR0", "PCR1"]
    assert shown["A"]["Measurements"] == found.before.as_json()
    assert shown["Differences"][-1] == {
        "Section": "command line",
        "Path": None,
        "Attribute": "text",
        "A": "'panic=1'",
        "B": r"'panic=\x1b'",
        "PCRs": ["PCR0", "PCR1"],
    }
    assert all(line.isprintable() for line in found.as_lines())
    assert Entry(b"a\x1b", 0).label == r"a\x1b"
