"""What in an image different readers read differently. Pure: the header and the sections in, sentences out.

Three readers matter: the hypervisor of Nitro, whose source is not public; AWS's library, which walks the file from
the end of the header on and looks neither at the header's tables nor at what is left at the end; and QEMU, which
goes by the tables and demands that they agree with the section headers. An image on which they may disagree can
have one measurement in the hands of whoever signs it and another where it runs, so it is never run.

Sources: github.com/aws/aws-nitro-enclaves-image-format, src/utils/eif_reader.rs; QEMU, hw/core/eif.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from pyrune.eif.format import FLAG_AARCH64, HEADER_BYTES, Header, Section, SectionType

_FIRST_VERSION: Final = {SectionType.SIGNATURE: 3, SectionType.METADATA: 4}


def find_ambiguities(header: Header, sections: Sequence[Section], size_bytes: int) -> tuple[str, ...]:
    """One sentence for each ambiguity of an image of `size_bytes`, whose `sections` are given in file order."""
    return (
        *_reserved_fields(header, sections),
        *_table_disagreements(header, sections),
        *_order(sections),
        *_layout(sections, size_bytes),
        *_duplicates(sections),
        *_too_new_sections(header, sections),
    )


def _reserved_fields(header: Header, sections: Sequence[Section]) -> Iterator[str]:
    if header.flags & ~FLAG_AARCH64:
        yield f"the header has unknown flags (0x{header.flags:04x})"
    if header.reserved or header.unused:
        yield "a reserved field of the header is not zero"
    for table in (header.section_offsets, header.section_sizes):
        if any(table[header.section_count :]):
            yield f"the header counts {header.section_count} sections, but its tables name more"
            break
    for section in sections:
        if section.flags:
            yield f"the {section.label} section has unknown flags (0x{section.flags:04x})"


def _table_disagreements(header: Header, sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        told = header.section_sizes[section.index]
        if told != section.size_bytes:
            yield (
                f"the {section.label} section has {section.size_bytes} bytes by its own header, "
                f"{told} by the file header"
            )


def _order(sections: Sequence[Section]) -> Iterator[str]:
    for before, after in pairwise(sections):
        if before.index > after.index:
            yield (
                f"the file header names the {after.label} section before the {before.label} section, "
                "but in the file it comes after"
            )


def _layout(sections: Sequence[Section], size_bytes: int) -> Iterator[str]:
    position = HEADER_BYTES
    for section in sections:
        if section.offset > position:
            yield f"{section.offset - position} bytes at offset {position} belong to no section"
        elif section.offset < position:
            yield f"the {section.label} section at offset {section.offset} overlaps what ends at {position}"
        position = max(position, section.end)
    if size_bytes > position:
        yield f"{size_bytes - position} bytes follow the last section, at offset {position}"


def _duplicates(sections: Sequence[Section]) -> Iterator[str]:
    for kind in SectionType:
        count = sum(section.type is kind for section in sections)
        if count > 1 and kind is not SectionType.RAMDISK:
            yield f"there are {count} {kind.label} sections"


def _too_new_sections(header: Header, sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        if header.version < _FIRST_VERSION.get(section.type, 0):
            yield f"version {header.version} of the format has no {section.label} section, but this image has one"
