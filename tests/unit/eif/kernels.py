"""Files that begin as kernels do; nothing in them runs."""

from __future__ import annotations

import struct


def bzimage(version: bytes = b"6.12.9-cloud-amd64 (someone@somewhere) #1 SMP") -> bytes:
    data = bytearray(4096)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0x3000 - 0x200)
    return bytes(data).ljust(0x3000, b"k") + version + b"\0" + b"k" * 100


def arm64_image() -> bytes:
    return bytes(56) + b"ARM\x64" + b"k" * 200
