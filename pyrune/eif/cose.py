"""COSE_Sign1 with ECDSA, as far as signatures of enclave images need it. Bytes and keys; no files, no certificates.

A COSE_Sign1 is an array [protected, unprotected, payload, signature]. `protected` is the CBOR of a map that names the
algorithm, which the curve of the key decides; the unprotected map is empty. What is signed is the Sig_structure
["Signature1", protected, h'', payload], and the signature is r and s, big-endian, each as long as the curve's order.

Signatures made here are deterministic: the same key and bytes give the same signature.

Sources: RFC 9052 sections 3.1 and 4.4; RFC 9053 section 2.1; RFC 6979.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyrune.eif import cbor
from pyrune.eif.cbor import CborError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

_ALGORITHM: Final = 1  # the key of the algorithm in a header


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm for signatures: COSE's number and name, hashlib's name of its hash, and the length of r and s."""

    number: int
    name: str
    hash_name: str
    half_bytes: int

    @property
    def protected(self) -> bytes:
        """The protected header that names it."""
        number = cbor.encode_head(cbor.NEGATIVE, -1 - self.number)
        return cbor.encode_head(cbor.MAP, 1) + cbor.encode_head(cbor.UNSIGNED, _ALGORITHM) + number


_BY_CURVE: Final = {
    "secp256r1": Algorithm(-7, "ES256", "sha256", 32),
    "secp384r1": Algorithm(-35, "ES384", "sha384", 48),
    "secp521r1": Algorithm(-36, "ES512", "sha512", 66),
}


@dataclass(frozen=True, slots=True)
class Sign1:
    """A COSE_Sign1; the first two are CBOR themselves."""

    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def to_be_signed(self) -> bytes:
        """The Sig_structure; whatever `signature` is, it takes no part."""
        return b"".join(
            (
                cbor.encode_head(cbor.ARRAY, 4),
                cbor.encode_text("Signature1"),
                cbor.encode_bytes(self.protected),
                cbor.encode_bytes(b""),
                cbor.encode_bytes(self.payload),
            )
        )

    def encode(self) -> bytes:
        """The array, untagged, with an empty unprotected map."""
        return b"".join(
            (
                cbor.encode_head(cbor.ARRAY, 4),
                cbor.encode_bytes(self.protected),
                cbor.encode_head(cbor.MAP, 0),
                cbor.encode_bytes(self.payload),
                cbor.encode_bytes(self.signature),
            )
        )


def decode_sign1(data: bytes) -> Sign1:
    """The COSE_Sign1 that `data` is. Raises CborError."""
    match cbor.decode(data):
        case [bytes(protected), dict(), bytes(payload), bytes(signature)]:
            return Sign1(protected, payload, signature)
        case _:
            raise CborError("the signature is no COSE_Sign1 array", 0)


def algorithm_of(curve: ec.EllipticCurve) -> Algorithm:
    """The algorithm that a key on `curve` signs with. Raises ValueError if there is none."""
    if curve.name not in _BY_CURVE:
        raise ValueError("the key is on none of the curves P-256, P-384 and P-521")
    return _BY_CURVE[curve.name]


def sign(key: ec.EllipticCurvePrivateKey, payload: bytes) -> Sign1:
    """Sign. Raises UnsupportedAlgorithm if the library is too old to do so deterministically."""
    from cryptography.hazmat.primitives.asymmetric import ec

    algorithm = algorithm_of(key.curve)
    unsigned = Sign1(algorithm.protected, payload, b"")
    method = ec.ECDSA(_hash_of(algorithm), deterministic_signing=True)
    return Sign1(unsigned.protected, payload, halves_of(key.sign(unsigned.to_be_signed, method), algorithm))


def verify(sign1: Sign1, key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the owner of `key` made the signature. Raises CborError if its protected header is no CBOR."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    algorithm = algorithm_of(key.curve)
    half = algorithm.half_bytes
    if cbor.decode(sign1.protected) != {_ALGORITHM: algorithm.number} or len(sign1.signature) != 2 * half:
        return False
    r, s = (int.from_bytes(part, "big") for part in (sign1.signature[:half], sign1.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), sign1.to_be_signed, ec.ECDSA(_hash_of(algorithm)))
    except InvalidSignature:
        return False
    return True


def halves_of(der: bytes, algorithm: Algorithm) -> bytes:
    """r and s of a signature in DER, as COSE has them. Raises ValueError if it is none, or of another curve."""
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(der)
    try:
        return r.to_bytes(algorithm.half_bytes, "big") + s.to_bytes(algorithm.half_bytes, "big")
    except OverflowError as exc:
        raise ValueError("the numbers of the signature are out of range") from exc


def _hash_of(algorithm: Algorithm) -> hashes.HashAlgorithm:
    from cryptography.hazmat.primitives import hashes

    return {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}[algorithm.hash_name]
