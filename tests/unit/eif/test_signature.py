from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.eif.cose import Sign1
from pyrune.eif.measure import measure, pcr8_of_certificate
from pyrune.eif.signature import SignatureReport, SignatureSection, check_signature, parse_signature
from pyrune.errors import EifError
from tests.unit.eif.images import SIGNATURE, SMALL, Layout, opened
from tests.unit.eif.signing import NOON, Signer, certificate_for, section, signer
from tests.unit.eif.test_measure import pcr

PCR0 = "0123456789abcdef" * 6


def report(data: bytes, *, pcr0: str = PCR0, days: float = 1) -> SignatureReport:
    return check_signature(parse_signature(data), pcr0, NOON + timedelta(days=days))


@pytest.mark.parametrize("curve", [0, 1, 2])
def test_a_right_signature_has_no_problem(curve: int) -> None:
    found = report(signer(curve).section(PCR0))
    assert found.signature_valid
    assert found.pcr0_matches
    assert found.within_dates
    assert found.problem == ""


def test_the_layout_is_that_of_nitro_cli() -> None:
    someone = signer()
    data = someone.section(PCR0)
    # An array of one map whose first key is the certificate, its value an array of small integers.
    assert data.startswith(b"\x81\xa2\x73signing_certificate\x99")
    parsed = parse_signature(data)
    assert parsed.sign1.protected == bytes.fromhex("a1013822")
    assert parsed.certificate_der == someone.der
    assert len(parsed.sign1.signature) == 96


def test_the_certificate_is_described_as_nitro_cli_does() -> None:
    certificate = report(signer().section(PCR0)).certificate
    assert certificate.as_json() == {
        "IssuerName": {"commonName": "signer\\x1b", "countryName": "DE", "organizationName": "Amazing Enclaves"},
        "Algorithm": "ecdsa-with-SHA384",
        "NotBefore": "Apr  1 12:00:00 2026 GMT",
        "NotAfter": "May  1 12:00:00 2026 GMT",
        "Signature": certificate.signature,
    }
    assert list(certificate.issuer_name) == sorted(certificate.issuer_name)
    assert certificate.signature.startswith("30:")


def test_another_image_than_the_signed_one_is_told() -> None:
    found = report(signer().section(PCR0), pcr0="ff" * 48)
    assert (found.signature_valid, found.pcr0_matches) == (True, False)
    assert "another PCR0" in found.problem


def test_a_signature_of_another_register_is_not_one_of_the_image() -> None:
    found = report(signer().section(PCR0, register=1))
    assert (found.signature_valid, found.pcr0_matches) == (True, False)


@pytest.mark.parametrize(("days", "within"), [(-0.1, False), (0, True), (30, True), (30.1, False)])
def test_dates_count(days: float, within: bool) -> None:
    found = report(signer().section(PCR0), days=days)
    assert found.within_dates is within
    assert (found.problem == "") is within


def test_the_present_counts_if_no_time_is_given() -> None:
    someone = signer()
    lasting = replace(someone, certificate=certificate_for(someone.key, days=36500))
    assert check_signature(parse_signature(lasting.section(PCR0)), PCR0).within_dates
    short = replace(someone, certificate=certificate_for(someone.key, days=1))
    assert not check_signature(parse_signature(short.section(PCR0)), PCR0).within_dates


def test_a_forged_signature_is_told() -> None:
    payload = cbor2.dumps({"register_index": 0, "register_value": list(bytes.fromhex(PCR0))})
    found = report(section(signer().pem, signer().cose(payload)))
    assert not found.signature_valid
    assert "not by the key" in found.problem


def with_cose(change: dict[int, object], someone: Signer) -> bytes:
    payload = cbor2.dumps({"register_index": 0, "register_value": list(bytes.fromhex(PCR0))})
    parts = cbor2.loads(someone.cose(payload))
    for index, value in change.items():
        parts[index] = value
    return section(someone.pem, cbor2.dumps(parts))


@pytest.mark.parametrize(
    "change",
    [
        {0: cbor2.dumps({1: -7})},
        {0: cbor2.dumps({})},
        {3: b"\0" * 96},
        {3: b"\xff" * 96},
        {3: b"\1" * 95},
        {3: b""},
        {2: cbor2.dumps({"register_index": 0, "register_value": [1] * 48})},
    ],
)
def test_a_changed_signature_is_not_valid(change: dict[int, object]) -> None:
    assert not report(with_cose(change, signer())).signature_valid


@pytest.mark.parametrize("change", [{0: b"junk"}, {2: b"junk"}, {2: b""}, {0: b""}])
def test_a_signature_over_junk_is_an_error(change: dict[int, object]) -> None:
    with pytest.raises(EifError, match="cannot be checked"):
        report(with_cose(change, signer()))


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        7,
        "text",
        [7],
        [{}],
        [{"signing_certificate": [1]}],
        [{"signing_certificate": b"pem", "signature": b"cose"}],
        [{"signing_certificate": [1], "signature": [256]}],
        [{"signing_certificate": [-1], "signature": [1]}],
        [{"signing_certificate": ["1"], "signature": [1]}],
        [{"signing_certificate": [1], "signature": [1], "more": 1}],
        [{"signing_certificate": [1], "signature": [1]}] * 2,
        [{"signing_certificate": [1], "signature": [0x84]}],
        [{"signing_certificate": [1], "signature": [0x80]}],
    ],
)
def test_a_section_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(EifError, match="signature section"):
        parse_signature(cbor2.dumps(value))


def test_a_certificate_that_is_none_is_refused() -> None:
    with pytest.raises(EifError, match="no readable certificate"):
        parse_signature(section(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", signer().cose(b"")))


def test_a_key_that_signs_no_enclave_is_refused() -> None:
    pem = Signer(None, 0, signer().hash, 0, certificate_for(rsa.generate_private_key(65537, 2048))).pem
    with pytest.raises(EifError, match="on the curves"):
        report(section(pem, signer().cose(b"")))


def test_only_the_first_certificate_of_the_text_counts() -> None:
    first, second = signer(), signer()
    data = section(b"a comment\n" + first.pem + second.pem, first.cose(b""))
    assert parse_signature(data).certificate_der == first.der


def test_pcr8_is_the_certificate() -> None:
    someone = signer()
    with opened(Layout(sections=[*SMALL, (SIGNATURE, someone.section(PCR0))]).build()) as image:
        assert image.ambiguities == ()
        assert measure(image).pcr8 == pcr(someone.der) == pcr8_of_certificate(someone.der)


def test_truncation_at_every_offset_is_an_error() -> None:
    data = signer().section(PCR0)
    for length in range(len(data)):
        with pytest.raises(EifError):
            parse_signature(data[:length])


SOMEONE = signer()
MUTABLE = SOMEONE.section(PCR0)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4)


def changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    result = bytearray(data)
    for place, value in changes:
        result[place % len(data)] = value
    return bytes(result)


def problem_of(data: bytes) -> str:
    try:
        return report(data).problem
    except EifError as exc:
        return str(exc)


@settings(max_examples=100, deadline=None)
@given(CHANGES)
def test_mutated_sections_are_refused_or_checked(changes: list[tuple[int, int]]) -> None:
    assert problem_of(changed(MUTABLE, changes)).isprintable()


@settings(max_examples=200, deadline=None)
@given(CHANGES)
def test_mutated_certificates_are_refused_or_checked(changes: list[tuple[int, int]]) -> None:
    text = base64.encodebytes(changed(SOMEONE.der, changes))
    pem = b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"
    assert problem_of(section(pem, SOMEONE.cose(b"\xa0"))).isprintable()


def test_a_certificate_with_an_impossible_country_is_described_without_a_warning() -> None:
    organization, country = bytes.fromhex("060355040a"), bytes.fromhex("0603550406")
    der = SOMEONE.der.replace(organization, country)
    found = check_signature(replace(parse_signature(MUTABLE), certificate_der=der), PCR0, NOON)
    assert set(found.certificate.issuer_name) == {"commonName", "countryName"}


def test_a_certificate_of_der_junk_is_an_error_of_the_check() -> None:
    with pytest.raises(EifError, match="cannot be checked"):
        check_signature(SignatureSection(b"junk", Sign1(b"", b"", b"")), PCR0)
