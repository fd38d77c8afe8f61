"""Open an enclave image, check its structure, and read its sections. Nothing is measured or believed here.

An image may be hostile. Whatever is wrong with its structure is one `EifError` that names the offset; what is only
doubtful is listed in `EifImage.ambiguities` so that it can be described, and `require_unambiguous` refuses it.
Where an image is ambiguous, the offsets of the file header and the sizes of the section headers count.

A path is opened once, and everything afterwards goes through that descriptor with positioned reads: the file that
was checked is the file that is measured and run, and the descriptor's own position never moves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyrune.eif.ambiguity import find_ambiguities
from pyrune.eif.files import CHUNK_BYTES, chunks, open_regular, quoted, regular_size
from pyrune.eif.format import (
    CURRENT_VERSION,
    HEADER_BYTES,
    MAGIC,
    MAX_SECTIONS,
    OFFSETS_OFFSET,
    OLDEST_VERSION,
    SECTION_HEADER_BYTES,
    Header,
    Section,
    SectionType,
    unpack_section_header,
)
from pyrune.errors import EifError

# The sections that are read whole. Real ones have some hundred bytes (cmdline), some kilobytes (metadata,
# signature); Linux takes no command line above 4 KiB.
READ_LIMITS_BYTES: Final = {
    SectionType.CMDLINE: 64 << 10,
    SectionType.SIGNATURE: 1 << 20,
    SectionType.METADATA: 16 << 20,
}


class EifImage:
    """An enclave image whose structure has been checked.

    `sections` are in file order. The object owns `fd`; `close`, or the context manager, closes it.
    """

    name: str
    fd: int
    size_bytes: int
    header: Header
    sections: tuple[Section, ...]
    ambiguities: tuple[str, ...]

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = quoted(name)
        try:
            self.size_bytes = regular_size(fd, f"image {self.name}")
            self.header = self._read_header()
            self.sections = self._read_sections()
        except BaseException:
            self.close()
            raise
        self.ambiguities = find_ambiguities(self.header, self.sections, self.size_bytes)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the regular file at `path` and check its structure.

        Never blocks, even if `path` names a FIFO. Raises EifError.
        """
        name = os.fspath(path)
        fd, _ = open_regular(name, f"image {quoted(name)}")
        return cls(fd, name)

    @classmethod
    def from_fd(cls, fd: int, name: str) -> Self:
        """The image that `fd` has open for reading; `name` is for messages. Takes `fd` over, even if it raises."""
        return cls(fd, name)

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def kernel(self) -> Section | None:
        """The kernel, or None."""
        return self._first(SectionType.KERNEL)

    @property
    def cmdline(self) -> Section | None:
        """The kernel's command line, or None."""
        return self._first(SectionType.CMDLINE)

    @property
    def metadata(self) -> Section | None:
        """The JSON about the build, or None."""
        return self._first(SectionType.METADATA)

    @property
    def signature(self) -> Section | None:
        """The signature of PCR0, or None."""
        return self._first(SectionType.SIGNATURE)

    @property
    def ramdisks(self) -> tuple[Section, ...]:
        """The ramdisks, in file order; the kernel sees them as one archive."""
        return tuple(section for section in self.sections if section.type is SectionType.RAMDISK)

    def require_unambiguous(self) -> None:
        """Raise EifError if another reader may see another image in this file."""
        if self.ambiguities:
            raise self.error(f"it can be read in more than one way: {'; '.join(self.ambiguities)}")

    def require_bootable(self) -> None:
        """Raise EifError unless there are a kernel, a command line and a ramdisk, none of them empty."""
        for section, label in ((self.kernel, "kernel"), (self.cmdline, "command line")):
            if section is None:
                raise self.error(f"it cannot boot: it has no {label} section")
            if not section.size_bytes:
                raise self.error(f"it cannot boot: its {label} is empty", section.offset)
        if not any(ramdisk.size_bytes for ramdisk in self.ramdisks):
            raise self.error("it cannot boot: it has no ramdisk")

    def cmdline_text(self) -> str:
        """The kernel's command line as text. Raises EifError if the kernel would read another one than is measured."""
        section = self.cmdline
        if section is None:
            return ""
        data = self.read(section)
        if 0 in data:
            raise self.error("its command line holds a NUL", section.data_offset + data.index(0))
        try:
            return data.decode()
        except UnicodeDecodeError as exc:
            raise self.error("its command line is not UTF-8", section.data_offset + exc.start) from exc

    def read(self, section: Section) -> bytes:
        """The data of a section. Raises EifError if a command line, signature or metadata is absurdly large.

        Kernels and ramdisks have no limit here: they may have gigabytes, which `chunks` streams.
        """
        limit = READ_LIMITS_BYTES.get(section.type)
        if limit is not None and section.size_bytes > limit:
            problem = f"its {section.label} section has {section.size_bytes} bytes, more than {limit}"
            raise self.error(problem, section.offset)
        return self._read_at(section.data_offset, section.size_bytes)

    def head(self, section: Section, size_bytes: int) -> bytes:
        """The first `size_bytes` bytes of a section, or all of it if it is shorter."""
        return self._read_at(section.data_offset, min(section.size_bytes, size_bytes))

    def chunks(self, section: Section, buffer: bytearray) -> Iterator[memoryview]:
        """The data of a section, piece by piece, in `buffer`: each piece is gone when the next is asked for."""
        return self._chunks_at(section.data_offset, section.end, buffer)

    def error(self, problem: str, offset: int | None = None) -> EifError:
        """An EifError about this image."""
        return EifError(f"image {self.name}: {problem}", offset=offset)

    def _first(self, kind: SectionType) -> Section | None:
        return next((section for section in self.sections if section.type is kind), None)

    def _read_header(self) -> Header:
        magic = self._read_at(0, min(len(MAGIC), self.size_bytes))
        if magic != MAGIC[: len(magic)] or not magic:
            raise self.error("this is no enclave image, which would begin with the letters .eif", 0)
        if self.size_bytes < HEADER_BYTES:
            raise self.error(f"it ends inside its header, which has {HEADER_BYTES} bytes", self.size_bytes)
        header = Header.unpack(self._read_at(0, HEADER_BYTES))
        if not OLDEST_VERSION <= header.version <= CURRENT_VERSION:
            known = f"{OLDEST_VERSION} to {CURRENT_VERSION}"
            raise self.error(f"its format version is {header.version}, but pyrune knows {known}", 4)
        if header.section_count > MAX_SECTIONS:
            problem = f"its header counts {header.section_count} sections, but holds {MAX_SECTIONS} at most"
            raise self.error(problem, OFFSETS_OFFSET - 2)
        return header

    def _read_sections(self) -> tuple[Section, ...]:
        count = self.header.section_count
        found = [self._read_section(index, self.header.section_offsets[index]) for index in range(count)]
        found.sort(key=lambda section: section.offset)
        seen = dict.fromkeys(SectionType, 0)
        for place, section in enumerate(found):
            found[place] = replace(section, ordinal=seen[section.type])
            seen[section.type] += 1
        return tuple(found)

    def _read_section(self, index: int, offset: int) -> Section:
        if offset + SECTION_HEADER_BYTES > self.size_bytes:
            problem = f"it ends at {self.size_bytes}, before the end of the header of section {index}"
            raise self.error(problem, offset)
        kind, flags, size_bytes = unpack_section_header(self._read_at(offset, SECTION_HEADER_BYTES))
        try:
            section = Section(SectionType(kind), offset, size_bytes, index, flags=flags)
        except ValueError as exc:
            raise self.error(f"section {index} has the unknown type {kind}", offset) from exc
        if section.end > self.size_bytes:
            problem = f"it ends at {self.size_bytes}, inside the {section.type.label} section of {size_bytes} bytes"
            raise self.error(problem, offset)
        return section

    def _read_at(self, offset: int, size_bytes: int) -> bytes:
        pieces = self._chunks_at(offset, offset + size_bytes, bytearray(min(size_bytes, CHUNK_BYTES)))
        return b"".join(bytes(piece) for piece in pieces)

    def _chunks_at(self, start: int, end: int, buffer: bytearray) -> Iterator[memoryview]:
        return chunks(self.fd, start, end, buffer, f"image {self.name}")
