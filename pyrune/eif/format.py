"""The layout of an enclave image file (EIF): numbers, structures and enumerations. No I/O.

A file is one header of 548 bytes and then, packed without padding, up to 32 sections, each of which is a section
header of 12 bytes and its data. Every number is big-endian. The file header repeats, in two tables, where each
section header lies and how many data bytes follow it; `eif.ambiguity` tells what happens when the two disagree.

    0    magic ".eif"          8   default memory, bytes    24  reserved            28   32 x u64 section offsets
    4    u16 version           16  default number of vCPUs  26  u16 section count   284  32 x u64 section data sizes
    6    u16 flags                                                                  540  unused   544  u32 CRC-32

Versions: 2 brought the CRC, 3 the signature section, 4 the metadata section.

Source: github.com/aws/aws-nitro-enclaves-image-format, src/defs/mod.rs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Final, Self, TypeAlias

Chunk: TypeAlias = bytes | bytearray | memoryview

MAGIC: Final = b".eif"
OLDEST_VERSION: Final = 2
CURRENT_VERSION: Final = 4
MAX_SECTIONS: Final = 32
FLAG_AARCH64: Final = 0x0001

# What nitro-cli writes into every image, whatever the image needs; the command line of run overrides both.
DEFAULT_MEMORY_BYTES: Final = 1 << 30
DEFAULT_CPUS: Final = 2

_HEADER: Final = struct.Struct(">4s HH QQ HH 32Q 32Q II")
_SECTION_HEADER: Final = struct.Struct(">HHQ")

HEADER_BYTES: Final = _HEADER.size
CRC_OFFSET: Final = HEADER_BYTES - 4
OFFSETS_OFFSET: Final = 28
SECTION_HEADER_BYTES: Final = _SECTION_HEADER.size


class Architecture(StrEnum):
    """The processors that Nitro Enclaves run on, by the names that uname and QEMU use."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class SectionType(IntEnum):
    """What a section holds. 0 is the number of no section."""

    KERNEL = 1
    CMDLINE = 2
    RAMDISK = 3
    SIGNATURE = 4
    METADATA = 5

    @property
    def label(self) -> str:
        """The name of the type in a sentence."""
        return "command line" if self is SectionType.CMDLINE else self.name.lower()


@dataclass(frozen=True, slots=True)
class Header:
    """The file header, field by field; `pack` gives the very bytes that `unpack` was given."""

    version: int
    flags: int
    default_memory_bytes: int
    default_cpus: int
    reserved: int
    section_count: int
    section_offsets: tuple[int, ...]
    section_sizes: tuple[int, ...]
    unused: int
    crc32: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The header in `data`, which must be HEADER_BYTES long. The magic is not looked at."""
        _, version, flags, memory, cpus, reserved, count, *rest = _HEADER.unpack(data)
        offsets, sizes = tuple(rest[:MAX_SECTIONS]), tuple(rest[MAX_SECTIONS : 2 * MAX_SECTIONS])
        return cls(version, flags, memory, cpus, reserved, count, offsets, sizes, rest[-2], rest[-1])

    def pack(self) -> bytes:
        """The HEADER_BYTES bytes of this header."""
        return _HEADER.pack(
            MAGIC,
            self.version,
            self.flags,
            self.default_memory_bytes,
            self.default_cpus,
            self.reserved,
            self.section_count,
            *self.section_offsets,
            *self.section_sizes,
            self.unused,
            self.crc32,
        )

    @property
    def arch(self) -> Architecture:
        """The architecture that the flags name."""
        return Architecture.AARCH64 if self.flags & FLAG_AARCH64 else Architecture.X86_64

    def with_crc32(self, crc32: int) -> Header:
        """The same header with another checksum."""
        return replace(self, crc32=crc32)


@dataclass(frozen=True, slots=True)
class Section:
    """One section. `offset` is that of its header in the file, `index` its place in the file header's tables.

    `ordinal` counts the sections of the same type that precede it in the file: the ramdisk with ordinal 0 is the
    one that counts into PCR1.
    """

    type: SectionType
    offset: int
    size_bytes: int
    index: int
    ordinal: int = 0
    flags: int = 0

    @property
    def data_offset(self) -> int:
        """Where the data begin."""
        return self.offset + SECTION_HEADER_BYTES

    @property
    def end(self) -> int:
        """The offset of the first byte after the data."""
        return self.data_offset + self.size_bytes

    @property
    def label(self) -> str:
        """The section in a sentence: "kernel", "ramdisk 0"."""
        return f"ramdisk {self.ordinal}" if self.type is SectionType.RAMDISK else self.type.label

    def pack_header(self) -> bytes:
        """The 12 bytes that precede the data."""
        return _SECTION_HEADER.pack(self.type, self.flags, self.size_bytes)


def unpack_section_header(data: bytes) -> tuple[int, int, int]:
    """Type, flags and data size of the section header in `data`; the type may be no SectionType."""
    kind, flags, size_bytes = _SECTION_HEADER.unpack(data)
    return kind, flags, size_bytes
