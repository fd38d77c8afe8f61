from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyrune.eif.describe import describe, pretty_json
from pyrune.eif.measure import measure
from pyrune.eif.metadata import Json, Metadata
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.unit.eif.images import METADATA, SIGNATURE, SMALL, Layout, opened
from tests.unit.eif.signing import signer
from tests.unit.eif.test_metadata import BUILD


def described(layout: Layout) -> dict[str, Any]:
    with opened(layout.build()) as image:
        result: dict[str, Any] = json.loads(pretty_json(describe(image).as_json()))
    return result


def with_metadata(custom: Json = None, name: str = "name") -> Layout:
    data = Metadata(name, "7", BUILD, {"Id": "x"}, custom).encode()
    return Layout(sections=[*SMALL[:2], (METADATA, data), *SMALL[3:]])


PLAIN = Layout(sections=[*SMALL[:2], *SMALL[3:]])


def test_the_real_image_is_described_as_nitro_cli_does(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        found = describe(image).as_json()
    assert list(found) == [
        "EifVersion",
        "Measurements",
        "IsSigned",
        "CheckCRC",
        "ImageName",
        "ImageVersion",
        "Metadata",
    ]
    assert found["EifVersion"] == 4
    assert found["IsSigned"] is False
    assert found["CheckCRC"] is True
    assert found["ImageName"] == "hello"
    metadata = found["Metadata"]
    assert isinstance(metadata, dict)
    assert list(metadata) == [
        "BuildTime",
        "BuildTool",
        "BuildToolVersion",
        "OperatingSystem",
        "KernelVersion",
        "DockerInfo",
    ]


def test_an_image_without_metadata_and_signature_has_four_keys() -> None:
    assert list(described(PLAIN)) == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]


def test_a_wrong_checksum_is_told() -> None:
    assert described(Layout(sections=PLAIN.sections, crc=1))["CheckCRC"] is False


def test_ambiguities_are_listed_if_there_are_any() -> None:
    found = described(Layout(sections=PLAIN.sections, tail=b"x"))
    assert list(found)[-1] == "Ambiguities"
    assert found["Ambiguities"] == ["1 bytes follow the last section, at offset 3630"]


def signed(pcr0: str) -> dict[str, Any]:
    return described(Layout(sections=[*PLAIN.sections, (SIGNATURE, signer().section(pcr0))]))


def test_a_signed_image_tells_who_signed_it() -> None:
    with opened(PLAIN.build()) as image:
        pcr0 = measure(image).pcr0
    found = signed(pcr0)
    assert list(found) == ["EifVersion", "Measurements", "IsSigned", "SigningCertificate", "CheckCRC", "SignatureCheck"]
    assert found["IsSigned"] is True
    assert found["SignatureCheck"] is True
    assert found["SigningCertificate"]["Algorithm"] == "ecdsa-with-SHA384"
    assert list(found["Measurements"]) == ["HashAlgorithm", "PCR0", "PCR1", "PCR2", "PCR8"]


def test_a_signature_for_another_image_fails_the_check() -> None:
    assert signed("00" * 48)["SignatureCheck"] is False


def test_custom_metadata_stand_beside_the_rest_but_not_in_its_place() -> None:
    found = described(with_metadata({"Owner": "me", "BuildTool": "forged"}))["Metadata"]
    assert found["Owner"] == "me"
    assert found["BuildTool"] == "pyrune"
    assert list(found)[-1] == "Owner"


def test_custom_metadata_that_are_no_object_keep_their_name() -> None:
    assert described(with_metadata([1]))["Metadata"]["CustomMetadata"] == [1]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x7f", "\x9b31m", "\u202e", "\U000e0041"])
def test_what_could_move_a_terminal_is_escaped(text: str) -> None:
    with opened(with_metadata(name=text).build()) as image:
        shown = pretty_json(describe(image).as_json())
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown)["ImageName"] == text


@pytest.mark.parametrize("kind", [METADATA, SIGNATURE])
def test_a_malformed_part_is_an_error_that_names_image_and_offset(kind: int) -> None:
    with pytest.raises(EifError, match=r"^image test\.eif: the (metadata|signature) section .*\(at offset 548\)$"):
        described(Layout(sections=[(kind, b"junk")]))
