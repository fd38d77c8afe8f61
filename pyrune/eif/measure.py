"""Measure an enclave image: the platform configuration registers (PCRs) that attest it, and its checksum.

With H = SHA-384 and ext(data) = H(48 zero bytes || H(data)), as a PCR starts at zero and is extended once:

    PCR0 = ext(kernel || command line || every ramdisk)     the image
    PCR1 = ext(kernel || command line || first ramdisk)     what boots
    PCR2 = ext(every ramdisk but the first)                 the application
    PCR8 = ext(certificate, DER)                            who signed; only in signed images

Only section data count: no header, no length, no metadata, no default memory. Sections count in file order, as in
AWS's reader (QEMU goes by the header's tables; in an unambiguous image that is the same order). The CRC-32, zlib's,
covers the file header up to the checksum itself and then each section header and its data.

One pass computes it all, and whoever copies an image somewhere can let that pass be the copy: `Measurer` takes the
pieces as they go by, so that what is measured is what was copied.

Sources: github.com/aws/aws-nitro-enclaves-image-format, src/utils/eif_reader.rs and src/utils/mod.rs. PCR1 of a
nitro-cli image computed like this equals PCR1 in an attestation document that AWS hardware signed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from pyrune.eif.files import CHUNK_BYTES, chunks, open_regular, quoted, read_regular
from pyrune.eif.format import CRC_OFFSET, Chunk, Header, Section, SectionType
from pyrune.eif.reader import READ_LIMITS_BYTES, EifImage
from pyrune.errors import EifError

PCR_BYTES: Final = hashlib.sha384().digest_size

# nitro-cli prints its hash's Rust debug text; tools compare the whole object, so this is part of the interface.
HASH_ALGORITHM: Final = "Sha384 { ... }"


@dataclass(frozen=True, slots=True)
class Measurements:
    """The PCRs as lower-case hex, 96 digits each, and the checksum that the header ought to have."""

    pcr0: str
    pcr1: str
    pcr2: str
    pcr8: str | None
    crc32: int

    def as_json(self) -> dict[str, str]:
        """The object that nitro-cli prints as Measurements."""
        pcrs = {"HashAlgorithm": HASH_ALGORITHM, "PCR0": self.pcr0, "PCR1": self.pcr1, "PCR2": self.pcr2}
        return pcrs if self.pcr8 is None else pcrs | {"PCR8": self.pcr8}


def extend_once(digest: bytes) -> str:
    """A PCR that was zero and has been extended with `digest`, as hex."""
    return hashlib.sha384(bytes(PCR_BYTES) + digest).hexdigest()


Runner: TypeAlias = Callable[[Sequence[Callable[[], None]]], None]


def run_in_turn(jobs: Sequence[Callable[[], None]]) -> None:
    """Run one job after the other."""
    for job in jobs:
        job()


class Measurer:
    """Measures an image whose section data pass by, in file order and without a gap.

    Up to three sums run over the same bytes. `run` is given them for each piece, independent of one another and the
    longest first, and returns when all are done: a caller with CPUs to spare may have them run at the same time.

    A caller that leaves data out or mixes them up has a bug: ValueError.
    """

    def __init__(self, header: Header, sections: Sequence[Section], run: Runner = run_in_turn) -> None:
        self._run = run
        self._sections = sections
        self._next = 0
        self._left_bytes = 0
        self._crc32 = zlib.crc32(header.pack()[:CRC_OFFSET])
        self._signature = bytearray()
        self._image = hashlib.sha384()
        # The same as the image up to the second ramdisk: no need to hash kernel and first ramdisk twice.
        self._boot: hashlib._Hash | None = None
        self._application = hashlib.sha384()
        self._concerned: tuple[hashlib._Hash, ...] = ()

    def update(self, section: Section, chunk: Chunk) -> None:
        """The next bytes of `section`. Raises EifError if a signature section is absurdly large."""
        while self._next == 0 or self._sections[self._next - 1] != section:
            self._begin_next_section()
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise ValueError(f"the {section.label} section was given more data than it has")
        self._run([*(partial(digest.update, chunk) for digest in self._concerned), partial(self._checksum, chunk)])
        if section.type is SectionType.SIGNATURE:
            self._signature += chunk

    def finish(self) -> Measurements:
        """The measurements, once every section has passed by. Raises EifError if the signature section is broken."""
        while self._next < len(self._sections):
            self._begin_next_section()
        self._require_section_complete()
        boot = self._boot or self._image
        return Measurements(
            pcr0=extend_once(self._image.digest()),
            pcr1=extend_once(boot.digest()),
            pcr2=extend_once(self._application.digest()),
            pcr8=self._pcr8(),
            crc32=self._crc32,
        )

    def _checksum(self, chunk: Chunk) -> None:
        self._crc32 = zlib.crc32(chunk, self._crc32)

    def _pcr8(self) -> str | None:
        section = next((s for s in self._sections if s.type is SectionType.SIGNATURE), None)
        if section is None:
            return None
        from pyrune.eif.signature import parse_signature

        try:
            return pcr8_of_certificate(parse_signature(bytes(self._signature)).certificate_der)
        except EifError as exc:
            raise EifError(exc.problem, offset=section.offset) from exc

    def _begin_next_section(self) -> None:
        self._require_section_complete()
        if self._next == len(self._sections):
            raise ValueError("a section was measured that the image does not have, or twice")
        section = self._sections[self._next]
        limit = READ_LIMITS_BYTES[SectionType.SIGNATURE]
        if section.type is SectionType.SIGNATURE and section.size_bytes > limit:
            problem = f"the signature section has {section.size_bytes} bytes, more than {limit}"
            raise EifError(problem, offset=section.offset)
        self._crc32 = zlib.crc32(section.pack_header(), self._crc32)
        self._concerned = self._digests_for(section)
        self._left_bytes = section.size_bytes
        self._next += 1

    def _require_section_complete(self) -> None:
        if self._left_bytes:
            label = self._sections[self._next - 1].label
            raise ValueError(f"{self._left_bytes} bytes of the {label} section were not measured")

    def _digests_for(self, section: Section) -> tuple[hashlib._Hash, ...]:
        if section.type is SectionType.RAMDISK and section.ordinal > 0:
            self._boot = self._boot or self._image.copy()
            return (self._image, self._application)
        if section.type in (SectionType.KERNEL, SectionType.CMDLINE, SectionType.RAMDISK):
            return (self._image,) if self._boot is None else (self._image, self._boot)
        return ()


def measure(image: EifImage) -> Measurements:
    """Read the whole image once, in constant memory, and measure it. Raises EifError."""
    measurer = Measurer(image.header, image.sections)
    buffer = bytearray(CHUNK_BYTES)
    for section in image.sections:
        for chunk in image.chunks(section, buffer):
            measurer.update(section, chunk)
    try:
        return measurer.finish()
    except EifError as exc:
        raise image.error(exc.problem, exc.offset) from exc


def check_crc(image: EifImage) -> bool:
    """Whether the header's checksum is the one of the data. Reads the whole image; `measure` tells it as well."""
    crc32 = zlib.crc32(image.header.pack()[:CRC_OFFSET])
    buffer = bytearray(CHUNK_BYTES)
    for section in image.sections:
        crc32 = zlib.crc32(section.pack_header(), crc32)
        for chunk in image.chunks(section, buffer):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32 == image.header.crc32


def pcr8_of_certificate(der: bytes) -> str:
    """PCR8 of an image signed with the key of the DER certificate `der`."""
    return extend_once(hashlib.sha384(der).digest())


def pcr_of_file(path: str) -> str:
    """The PCR that is extended with the contents of a file alone. Raises EifError."""
    label = f"file {quoted(path)}"
    fd, size_bytes = open_regular(path, label)
    try:
        digest = hashlib.sha384()
        for piece in chunks(fd, 0, size_bytes, bytearray(CHUNK_BYTES), label):
            digest.update(piece)
    finally:
        os.close(fd)
    return extend_once(digest.digest())


def pcr8_of_certificate_file(path: str) -> str:
    """PCR8 of an image signed with the key of the first certificate in the PEM file `path`. Raises EifError."""
    from pyrune.eif.signature import first_certificate

    label = f"file {quoted(path)}"
    pem = read_regular(path, label, READ_LIMITS_BYTES[SectionType.SIGNATURE])
    return pcr8_of_certificate(first_certificate(pem, label))
