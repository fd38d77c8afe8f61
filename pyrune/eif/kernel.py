"""What the first bytes of a kernel say: for which processor it is, and which version.

Sources: Linux, Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pyrune.eif.format import Architecture
from pyrune.errors import printable

# The version text of a bzImage lies within 64 KiB after its first 512 bytes.
HEAD_BYTES: Final = 512 + (64 << 10) + 256

_X86_MAGIC: Final = (0x202, b"HdrS")
_X86_VERSION_POINTER: Final = struct.Struct("<H")
_X86_VERSION_POINTER_OFFSET: Final = 0x20E
_X86_VERSION_BASE: Final = 0x200
_ARM64_MAGIC: Final = (56, b"ARM\x64")


@dataclass(frozen=True, slots=True)
class KernelIdentity:
    """`arch` is None and `version` "" where the kernel does not tell."""

    arch: Architecture | None
    version: str


def identify_kernel(head: bytes) -> KernelIdentity:
    """What the kernel says whose first HEAD_BYTES bytes (or all) are `head`."""
    if _has(head, *_X86_MAGIC):
        return KernelIdentity(Architecture.X86_64, _x86_version(head))
    if _has(head, *_ARM64_MAGIC):
        return KernelIdentity(Architecture.AARCH64, "")
    return KernelIdentity(None, "")


def _has(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def _x86_version(head: bytes) -> str:
    """The release, without who compiled it and when."""
    pointer_bytes = head[_X86_VERSION_POINTER_OFFSET:][: _X86_VERSION_POINTER.size]
    if len(pointer_bytes) < _X86_VERSION_POINTER.size:
        return ""
    (pointer,) = _X86_VERSION_POINTER.unpack(pointer_bytes)
    if not pointer:
        return ""
    text, _, _ = head[_X86_VERSION_BASE + pointer :][:256].partition(b"\0")
    return printable(text.decode(errors="replace").partition(" ")[0])
