"""Compare two enclave images: their measurements, headers and sections, and what is in sections that differ.

Each image is read once for its measurements and a digest of each section; ramdisks that differ are read once more.
Memory does not grow with the size of the images, and with the number of differences only up to a limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from pyrune.eif.diff.archives import compare_archives
from pyrune.eif.diff.difference import Difference
from pyrune.eif.diff.texts import compare_json
from pyrune.eif.files import CHUNK_BYTES
from pyrune.eif.format import Section, SectionType
from pyrune.eif.measure import Measurements, Measurer
from pyrune.eif.metadata import Json, parse_json
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import parse_signature
from pyrune.eif.unpacked import read_ramdisk
from pyrune.errors import EifError

MAX_DIFFERENCES: Final = 10_000

_PCRS: Final = ("PCR0", "PCR1", "PCR2", "PCR8")
# Metadata that come from the build and not from the user's image.
_OPEN_METADATA: Final = ("ImageName", "ImageVersion", "BuildMetadata")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs. `left_out` counts the differences beyond MAX_DIFFERENCES, `notes` say what was not compared."""

    before: Measurements
    after: Measurements
    differences: tuple[Difference, ...]
    left_out: int
    notes: tuple[str, ...]

    @property
    def moved(self) -> tuple[str, ...]:
        """The PCRs that differ."""
        return _moved(self.before, self.after)

    def as_lines(self) -> list[str]:
        """One line for each difference, and one for each PCR that differs."""
        before, after = self.before.as_json(), self.after.as_json()
        return [
            *(difference.as_text() for difference in self.differences),
            *([f"{self.left_out} more differences are left out"] if self.left_out else ()),
            *self.notes,
            *(f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}" for name in self.moved),
            *([] if self.moved else ["the measurements are the same"]),
        ]

    def as_json(self) -> dict[str, object]:
        """An object in the manner of nitro-cli's; A is the first image, B the second."""
        return {
            "SameMeasurements": not self.moved,
            "A": {"Measurements": self.before.as_json()},
            "B": {"Measurements": self.after.as_json()},
            "Moved": list(self.moved),
            "Differences": [difference.as_json() for difference in self.differences],
            "LeftOut": self.left_out,
            "Notes": list(self.notes),
        }


def compare_images(before: EifImage, after: EifImage, *, show_values: bool = False) -> Comparison:
    """Compare two images. Raises EifError for one that can be read in more than one way, or is malformed."""
    first, second = _Summary(before), _Summary(after)
    notes: list[str] = []
    moved = _moved(first.measurements, second.measurements)
    found = (
        replace(difference, pcrs=tuple(name for name in difference.pcrs if name in moved))
        for difference in _differences(first, second, notes, show_values)
    )
    listed = tuple(islice(found, MAX_DIFFERENCES))
    left_out = sum(1 for _ in found)
    return Comparison(first.measurements, second.measurements, listed, left_out, tuple(notes))


class _Summary:
    """An image, its measurements, and the digest of each of its sections."""

    def __init__(self, image: EifImage) -> None:
        image.require_unambiguous()
        self.image = image
        self.digests: dict[Section, str] = {}
        self.sections = {section.label: section for section in image.sections}
        measurer = Measurer(image.header, image.sections)
        buffer = bytearray(CHUNK_BYTES)
        for section in image.sections:
            digest = hashlib.sha256()
            for chunk in image.chunks(section, buffer):
                measurer.update(section, chunk)
                digest.update(chunk)
            self.digests[section] = f"sha256:{digest.hexdigest()}"
        try:
            self.measurements = measurer.finish()
        except EifError as exc:
            raise image.error(exc.problem, exc.offset) from exc

    def header_fields(self) -> Iterator[tuple[str, str]]:
        """What the header says, in words."""
        header = self.image.header
        yield "version", str(header.version)
        yield "architecture", header.arch
        yield "default memory", str(header.default_memory_bytes)
        yield "default vCPUs", str(header.default_cpus)
        yield "checksum", "right" if header.crc32 == self.measurements.crc32 else "wrong"


def _moved(before: Measurements, after: Measurements) -> tuple[str, ...]:
    one, other = before.as_json(), after.as_json()
    return tuple(name for name in _PCRS if one.get(name) != other.get(name))


def _differences(before: _Summary, after: _Summary, notes: list[str], show_values: bool) -> Iterator[Difference]:
    for (field, one), (_, other) in zip(before.header_fields(), after.header_fields(), strict=True):
        if one != other:
            yield Difference(field, one, other, section="header")
    yield from _order(before, after)
    for label in dict.fromkeys([*before.sections, *after.sections]):
        old, new = before.sections.get(label), after.sections.get(label)
        if old is None or new is None:
            pcrs = _concerned(old or new)
            yield Difference("section", _size(old), _size(new), section=label, pcrs=pcrs)
        elif before.digests[old] != after.digests[new]:
            for difference in _section(before, after, label, notes, show_values):
                yield replace(difference, section=label, pcrs=difference.pcrs or _concerned(old))


def _order(before: _Summary, after: _Summary) -> Iterator[Difference]:
    """Sections that both have, in another order; with it, the bytes that are measured are in another order."""
    old = [label for label in before.sections if label in after.sections]
    new = [label for label in after.sections if label in before.sections]
    if old != new:
        yield Difference("order of the sections", ", ".join(old), ", ".join(new), section="header", pcrs=_PCRS[:3])


def _concerned(section: Section | None) -> tuple[str, ...]:
    """The PCRs that the data of a section count into."""
    match section:
        case Section(type=SectionType.KERNEL | SectionType.CMDLINE) | Section(type=SectionType.RAMDISK, ordinal=0):
            return ("PCR0", "PCR1")
        case Section(type=SectionType.RAMDISK):
            return ("PCR0", "PCR2")
        case _:
            return ()


def _size(section: Section | None) -> str | None:
    return None if section is None else f"{section.size_bytes} bytes"


def _section(
    before: _Summary, after: _Summary, label: str, notes: list[str], show_values: bool
) -> Iterator[Difference]:
    """What differs between two sections of different data; at least that they do."""
    old, new = before.sections[label], after.sections[label]
    if old.size_bytes != new.size_bytes:
        yield Difference("size", str(old.size_bytes), str(new.size_bytes))
    yield Difference("content", before.digests[old], after.digests[new])
    match old.type:
        case SectionType.CMDLINE:
            yield Difference("text", _text(before, old), _text(after, new))
        case SectionType.RAMDISK:
            yield from _ramdisk(before, after, label, notes, show_values)
        case SectionType.METADATA:
            yield from _metadata(before, after, label, notes, show_values)
        case SectionType.SIGNATURE:
            yield from _signature(before, after, label)


def _text(side: _Summary, section: Section) -> str:
    return repr(side.image.read(section).decode(errors="backslashreplace"))


def _ramdisk(
    before: _Summary, after: _Summary, label: str, notes: list[str], show_values: bool
) -> Iterator[Difference]:
    readers = [read_ramdisk(side.image, side.sections[label]) for side in (before, after)]
    seen = False
    try:
        for difference in compare_archives(*readers, show_values=show_values):
            seen = True
            yield difference
    except EifError as exc:
        notes.append(f"{label}: its entries cannot be compared to the end: {exc}")
    else:
        if not seen:
            notes.append(f"{label}: the entries are the same; only their numbering, padding or packing differs")


def _metadata(
    before: _Summary, after: _Summary, label: str, notes: list[str], show_values: bool
) -> Iterator[Difference]:
    try:
        old, new = (_json(side, side.sections[label]) for side in (before, after))
    except EifError as exc:
        notes.append(f"{label}: they cannot be compared: {exc}")
        return
    for key in dict.fromkeys([*old, *new]):
        shown = show_values or key in _OPEN_METADATA
        one, other = ({key: side[key]} if key in side else {} for side in (old, new))
        yield from compare_json(one, other, show_values=shown)


def _json(side: _Summary, section: Section) -> dict[str, Json]:
    try:
        value = parse_json(side.image.read(section))
    except (ValueError, RecursionError) as exc:
        raise side.image.error("its metadata are no JSON", section.offset) from exc
    if not isinstance(value, dict):
        raise side.image.error("its metadata are no object", section.offset)
    return value


def _signature(before: _Summary, after: _Summary, label: str) -> Iterator[Difference]:
    old, new = (
        hashlib.sha256(parse_signature(side.image.read(side.sections[label])).certificate_der).hexdigest()
        for side in (before, after)
    )
    if old != new:
        yield Difference("certificate", f"sha256:{old}", f"sha256:{new}", pcrs=("PCR8",))
