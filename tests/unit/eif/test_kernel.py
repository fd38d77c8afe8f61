from __future__ import annotations

import struct

import pytest

from pyrune.eif.format import Architecture
from pyrune.eif.kernel import HEAD_BYTES, KernelIdentity, identify_kernel
from tests.unit.eif.kernels import arm64_image, bzimage


def test_a_bzimage_tells_architecture_and_release() -> None:
    assert identify_kernel(bzimage()) == KernelIdentity(Architecture.X86_64, "6.12.9-cloud-amd64")


def test_an_arm64_image_tells_its_architecture() -> None:
    assert identify_kernel(arm64_image()) == KernelIdentity(Architecture.AARCH64, "")


def test_the_release_may_lie_at_the_very_end_of_its_range() -> None:
    data = bytearray(bzimage())
    struct.pack_into("<H", data, 0x20E, 0xFFFF)
    data = data.ljust(0x200 + 0xFFFF, b"k") + b"6.1 x\0"
    assert identify_kernel(bytes(data[:HEAD_BYTES])).version == "6.1"


@pytest.mark.parametrize("length", [0, 1, 60, 0x206, 0x20F, 0x210, 0x3000])
def test_a_kernel_that_ends_early_tells_less(length: int) -> None:
    identity = identify_kernel(bzimage()[:length])
    assert identity == KernelIdentity(Architecture.X86_64 if length >= 0x206 else None, "")


def test_a_release_that_is_no_text_is_escaped() -> None:
    assert identify_kernel(bzimage(b"6\x1b[2J\xff")).version == "6\\x1b[2J\ufffd"


def test_anything_else_tells_nothing() -> None:
    assert identify_kernel(b"\x7fELF" * 1000) == KernelIdentity(None, "")
