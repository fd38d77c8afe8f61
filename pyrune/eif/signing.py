"""Sign an enclave image, with a private key or with a signature that was made elsewhere.

The same image, certificate and key give the same bytes: signatures are deterministic (RFC 6979). A signature that is
there already is replaced; nothing else of the image changes, except for the header's tables and checksum. Nothing is
written for a certificate outside of its dates, a key that is not the certificate's, or a signature that does not hold.

For a key that never leaves its device: `payload_for` has the bytes that the device must sign, and `with_signature`
takes back what it made of them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyrune.eif import cose
from pyrune.eif.checksum import combined
from pyrune.eif.cpio import Sink
from pyrune.eif.files import CHUNK_BYTES, quoted, read_regular
from pyrune.eif.format import CRC_OFFSET, Section, SectionType
from pyrune.eif.measure import Measurements, measure
from pyrune.eif.output import whole_file
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import (
    describe_certificate,
    encode_payload,
    encode_section,
    first_certificate,
    signing_key,
    translated,
    within_dates,
)
from pyrune.eif.writer import SectionMaker, Source, write_image
from pyrune.errors import EifError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

# Real ones have one or two kilobytes, chains of certificates some more.
_MAX_FILE_BYTES: Final = 64 << 10
_FIRST_SIGNED_VERSION: Final = 3


@dataclass(frozen=True, slots=True)
class Signatory:
    """Who signs: a certificate as the user's PEM file has it, whole, and the key of its first certificate."""

    pem: bytes
    key: ec.EllipticCurvePublicKey

    @property
    def algorithm(self) -> cose.Algorithm:
        """How it signs."""
        return cose.algorithm_of(self.key.curve)

    def section(self, pcr0: str, signature: bytes) -> bytes:
        """The signature section for r and s, one after the other. Raises EifError if the signature does not hold."""
        sign1 = cose.Sign1(self.algorithm.protected, encode_payload(pcr0), signature)
        if not cose.verify(sign1, self.key):
            raise EifError("the signature is not one by the certificate's key for this image's PCR0")
        return encode_section(self.pem, sign1)


@dataclass(frozen=True, slots=True)
class Payload:
    """What a device must sign: the bytes, for the device that hashes them itself, and their hash."""

    pcr0: str
    algorithm: cose.Algorithm
    to_be_signed: bytes

    @property
    def digest(self) -> bytes:
        """The hash that the algorithm signs."""
        return hashlib.new(self.algorithm.hash_name, self.to_be_signed).digest()

    def as_json(self) -> dict[str, object]:
        """Both as hex and as base64, beside what they are for."""
        return {
            "PCR0": self.pcr0,
            "Algorithm": self.algorithm.name,
            "ToBeSigned": _both(self.to_be_signed),
            "HashAlgorithm": self.algorithm.hash_name,
            "Digest": _both(self.digest),
        }

    def write(self, path: str) -> None:
        """Write the bytes to be signed, as they are, to a file. Raises EifError."""
        with whole_file(path, "payload") as out:
            out.write(self.to_be_signed)


def _both(data: bytes) -> dict[str, str]:
    return {"Hex": data.hex(), "Base64": base64.b64encode(data).decode()}


def read_signatory(path: str, now: datetime | None = None) -> Signatory:
    """The signatory of the certificate file `path` (PEM). Raises EifError if it may not sign now, or at all."""
    from cryptography import x509

    label = f"certificate file {quoted(path)}"
    pem = read_regular(path, label, _MAX_FILE_BYTES)
    if b"PRIVATE KEY" in pem:
        raise EifError(f"{label} holds a private key too, and all of the file would be in the image: take it out")
    der = first_certificate(pem, label)
    with translated(f"{label} cannot sign"):
        certificate = x509.load_der_x509_certificate(der)
        key = signing_key(certificate)
        if not within_dates(certificate, now):
            raise EifError(f"{label} cannot sign: {describe_certificate(certificate).outside_of_dates}")
    return Signatory(pem, key)


def with_private_key(signatory: Signatory, path: str) -> SectionMaker:
    """Signs with the key in the file `path` (PEM, not encrypted). Raises EifError if it is not the certificate's."""
    key = _read_private_key(signatory, path)

    def sign(pcr0: str) -> bytes:
        with translated("this version of the cryptography library cannot sign reproducibly; use 43 or newer"):
            return signatory.section(pcr0, cose.sign(key, encode_payload(pcr0)).signature)

    return sign


def with_signature(signatory: Signatory, path: str) -> SectionMaker:
    """Signs with the signature in the file `path`: r and s as COSE has them, or DER. Raises EifError."""
    label = f"signature file {quoted(path)}"
    data = read_regular(path, label, _MAX_FILE_BYTES)
    if len(data) != 2 * signatory.algorithm.half_bytes:
        with translated(f"{label} holds neither r and s nor a signature in DER, of the certificate's curve"):
            data = cose.halves_of(data, signatory.algorithm)

    def sign(pcr0: str) -> bytes:
        return signatory.section(pcr0, data)

    return sign


def payload_for(path: str | Path, signatory: Signatory) -> Payload:
    """What signs the image at `path`. Raises EifError for an image that may not be signed."""
    with EifImage.open(path) as image:
        _require_signable(image)
        measurements = measure(image)
        _require_intact(image, measurements.crc32)
    algorithm = signatory.algorithm
    unsigned = cose.Sign1(algorithm.protected, encode_payload(measurements.pcr0), b"")
    return Payload(measurements.pcr0, algorithm, unsigned.to_be_signed)


def sign_image(path: str | Path, sign: SectionMaker, output_path: str | Path | None = None) -> Measurements:
    """Write the image at `path`, signed, to `output_path`, by default to its own place. Raises EifError.

    Reads and writes everything once, in constant memory. The file keeps its permission bits, but not its owner.
    """
    with EifImage.open(path) as image:
        _require_signable(image)
        copies = [_Copy(image, section) for section in image.sections if section.type is not SectionType.SIGNATURE]

        def sign_intact(pcr0: str) -> bytes:
            _require_intact(image, _crc32(image, copies))
            return sign(pcr0)

        sources: list[tuple[SectionType, Source]] = [(copy.section.type, copy) for copy in copies]
        mode = stat.S_IMODE(os.fstat(image.fd).st_mode) & 0o777
        place = os.path.realpath(path) if output_path is None else output_path
        return write_image(place, image.header, sources, sign_intact, mode=mode)


class _Copy:
    """The data of a section of another image, and their checksum once they are written."""

    def __init__(self, image: EifImage, section: Section) -> None:
        self._image = image
        self.section = section
        self.size_bytes = section.size_bytes
        self.crc32 = 0

    def write(self, out: Sink) -> None:
        for chunk in self._image.chunks(self.section, bytearray(CHUNK_BYTES)):
            self.crc32 = zlib.crc32(chunk, self.crc32)
            out.write(chunk)


def _read_private_key(signatory: Signatory, path: str) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    label = f"private key file {quoted(path)}"
    data = read_regular(path, label, _MAX_FILE_BYTES)
    with translated(f"{label} holds no usable key"):
        key = load_pem_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != signatory.key:
        raise EifError(f"{label} does not hold the key of the certificate")
    return key


def _require_signable(image: EifImage) -> None:
    image.require_unambiguous()
    image.require_bootable()
    if image.header.version < _FIRST_SIGNED_VERSION:
        raise image.error(f"version {image.header.version} of the format has no place for a signature")


def _require_intact(image: EifImage, crc32: int) -> None:
    told = image.header.crc32
    if crc32 != told:
        raise image.error(f"it is damaged: its checksum is 0x{crc32:08x}, but its header says 0x{told:08x}")


def _crc32(image: EifImage, copies: list[_Copy]) -> int:
    """The checksum of an image from those of its sections."""
    copied = {copy.section: copy.crc32 for copy in copies}
    crc32 = zlib.crc32(image.header.pack()[:CRC_OFFSET])
    for section in image.sections:
        crc32 = zlib.crc32(section.pack_header(), crc32)
        of_data = copied[section] if section in copied else zlib.crc32(image.read(section))
        crc32 = combined(crc32, of_data, section.size_bytes)
    return crc32
