"""The signature section: who vouches for an image, and whether the vouching holds.

A signed image carries a section of CBOR: an array of one map, whose two values are arrays of integers, one integer
per byte (the writer's serialiser does not know byte strings):

    [{"signing_certificate": [PEM...], "signature": [COSE_Sign1...]}]

The signature is an untagged COSE_Sign1 array with ES256, ES384 or ES512, as the curve of the certificate's key demands
(`eif.cose`). Its payload is the map {"register_index": 0, "register_value": [48 integers]}: PCR0, and nothing else of
the image.

The certificate vouches for itself: nothing here says that its owner is trusted. Its hash becomes PCR8, and it is
the key policy that names PCR8 which trusts. nitro-cli's run-enclave checks dates and signature but not that the
signed PCR0 is the image's; here all three are checked. `eif.signing` makes such sections.

Source: github.com/aws/aws-nitro-enclaves-image-format, src/defs/mod.rs, src/utils/eif_signer.rs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pyrune.eif import cbor, cose
from pyrune.eif.cbor import CborError, Value
from pyrune.errors import EifError, printable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from pyrune.eif.format import Section
    from pyrune.eif.reader import EifImage

# OpenSSL's long names (crypto/objects/objects.txt), which nitro-cli prints, for what certificates usually have.
_NAMES: Final = {
    "2.5.4.3": "commonName",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "1.2.840.113549.1.9.1": "emailAddress",
}
_SIGNATURE_ALGORITHMS: Final = {
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
}


@dataclass(frozen=True, slots=True)
class SignatureSection:
    """The contents of a signature section. `certificate_der` is the first certificate of the PEM text."""

    certificate_der: bytes
    sign1: cose.Sign1


@dataclass(frozen=True, slots=True)
class SigningCertificate:
    """What nitro-cli tells of a certificate, in its words: the dates as OpenSSL prints them, the signature in hex."""

    issuer_name: dict[str, str]
    algorithm: str
    not_before: str
    not_after: str
    signature: str

    @property
    def outside_of_dates(self) -> str:
        """What there is to say when it is not valid at present."""
        return f"the signing certificate is valid only from {self.not_before} to {self.not_after}"

    def as_json(self) -> dict[str, object]:
        """The object that nitro-cli prints as SigningCertificate."""
        return {
            "IssuerName": self.issuer_name,
            "Algorithm": self.algorithm,
            "NotBefore": self.not_before,
            "NotAfter": self.not_after,
            "Signature": self.signature,
        }


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """What a check of a signature found; `problem` is "" if all is well."""

    certificate: SigningCertificate
    signature_valid: bool
    pcr0_matches: bool
    within_dates: bool

    @property
    def problem(self) -> str:
        """What speaks against the signature, in a few words."""
        if not self.signature_valid:
            return "the signature is not by the key of its certificate"
        if not self.pcr0_matches:
            return "the signature is for another PCR0 than the image has"
        if not self.within_dates:
            return self.certificate.outside_of_dates
        return ""


def parse_signature(data: bytes) -> SignatureSection:
    """The contents of the signature section `data`. Checks structure only. Raises EifError."""
    try:
        certificate, signature = _entry(cbor.decode(data))
        sign1 = cose.decode_sign1(signature)
        return SignatureSection(first_certificate(certificate, "the signature section"), sign1)
    except CborError as exc:
        raise EifError(f"the signature section is not what nitro-cli writes: {exc}") from exc


def check_signature(section: SignatureSection, pcr0: str, now: datetime | None = None) -> SignatureReport:
    """Check the signature of an image whose PCR0, computed, is `pcr0`. Raises EifError if the key is of no known kind.

    `now` is the time at which the certificate must be valid, by default the present.
    """
    from cryptography import x509

    with translated("the signature cannot be checked"):
        certificate = x509.load_der_x509_certificate(section.certificate_der)
        return SignatureReport(
            certificate=describe_certificate(certificate),
            signature_valid=cose.verify(section.sign1, signing_key(certificate)),
            pcr0_matches=_signed_pcr0(section.sign1.payload) == pcr0,
            within_dates=within_dates(certificate, now),
        )


def require_signed(image: EifImage, section: Section, data: bytes, pcr0: str) -> None:
    """Raise EifError unless `data`, read from the signature section of `image`, signs an image with this PCR0."""
    report = check_signature(parse_signature(data), pcr0)
    if report.problem:
        raise image.error(f"its signature does not hold: {report.problem}", section.offset)


@contextmanager
def translated(problem: str) -> Iterator[None]:
    """Turn what a certificate or a signature of anyone's making raises into an EifError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import InvalidVersion

    with warnings.catch_warnings():
        # What the library thinks of a certificate's style is for its author, not for who runs the image.
        warnings.simplefilter("ignore")
        try:
            yield
        except (ValueError, TypeError, UnsupportedAlgorithm, InvalidVersion) as exc:
            # The library's first sentence; the others point to its own documentation.
            raise EifError(f"{problem}: {printable(str(exc).partition('. ')[0])}") from exc


def _entry(value: Value) -> tuple[bytes, bytes]:
    """Certificate (PEM) and signature (COSE) of the one entry of a decoded section."""
    match value:
        case [{"signing_certificate": list(certificate), "signature": list(cose), **rest}] if not rest:
            return _bytes_of(certificate), _bytes_of(cose)
        case [_, _, *_]:
            # Readers look at the first entry only, so a second one could mislead whoever looks at it.
            raise CborError("there is more than one signature", 0)
        case _:
            raise CborError("there is no array of a map of signing_certificate and signature", 0)


def _bytes_of(numbers: list[Value]) -> bytes:
    if not all(isinstance(number, int) and 0 <= number < 256 for number in numbers):
        raise CborError("an array of bytes holds something else", 0)
    return bytes(number for number in numbers if isinstance(number, int))


def first_certificate(pem: bytes, label: str) -> bytes:
    """The DER bytes of the first certificate of a PEM text. Raises EifError, which names `label`, if there is none."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    with translated(f"{label} holds no readable certificate"):
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def encode_payload(pcr0: str) -> bytes:
    """What is signed of an image with this PCR0."""
    return b"".join(
        (
            cbor.encode_head(cbor.MAP, 2),
            cbor.encode_text("register_index"),
            cbor.encode_head(cbor.UNSIGNED, 0),
            cbor.encode_text("register_value"),
            cbor.encode_byte_array(bytes.fromhex(pcr0)),
        )
    )


def encode_section(certificate_pem: bytes, sign1: cose.Sign1) -> bytes:
    """The data of a signature section."""
    return b"".join(
        (
            cbor.encode_head(cbor.ARRAY, 1),
            cbor.encode_head(cbor.MAP, 2),
            cbor.encode_text("signing_certificate"),
            cbor.encode_byte_array(certificate_pem),
            cbor.encode_text("signature"),
            cbor.encode_byte_array(sign1.encode()),
        )
    )


def _signed_pcr0(payload: bytes) -> str | None:
    """The PCR0 that a payload speaks of, as hex, or None if it speaks of another register. Raises CborError."""
    match cbor.decode(payload):
        case {"register_index": 0, "register_value": list(value), **rest} if not rest:
            return _bytes_of(value).hex()
        case _:
            return None


def signing_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    """The key of a certificate. Raises ValueError if it is of a kind that signs no images."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the certificate's key is none on the curves P-256, P-384 and P-521")
    cose.algorithm_of(key.curve)
    return key


def within_dates(certificate: x509.Certificate, now: datetime | None = None) -> bool:
    """Whether a certificate is valid at a time, by default at present."""
    return certificate.not_valid_before_utc <= (now or datetime.now(UTC)) <= certificate.not_valid_after_utc


def describe_certificate(certificate: x509.Certificate) -> SigningCertificate:
    """What nitro-cli would tell of it. Raises ValueError for some certificates of someone's own making."""
    names = {
        _NAMES.get(attribute.oid.dotted_string, attribute.oid.dotted_string): _text(attribute.value)
        for attribute in certificate.issuer
    }
    algorithm = certificate.signature_algorithm_oid.dotted_string
    return SigningCertificate(
        issuer_name=dict(sorted(names.items())),
        algorithm=_SIGNATURE_ALGORITHMS.get(algorithm, algorithm),
        not_before=_openssl_date(certificate.not_valid_before_utc),
        not_after=_openssl_date(certificate.not_valid_after_utc),
        signature=certificate.signature.hex(":").upper(),
    )


def _text(value: str | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else printable(value.replace('"', ""))


def _openssl_date(moment: datetime) -> str:
    """A date as OpenSSL prints it: the day padded with a blank, always in GMT."""
    return f"{moment:%b} {moment.day:2d} {moment:%H:%M:%S} {moment.year} GMT"
