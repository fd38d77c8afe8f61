"""Small enclave images, right ones and wrong ones, made without the code under test."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyrune.eif.reader import EifImage

KERNEL, CMDLINE, RAMDISK, SIGNATURE, METADATA = 1, 2, 3, 4, 5

SMALL: tuple[tuple[int, bytes], ...] = (
    (KERNEL, b"kernel" * 100),
    (CMDLINE, b"console=ttyS0 panic=30"),
    (METADATA, b"{}"),
    (RAMDISK, b"first ramdisk" * 50),
    (RAMDISK, b"second ramdisk" * 60),
    (RAMDISK, b"third ramdisk" * 70),
)


@dataclass
class Layout:
    """Bytes of an image, from fields that a test may set to anything. `sections` is (type, data)."""

    sections: Sequence[tuple[int, bytes]] = SMALL
    magic: bytes = b".eif"
    version: int = 4
    flags: int = 0
    reserved: int = 0
    unused: int = 0
    gap: bytes = b""
    """What lies before each section."""
    tail: bytes = b""
    file_order: Sequence[int] | None = None
    """In which order the sections lie in the file; the header names them in the order of `sections`."""
    told_sizes: dict[int, int] = field(default_factory=dict)
    """Sizes in the file header that differ from the truth."""
    told_offsets: dict[int, int] = field(default_factory=dict)
    told_count: int | None = None
    section_flags: int = 0
    crc: int | None = None

    def build(self) -> bytes:
        offsets, body = [0] * 32, bytearray()
        covered = b""
        for index in self.file_order or range(len(self.sections)):
            kind, data = self.sections[index]
            body += self.gap
            offsets[index] = 548 + len(body)
            section = struct.pack(">HHQ", kind, self.section_flags, len(data)) + data
            covered += section
            body += section
        sizes = [len(data) for _, data in self.sections] + [0] * (32 - len(self.sections))
        for index, value in self.told_sizes.items():
            sizes[index] = value
        for index, value in self.told_offsets.items():
            offsets[index] = value
        count = len(self.sections) if self.told_count is None else self.told_count
        head = struct.pack(">4sHHQQHH", self.magic, self.version, self.flags, 1 << 30, 2, self.reserved, count)
        head += struct.pack(">32Q32QI", *offsets, *sizes, self.unused)
        crc = zlib.crc32(covered, zlib.crc32(head)) if self.crc is None else self.crc
        return head + struct.pack(">I", crc) + bytes(body) + self.tail


def opened(data: bytes) -> EifImage:
    """An image open on a file in memory."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return EifImage.from_fd(fd, "test.eif")


def refitted(data: bytes, crc_at: int = 544) -> bytes:
    """`data` with the checksum that it ought to have, if its sections are contiguous."""
    crc = zlib.crc32(data[548:], zlib.crc32(data[:crc_at]))
    return data[:crc_at] + struct.pack(">I", crc) + data[548:]
