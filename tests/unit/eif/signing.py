"""Sign PCR0 as nitro-cli does, made without the code under test: cbor2 and cryptography only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

NOON = datetime(2026, 4, 1, 12, 0, 0, tzinfo=UTC)

CURVES: list[tuple[ec.EllipticCurve, int, hashes.HashAlgorithm, int]] = [
    (ec.SECP256R1(), -7, hashes.SHA256(), 32),
    (ec.SECP384R1(), -35, hashes.SHA384(), 48),
    (ec.SECP521R1(), -36, hashes.SHA512(), 66),
]


@dataclass
class Signer:
    key: Any
    algorithm: int
    hash: hashes.HashAlgorithm
    half: int
    certificate: x509.Certificate
    deterministic: bool = False

    @property
    def key_pem(self) -> bytes:
        encoding: bytes = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return encoding

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def cose(self, payload: bytes) -> bytes:
        protected = cbor2.dumps({1: self.algorithm})
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = decode_dss_signature(
            self.key.sign(signed, ec.ECDSA(self.hash, deterministic_signing=self.deterministic))
        )
        halves = r.to_bytes(self.half, "big") + s.to_bytes(self.half, "big")
        return cbor2.dumps([protected, {}, payload, halves])

    def section(self, pcr0: str, register: int = 0) -> bytes:
        payload = cbor2.dumps({"register_index": register, "register_value": list(bytes.fromhex(pcr0))})
        return section(self.pem, self.cose(payload))


def section(pem: bytes, cose: bytes) -> bytes:
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(cose)}])


def certificate_for(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, days: int = 30, start: datetime = NOON
) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, 'Amazing "Enclaves"'),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.COMMON_NAME, "signer\x1b"),
        ]
    )
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(start).not_valid_after(start + timedelta(days=days))
    return builder.sign(key, hashes.SHA384())


def signer(number: int = 1) -> Signer:
    curve, algorithm, digest, half = CURVES[number]
    key = ec.generate_private_key(curve)
    return Signer(key, algorithm, digest, half, certificate_for(key))


def lasting_signer(number: int = 1) -> Signer:
    """One whose certificate is valid whenever the tests run."""
    someone = signer(number)
    start = datetime.now(UTC) - timedelta(days=1)
    return replace(someone, certificate=certificate_for(someone.key, 400, start), deterministic=True)
