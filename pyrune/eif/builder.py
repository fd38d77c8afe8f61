"""Build an enclave image (version 4) from a kernel, a command line and ramdisks.

The sections lie in nitro-cli's order: kernel, command line, metadata, ramdisks. The size of each is known before the
first byte is written, so one pass writes the image, measures what it writes, and computes the checksum; memory stays
constant. The image is written beside its place and renamed when it is whole.

The same inputs give the same bytes: the only time in an image is that of the metadata, which is given (see
`eif.metadata.build_metadata`) and which no measurement covers, and directories are packed reproducibly (`eif.tree`).
A ramdisk that is a file goes in as it is, compressed or not.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from pyrune.eif.cpio import Sink
from pyrune.eif.files import CHUNK_BYTES, chunks, open_regular, quoted, reason
from pyrune.eif.format import (
    CURRENT_VERSION,
    DEFAULT_CPUS,
    DEFAULT_MEMORY_BYTES,
    FLAG_AARCH64,
    HEADER_BYTES,
    MAX_SECTIONS,
    Architecture,
    Chunk,
    Header,
    Section,
    SectionType,
)
from pyrune.eif.kernel import HEAD_BYTES, identify_kernel
from pyrune.eif.measure import Measurements, Measurer
from pyrune.eif.metadata import UNKNOWN, Json, Metadata, build_metadata
from pyrune.eif.reader import READ_LIMITS_BYTES, EifImage
from pyrune.eif.tree import Tree
from pyrune.errors import EifError

# Kernel, command line and metadata take three sections, and a signature, added later, one more.
MAX_RAMDISKS: Final = MAX_SECTIONS - 4


class _Source(Protocol):
    """The data of a section, of a size that is known before they are written."""

    @property
    def size_bytes(self) -> int: ...

    def write(self, out: Sink) -> None: ...


def build(
    output_path: str | Path,
    *,
    kernel: str | Path,
    cmdline: str,
    ramdisks: Sequence[str | Path],
    arch: Architecture | None = None,
    name: str | None = None,
    version: str = "",
    custom_metadata: Json = None,
    build_time: datetime | None = None,
) -> Measurements:
    """Write an image to `output_path`, replacing what is there, and return its measurements. Raises EifError.

    A ramdisk is a file, used as it is, or a directory, which is packed. The first ramdisk is what boots (PCR1), the
    others are the application (PCR2). Blanks around the command line are dropped, as by nitro-cli. The architecture
    is by default the kernel's, or this machine's if the kernel does not tell; the name is by default the output's.
    """
    path = _checked_output(output_path)
    if not 0 < len(ramdisks) <= MAX_RAMDISKS:
        raise EifError(f"an image needs 1 to {MAX_RAMDISKS} ramdisks, not {len(ramdisks)}")
    with ExitStack() as stack:
        kernel_file = stack.enter_context(_File(kernel, "kernel"))
        identity = identify_kernel(kernel_file.head(HEAD_BYTES))
        about = build_metadata(identity.version or UNKNOWN, build_time)
        metadata = Metadata(path.stem if name is None else name, version, about, None, custom_metadata)
        sources: list[tuple[SectionType, _Source]] = [
            (SectionType.KERNEL, kernel_file),
            (SectionType.CMDLINE, _Text(_checked_cmdline(cmdline))),
            (SectionType.METADATA, _Text(_encoded(metadata))),
            *((SectionType.RAMDISK, _ramdisk(stack, ramdisk)) for ramdisk in ramdisks),
        ]
        sections = _lay_out([(kind, source.size_bytes) for kind, source in sources])
        header = _header(arch or identity.arch or _host_architecture(), sections)
        return _write_image(path, header, sections, [source for _, source in sources])


class _Text:
    """Data in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)

    def write(self, out: Sink) -> None:
        out.write(self._data)


class _File:
    """A regular file, opened once."""

    def __init__(self, path: str | Path, what: str) -> None:
        name = os.fspath(path)
        self._label = f"{what} {quoted(name)}"
        self._fd, self.size_bytes = open_regular(name, self._label)
        if not self.size_bytes:
            os.close(self._fd)
            raise EifError(f"{self._label} is empty")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def head(self, size_bytes: int) -> bytes:
        end = min(size_bytes, self.size_bytes)
        return b"".join(bytes(piece) for piece in chunks(self._fd, 0, end, bytearray(end), self._label))

    def write(self, out: Sink) -> None:
        for piece in chunks(self._fd, 0, self.size_bytes, bytearray(CHUNK_BYTES), self._label):
            out.write(piece)


class _MeasuredSection:
    """Takes the data of one section to the file and to the measurer."""

    def __init__(self, out: BinaryIO, measurer: Measurer, section: Section) -> None:
        self._out = out
        self._measurer = measurer
        self._section = section

    def write(self, data: Chunk, /) -> None:
        self._measurer.update(self._section, data)
        self._out.write(data)


def _ramdisk(stack: ExitStack, path: str | Path) -> _Source:
    if os.path.isdir(path):
        return stack.enter_context(Tree(path))
    return stack.enter_context(_File(path, "ramdisk"))


def _checked_output(output_path: str | Path) -> Path:
    path = Path(output_path)
    if not path.name or "\0" in path.name:
        raise EifError(f"image {quoted(os.fspath(output_path))} cannot be written: its path is no file name")
    return path


def _checked_cmdline(cmdline: str) -> bytes:
    text = cmdline.strip()
    if not text or not text.isprintable():
        raise EifError("the kernel's command line is empty, or holds something else than printable text")
    data = text.encode()
    if len(data) > READ_LIMITS_BYTES[SectionType.CMDLINE]:
        raise EifError(f"the kernel's command line has {len(data)} bytes, more than any kernel takes")
    return data


def _encoded(metadata: Metadata) -> bytes:
    try:
        return metadata.encode()
    except UnicodeEncodeError as exc:
        raise EifError("the image's name or version is no text") from exc


def _host_architecture() -> Architecture:
    machine = os.uname().machine
    try:
        return Architecture(machine)
    except ValueError as exc:
        raise EifError(f"the kernel does not tell its architecture, and {machine} is none of an enclave") from exc


def _lay_out(sizes: Sequence[tuple[SectionType, int]]) -> list[Section]:
    sections: list[Section] = []
    offset = HEADER_BYTES
    for index, (kind, size_bytes) in enumerate(sizes):
        ordinal = sum(section.type is kind for section in sections)
        sections.append(Section(kind, offset, size_bytes, index, ordinal))
        offset = sections[-1].end
    return sections


def _header(arch: Architecture, sections: Sequence[Section]) -> Header:
    unused = (0,) * (MAX_SECTIONS - len(sections))
    return Header(
        version=CURRENT_VERSION,
        flags=FLAG_AARCH64 if arch is Architecture.AARCH64 else 0,
        default_memory_bytes=DEFAULT_MEMORY_BYTES,
        default_cpus=DEFAULT_CPUS,
        reserved=0,
        section_count=len(sections),
        section_offsets=(*(section.offset for section in sections), *unused),
        section_sizes=(*(section.size_bytes for section in sections), *unused),
        unused=0,
        crc32=0,
    )


def _write_image(path: Path, header: Header, sections: Sequence[Section], sources: Sequence[_Source]) -> Measurements:
    temporary = path.with_name(f".pyrune-{secrets.token_hex(8)}.eif")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(fd, "wb", buffering=CHUNK_BYTES) as out:
                measurements = _write_sections(out, header, sections, sources)
            _check_whole(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise EifError(f"image {quoted(os.fspath(path))} cannot be written: {reason(exc)}") from exc
    return measurements


def _write_sections(
    out: BinaryIO, header: Header, sections: Sequence[Section], sources: Sequence[_Source]
) -> Measurements:
    measurer = Measurer(header, sections)
    out.write(header.pack())
    for section, source in zip(sections, sources, strict=True):
        out.write(section.pack_header())
        source.write(_MeasuredSection(out, measurer, section))
    measurements = measurer.finish()
    out.seek(0)
    out.write(header.with_crc32(measurements.crc32).pack())
    return measurements


def _check_whole(path: Path) -> None:
    """The reader must find no fault with what the builder wrote."""
    with EifImage.open(path) as image:
        image.require_unambiguous()
        image.require_bootable()
