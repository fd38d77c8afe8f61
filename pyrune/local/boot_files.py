"""An enclave image taken apart for QEMU: kernel, ramdisks and command line, measured on the way.

The bytes that are measured are the bytes that boot: both come from one pass over the file, into anonymous memory files
which nobody else can write to. All ramdisks become one initrd, one after another without padding, as the Nitro
hypervisor's loader does.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from dataclasses import dataclass

from pyrune.eif.files import CHUNK_BYTES
from pyrune.eif.format import Architecture, SectionType
from pyrune.eif.measure import Measurements, Measurer
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import require_signed
from pyrune.errors import BackendError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class BootFiles:
    """`kernel_fd` and `initrd_fd` are sealed memory files, which the holder closes. Sizes are bytes."""

    architecture: Architecture
    kernel_fd: int
    initrd_fd: int
    kernel_bytes: int
    initrd_bytes: int
    cmdline: str
    measurements: Measurements

    def close(self) -> None:
        os.close(self.kernel_fd)
        os.close(self.initrd_fd)


def take_apart(image: EifImage) -> BootFiles:
    """Copy and measure.

    Raises EifError for an image that is damaged or bears a signature that does not hold, BackendError when memory is
    short.
    """
    with ExitStack() as undo:
        kernel_fd = _memory_file("pyrune-kernel", undo)
        initrd_fd = _memory_file("pyrune-initrd", undo)
        targets = {SectionType.KERNEL: kernel_fd, SectionType.RAMDISK: initrd_fd}
        measurer = Measurer(image.header, image.sections)
        buffer = bytearray(CHUNK_BYTES)
        for section in image.sections:
            for chunk in image.chunks(section, buffer):
                measurer.update(section, chunk)
                if section.type in targets:
                    _write_all(targets[section.type], chunk)
        measurements = measurer.finish()
        if measurements.crc32 != image.header.crc32:
            found = f"{measurements.crc32:#010x}, its header says {image.header.crc32:#010x}"
            raise image.error(f"it is damaged: its checksum is {found}")
        if image.signature is not None:
            require_signed(image, image.signature, image.read(image.signature), measurements.pcr0)
        files = BootFiles(
            architecture=image.header.arch,
            kernel_fd=kernel_fd,
            initrd_fd=initrd_fd,
            kernel_bytes=os.fstat(kernel_fd).st_size,
            initrd_bytes=os.fstat(initrd_fd).st_size,
            cmdline=image.cmdline_text().strip(),
            measurements=measurements,
        )
        fcntl.fcntl(kernel_fd, fcntl.F_ADD_SEALS, _SEALS)
        fcntl.fcntl(initrd_fd, fcntl.F_ADD_SEALS, _SEALS)
        undo.pop_all()
        return files


def _memory_file(name: str, undo: ExitStack) -> int:
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as exc:
        raise BackendError(f"the image cannot be put into memory (error {exc.errno})") from exc
    undo.callback(os.close, fd)
    return fd


def _write_all(fd: int, chunk: memoryview) -> None:
    try:
        while chunk:
            chunk = chunk[os.write(fd, chunk) :]
    except OSError as exc:
        raise BackendError(
            f"the image does not fit into this machine's memory (error {exc.errno})", remedy="use a smaller image"
        ) from exc
