"""Build an enclave image (version 4) from a kernel, a command line and ramdisks.

The sections lie in nitro-cli's order: kernel, command line, metadata, ramdisks, signature. `eif.writer` writes and
measures them in one pass.

The same inputs give the same bytes: the only time in an image is that of the metadata, which is given (see
`eif.metadata.build_metadata`) and which no measurement covers, and directories are packed reproducibly (`eif.tree`).
A ramdisk that is a file goes in as it is, compressed or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

from pyrune.eif.cpio import Sink
from pyrune.eif.files import CHUNK_BYTES, chunks, open_regular, quoted
from pyrune.eif.format import (
    CURRENT_VERSION,
    DEFAULT_CPUS,
    DEFAULT_MEMORY_BYTES,
    FLAG_AARCH64,
    MAX_SECTIONS,
    Architecture,
    Header,
    SectionType,
)
from pyrune.eif.kernel import HEAD_BYTES, identify_kernel
from pyrune.eif.measure import Measurements
from pyrune.eif.metadata import UNKNOWN, Json, Metadata, build_metadata
from pyrune.eif.output import checked_output
from pyrune.eif.reader import READ_LIMITS_BYTES
from pyrune.eif.tree import Tree
from pyrune.eif.writer import SectionMaker, Source, Text, write_image
from pyrune.errors import EifError

# Kernel, command line and metadata take three sections, and a signature, added later, one more.
MAX_RAMDISKS: Final = MAX_SECTIONS - 4


def build(
    output_path: str | Path,
    *,
    kernel: str | Path,
    cmdline: str,
    ramdisks: Sequence[str | Path | Source],
    arch: Architecture | None = None,
    name: str | None = None,
    version: str = "",
    custom_metadata: Json = None,
    build_time: datetime | None = None,
    sign: SectionMaker | None = None,
    last_check: Callable[[], None] | None = None,
) -> Measurements:
    """Write an image to `output_path`, replacing what is there, and return its measurements. Raises EifError.

    A ramdisk is a file, used as it is, a directory, which is packed, or what writes one when it is asked to. The
    first ramdisk is what boots (PCR1), the others are the application (PCR2). Blanks around the command line are
    dropped, as by nitro-cli. The architecture is by default the kernel's, or this machine's if the kernel does not
    tell; the name is by default the output's.
    `sign` makes the signature section, if there is to be one (see `eif.signing`). `last_check` is called when
    everything has been read, and keeps the image from appearing if it raises.
    """
    path = checked_output(output_path, "image")
    if not 0 < len(ramdisks) <= MAX_RAMDISKS:
        raise EifError(f"an image needs 1 to {MAX_RAMDISKS} ramdisks, not {len(ramdisks)}")
    with ExitStack() as stack:
        kernel_file = stack.enter_context(_File(kernel, "kernel"))
        identity = identify_kernel(kernel_file.head(HEAD_BYTES))
        about = build_metadata(identity.version or UNKNOWN, build_time)
        metadata = Metadata(path.stem if name is None else name, version, about, None, custom_metadata)
        sources: list[tuple[SectionType, Source]] = [
            (SectionType.KERNEL, kernel_file),
            (SectionType.CMDLINE, Text(_checked_cmdline(cmdline))),
            (SectionType.METADATA, Text(_encoded(metadata))),
            *((SectionType.RAMDISK, _ramdisk(stack, ramdisk)) for ramdisk in ramdisks),
        ]
        return write_image(
            path, _template(arch or identity.arch or _host_architecture()), sources, sign, last_check=last_check
        )


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


def _ramdisk(stack: ExitStack, ramdisk: str | Path | Source) -> Source:
    if not isinstance(ramdisk, str | Path):
        return ramdisk
    if os.path.isdir(ramdisk):
        return stack.enter_context(Tree(ramdisk))
    return stack.enter_context(_File(ramdisk, "ramdisk"))


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


def _template(arch: Architecture) -> Header:
    """A header whose tables and checksum are still to come."""
    none = (0,) * MAX_SECTIONS
    return Header(
        version=CURRENT_VERSION,
        flags=FLAG_AARCH64 if arch is Architecture.AARCH64 else 0,
        default_memory_bytes=DEFAULT_MEMORY_BYTES,
        default_cpus=DEFAULT_CPUS,
        reserved=0,
        section_count=0,
        section_offsets=none,
        section_sizes=none,
        unused=0,
        crc32=0,
    )
