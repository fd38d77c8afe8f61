from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from pyrune.eif.measure import measure
from pyrune.eif.reader import EifImage
from pyrune.eif.verify import Verification, verify
from pyrune.errors import EifError
from tests.unit.eif.images import METADATA, SIGNATURE, SMALL, Layout, opened
from tests.unit.eif.signing import NOON, certificate_for, section, signer
from tests.unit.eif.test_measure import pcr

PCR0 = pcr(b"".join(data for kind, data in SMALL if kind != METADATA))


def verified(data: bytes, expected: dict[str, str] | None = None, days: float = 1) -> Verification:
    with opened(data) as image:
        return verify(image, expected or {}, NOON + timedelta(days=days))


def signed(data: bytes) -> bytes:
    return Layout(sections=[*SMALL, (SIGNATURE, data)]).build()


def failed(found: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if check.verdict == "failed"}


def test_an_image_without_a_signature_passes_where_none_is_expected() -> None:
    found = verified(Layout().build())
    assert found.passed
    assert [(check.name, str(check.verdict)) for check in found.checks] == [
        ("layout", "ok"),
        ("parts", "ok"),
        ("checksum", "ok"),
        ("signature", "absent"),
    ]


def test_a_signed_image_passes_every_check() -> None:
    someone = signer()
    pcr8 = pcr(someone.der)
    found = verified(signed(someone.section(PCR0)), {"PCR0": PCR0, "PCR8": pcr8})
    assert found.passed
    assert {check.name: str(check.verdict) for check in found.checks} == dict.fromkeys(
        ["layout", "parts", "checksum", "signature", "signed PCR0", "certificate dates", "PCR0", "PCR8"], "ok"
    )


def test_the_real_image_passes(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        expected = {name: value for name, value in measure(image).as_json().items() if name.startswith("PCR")}
        assert verify(image, expected).passed
        expected["PCR1"] = "0" * 96
        assert list(failed(verify(image, expected))) == ["PCR1"]


@pytest.mark.parametrize(
    ("data", "check", "words"),
    [
        (Layout(crc=7).build(), "checksum", "but the header says 0x00000007"),
        (Layout(tail=b"x").build(), "layout", "1 bytes follow the last section"),
        (Layout(sections=SMALL[:3]).build(), "parts", "it has no ramdisk"),
    ],
)
def test_what_is_wrong_with_an_image_is_told_by_its_check(data: bytes, check: str, words: str) -> None:
    found = verified(data)
    assert not found.passed
    assert list(failed(found)) == [check]
    assert words in failed(found)[check]


def test_what_is_wrong_with_a_signature_is_told_by_its_check() -> None:
    someone = signer()
    assert list(failed(verified(signed(someone.section("00" * 48))))) == ["signed PCR0"]
    assert list(failed(verified(signed(someone.section(PCR0, register=1))))) == ["signed PCR0"]
    assert list(failed(verified(signed(someone.section(PCR0)), days=31))) == ["certificate dates"]
    forged = replace(someone, key=signer().key)
    assert list(failed(verified(signed(forged.section(PCR0))))) == ["signature"]
    odd = section(
        replace(someone, certificate=certificate_for(rsa.generate_private_key(65537, 2048))).pem, someone.cose(b"")
    )
    assert "cannot be checked" in failed(verified(signed(odd)))["signature"]


def test_a_signature_section_that_is_none_is_an_error() -> None:
    with pytest.raises(EifError, match=r"test\.eif: the signature section is not what nitro-cli writes"):
        verified(signed(b"junk"))


def test_an_expected_signer_must_have_signed() -> None:
    assert failed(verified(Layout().build(), {"PCR8": "0" * 96})) == {
        "PCR8": f"there is none, but {'0' * 96} was expected"
    }
    assert list(failed(verified(signed(signer().section(PCR0)), {"PCR8": "0" * 96}))) == ["PCR8"]


def test_json_says_the_same() -> None:
    found = verified(Layout(crc=7).build(), {"PCR0": PCR0})
    shown = json.loads(json.dumps(found.as_json()))
    assert shown["Passed"] is False
    assert shown["Measurements"]["PCR0"] == PCR0
    assert [(check["Check"], check["Verdict"]) for check in shown["Checks"]] == [
        (check.name, str(check.verdict)) for check in found.checks
    ]
