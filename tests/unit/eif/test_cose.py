from __future__ import annotations

import hashlib
import hmac

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.cbor import CborError
from pyrune.eif.cose import Sign1, algorithm_of, decode_sign1, halves_of, sign, verify
from tests.unit.eif.signing import CURVES

KEYS = [ec.generate_private_key(curve) for curve, *_ in CURVES]


@pytest.mark.parametrize("curve", [0, 1, 2])
def test_the_curve_decides_the_algorithm(curve: int) -> None:
    _, number, digest, half = CURVES[curve]
    algorithm = algorithm_of(KEYS[curve].curve)
    assert (algorithm.number, algorithm.hash_name, algorithm.half_bytes) == (number, digest.name, half)
    assert algorithm.protected == cbor2.dumps({1: number})


def test_other_curves_have_no_algorithm() -> None:
    with pytest.raises(ValueError, match="none of the curves"):
        algorithm_of(ec.SECP256K1())


@pytest.mark.parametrize("curve", [0, 1, 2])
def test_a_signature_holds_for_its_payload_and_key_only(curve: int) -> None:
    made = sign(KEYS[curve], b"payload")
    assert verify(made, KEYS[curve].public_key())
    assert not verify(made, KEYS[(curve + 1) % 3].public_key())
    assert not verify(Sign1(made.protected, b"another", made.signature), KEYS[curve].public_key())


@pytest.mark.parametrize("curve", [0, 1, 2])
def test_a_signature_is_the_same_each_time(curve: int) -> None:
    assert sign(KEYS[curve], b"payload") == sign(KEYS[curve], b"payload") != sign(KEYS[curve], b"another")


def rfc_6979_p384(private: int, message: bytes) -> bytes:
    """r and s as RFC 6979, section 3.2, has them; the curve's arithmetic is the library's."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
    digest = hashlib.sha384(message).digest()
    key, value = bytes(48), b"\1" * 48
    seed = private.to_bytes(48, "big") + (int.from_bytes(digest, "big") % order).to_bytes(48, "big")
    for separator in (b"\0", b"\1"):
        key = hmac.digest(key, value + separator + seed, "sha384")
        value = hmac.digest(key, value, "sha384")
    value = hmac.digest(key, value, "sha384")
    nonce = int.from_bytes(value, "big")
    assert 0 < nonce < order
    r = ec.derive_private_key(nonce, ec.SECP384R1()).public_key().public_numbers().x % order
    s = pow(nonce, -1, order) * (int.from_bytes(digest, "big") + r * private) % order
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def test_the_oracle_is_the_rfcs() -> None:
    # RFC 6979, A.2.6: P-384 with SHA-384, "sample".
    private = 0x6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5
    assert rfc_6979_p384(private, b"sample").hex().startswith("94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa7")


@given(st.integers(1, 1 << 383), st.binary(max_size=100))
def test_signatures_are_those_of_rfc_6979(private: int, payload: bytes) -> None:
    made = sign(ec.derive_private_key(private, ec.SECP384R1()), payload)
    assert made.signature == rfc_6979_p384(private, made.to_be_signed)


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=300))
def test_the_bytes_are_those_of_a_general_encoder(protected: bytes, payload: bytes, signature: bytes) -> None:
    made = Sign1(protected, payload, signature)
    assert made.to_be_signed == cbor2.dumps(["Signature1", protected, b"", payload])
    assert made.encode() == cbor2.dumps([protected, {}, payload, signature])
    assert decode_sign1(made.encode()) == made


@pytest.mark.parametrize("value", [[], [b"", {}, b""], [b"", [], b"", b""], [b"", {}, None, b""], {}])
def test_what_is_no_sign1_is_refused(value: object) -> None:
    with pytest.raises(CborError):
        decode_sign1(cbor2.dumps(value))


def test_numbers_beyond_the_curve_are_refused() -> None:
    algorithm = algorithm_of(ec.SECP256R1())
    assert halves_of(encode_dss_signature(1, 2), algorithm) == (1).to_bytes(32, "big") + (2).to_bytes(32, "big")
    with pytest.raises(ValueError, match="out of range"):
        halves_of(encode_dss_signature(1 << 256, 1), algorithm)
    with pytest.raises(ValueError):
        halves_of(bytes.fromhex("30060201010201ff"), algorithm)
