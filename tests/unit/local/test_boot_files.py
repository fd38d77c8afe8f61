"""Taking an image apart: what boots is what was measured, and nobody can change it."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.errors import BackendError, EifError
from pyrune.local.boot_files import BootFiles, take_apart
from tests.support.programs import open_descriptors, output_of
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, SMALL, Layout, opened


def taken(layout: Layout) -> BootFiles:
    with opened(layout.build()) as image:
        return take_apart(image)


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 24, 0)


def test_the_kernel_and_all_ramdisks_in_order_are_in_memory() -> None:
    files = taken(Layout())
    assert content(files.kernel_fd) == SMALL[0][1]
    assert content(files.initrd_fd) == b"".join(data for kind, data in SMALL if kind == RAMDISK)
    assert files.kernel_bytes == len(content(files.kernel_fd))
    assert files.initrd_bytes == len(content(files.initrd_fd))
    assert files.cmdline == "console=ttyS0 panic=30"
    assert files.architecture is Architecture.X86_64
    files.close()


def test_the_measurements_are_of_the_bytes_that_boot() -> None:
    files = taken(Layout())

    def pcr(data: bytes) -> str:
        return hashlib.sha384(bytes(48) + hashlib.sha384(data).digest()).hexdigest()

    kernel, ramdisks = SMALL[0][1], [data for kind, data in SMALL if kind == RAMDISK]
    cmdline = SMALL[1][1]
    assert files.measurements.pcr0 == pcr(kernel + cmdline + b"".join(ramdisks))
    assert files.measurements.pcr1 == pcr(kernel + cmdline + ramdisks[0])
    assert files.measurements.pcr2 == pcr(b"".join(ramdisks[1:]))
    files.close()


def test_aarch64_is_the_headers_flag() -> None:
    files = taken(Layout(flags=1))
    assert files.architecture is Architecture.AARCH64
    files.close()


def test_more_than_one_chunk_stays_whole() -> None:
    kernel = os.urandom(3_000_001)
    files = taken(Layout(sections=[(KERNEL, kernel), (CMDLINE, b" a \n"), (METADATA, b"{}"), (RAMDISK, kernel[::-1])]))
    assert content(files.kernel_fd) == kernel
    assert content(files.initrd_fd) == kernel[::-1]
    assert files.cmdline == "a"
    files.close()


def test_the_memory_files_can_be_changed_by_nobody_and_are_not_inherited() -> None:
    files = taken(Layout())
    for fd in (files.kernel_fd, files.initrd_fd):
        assert not os.get_inheritable(fd)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        for change in (
            lambda fd: os.pwrite(fd, b"x", 0),
            lambda fd: os.ftruncate(fd, 0),
            lambda fd: os.ftruncate(fd, 1 << 20),
        ):
            with pytest.raises(PermissionError):
                change(again)
        os.close(again)
    files.close()


def test_they_read_from_their_beginning_where_qemu_opens_them() -> None:
    files = taken(Layout())
    with open(f"/proc/self/fd/{files.kernel_fd}", "rb") as kernel:
        assert kernel.read() == SMALL[0][1]
    files.close()


@pytest.mark.parametrize(
    "layout",
    [
        Layout(crc=0),
        Layout(sections=[*SMALL[:1], (CMDLINE, b"nul\0"), *SMALL[2:]]),
        Layout(sections=[*SMALL[:1], (CMDLINE, b"\xff"), *SMALL[2:]]),
    ],
)
def test_a_damaged_image_leaves_nothing(layout: Layout) -> None:
    before = open_descriptors()
    with pytest.raises(EifError):
        taken(layout)
    assert open_descriptors() == before


def test_a_wrong_checksum_is_named_beside_the_right_one() -> None:
    with pytest.raises(
        EifError, match=r"test\.eif: it is damaged: its checksum is 0x[0-9a-f]{8}, its header says 0x0000002a"
    ):
        taken(Layout(crc=42))


def test_without_a_descriptor_left_it_is_an_error_of_ours() -> None:
    image = opened(Layout().build())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    for spare in (0, 1):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
        try:
            with pytest.raises(BackendError, match=r"\(error 24\)"):
                take_apart(image)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    image.close()


def test_an_image_that_does_not_fit_is_an_error_of_ours(tmp_path: Path) -> None:
    code = """
import os, resource, signal, sys
from pyrune.errors import BackendError
from pyrune.local.boot_files import take_apart
from tests.unit.eif.images import Layout, opened
image = opened(Layout().build())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
before = os.listdir("/proc/self/fd")
try:
    take_apart(image)
except BackendError as exc:
    print(exc, os.listdir("/proc/self/fd") == before)
"""
    expected = "the image does not fit into this machine's memory (error 27); use a smaller image True\n"
    assert output_of(code) == expected
