"""Write an enclave image from its sections, in one pass: what is written is measured as it goes by.

The size of each section is known before the first byte is written; memory stays constant. Only a signature comes when
everything it signs is written: it is the last section, and the file header with its tables and its checksum is written
again after it. The image appears whole or not at all, and not before the reader found no fault with it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from pyrune.eif.checksum import with_other_beginning
from pyrune.eif.cpio import Sink
from pyrune.eif.format import CRC_OFFSET, HEADER_BYTES, MAX_SECTIONS, Chunk, Header, Section, SectionType
from pyrune.eif.measure import Measurements, Measurer, pcr8_of_certificate
from pyrune.eif.output import whole_file
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError

SectionMaker: TypeAlias = Callable[[str], bytes]
"""Makes the data of a signature section for the image whose PCR0, as hex, it is given."""


class Source(Protocol):
    """The data of a section, of a size that is known before they are written."""

    @property
    def size_bytes(self) -> int: ...

    def write(self, out: Sink) -> None: ...


class Text:
    """Data in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def write(self, out: Sink) -> None:
        """Write all of it."""
        out.write(self._data)


def write_image(
    path: str | Path,
    template: Header,
    sources: Sequence[tuple[SectionType, Source]],
    sign: SectionMaker | None = None,
    *,
    mode: int | None = None,
    last_check: Callable[[], None] | None = None,
) -> Measurements:
    """Write an image to `path`, replacing what is there, and return its measurements. Raises EifError.

    The sections are in the order of `sources`; what `sign` makes is one more. The header is `template` with the
    right tables and checksum. See `output.whole_file` for `mode`. `last_check` is called before the image appears,
    which it does not if that raises.
    """
    sections = _lay_out([(kind, source.size_bytes) for kind, source in sources])
    with whole_file(path, "image", mode=mode) as out:
        header = _with_tables(template, sections)
        measurements = _write_sections(out, header, sections, [source for _, source in sources])
        if sign is not None:
            sections, measurements = _write_signature(out, header, sections, measurements, sign)
        out.seek(0)
        out.write(_with_tables(template, sections).with_crc32(measurements.crc32).pack())
        out.flush()
        _check_whole(out, path)
        if last_check is not None:
            last_check()
    return measurements


class _MeasuredSection:
    """Takes the data of one section to the file and to the measurer."""

    def __init__(self, out: BinaryIO, measurer: Measurer, section: Section) -> None:
        self._out = out
        self._measurer = measurer
        self._section = section

    def write(self, data: Chunk, /) -> None:
        self._measurer.update(self._section, data)
        self._out.write(data)


def _lay_out(sizes: Sequence[tuple[SectionType, int]]) -> list[Section]:
    sections: list[Section] = []
    offset = HEADER_BYTES
    for index, (kind, size_bytes) in enumerate(sizes):
        ordinal = sum(section.type is kind for section in sections)
        sections.append(Section(kind, offset, size_bytes, index, ordinal))
        offset = sections[-1].end
    return sections


def _with_tables(template: Header, sections: Sequence[Section]) -> Header:
    if len(sections) > MAX_SECTIONS:
        raise EifError(f"an image holds {MAX_SECTIONS} sections at most, not {len(sections)}")
    unused = (0,) * (MAX_SECTIONS - len(sections))
    return replace(
        template,
        section_count=len(sections),
        section_offsets=(*(section.offset for section in sections), *unused),
        section_sizes=(*(section.size_bytes for section in sections), *unused),
    )


def _write_sections(
    out: BinaryIO, header: Header, sections: Sequence[Section], sources: Sequence[Source]
) -> Measurements:
    measurer = Measurer(header, sections)
    out.write(header.pack())
    for section, source in zip(sections, sources, strict=True):
        out.write(section.pack_header())
        source.write(_MeasuredSection(out, measurer, section))
    return measurer.finish()


def _write_signature(
    out: BinaryIO, header: Header, sections: Sequence[Section], measured: Measurements, sign: SectionMaker
) -> tuple[list[Section], Measurements]:
    """Append the signature section; the sections with it, and the measurements of the image with it."""
    from pyrune.eif.signature import parse_signature

    data = sign(measured.pcr0)
    end = sections[-1].end
    signature = Section(SectionType.SIGNATURE, end, len(data), len(sections))
    out.write(signature.pack_header())
    out.write(data)
    old, new = (zlib.crc32(some.pack()[:CRC_OFFSET]) for some in (header, _with_tables(header, [*sections, signature])))
    crc32 = with_other_beginning(measured.crc32, old, new, end - HEADER_BYTES)
    pcr8 = pcr8_of_certificate(parse_signature(data).certificate_der)
    return [*sections, signature], replace(
        measured, pcr8=pcr8, crc32=zlib.crc32(data, zlib.crc32(signature.pack_header(), crc32))
    )


def _check_whole(out: BinaryIO, path: str | Path) -> None:
    """The reader must find no fault with what was written."""
    with EifImage.from_fd(os.dup(out.fileno()), os.fspath(path)) as image:
        image.require_unambiguous()
        image.require_bootable()
