from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune import __version__
from pyrune.eif.metadata import (
    BuildMetadata,
    Json,
    Metadata,
    build_metadata,
    parse_metadata,
    read_custom_metadata,
)
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError

BUILD = BuildMetadata("2026-01-02T03:04:05+00:00", "pyrune", "1", "Linux", "6.12")
METADATA = Metadata("naïve", "1", BUILD, {"z": [1, 2.5, None], "a": True}, {"owner": "me"})


def test_the_metadata_of_the_real_image_are_written_again_byte_for_byte(vectors: Path) -> None:
    with EifImage.open(vectors / "eif" / "aws-hello-aarch64.eif") as image:
        assert image.metadata is not None
        data = image.read(image.metadata)
    metadata = parse_metadata(data)
    assert metadata.encode() == data
    assert metadata.image_name == "hello"
    assert metadata.build.kernel_version == "4.14.256"
    assert metadata.custom is None


def test_the_order_of_the_keys_is_fixed() -> None:
    assert METADATA.encode().decode() == (
        '{"ImageName":"naïve","ImageVersion":"1","BuildMetadata":{"BuildTime":"2026-01-02T03:04:05+00:00",'
        '"BuildTool":"pyrune","BuildToolVersion":"1","OperatingSystem":"Linux","KernelVersion":"6.12"},'
        '"DockerInfo":{"z":[1,2.5,null],"a":true},"CustomMetadata":{"owner":"me"}}'
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.text(), JSON, JSON)
def test_what_is_written_is_read(name: str, docker_info: Json, custom: Json) -> None:
    metadata = Metadata(name, name, BUILD, docker_info, custom)
    assert parse_metadata(metadata.encode()) == metadata


def test_docker_info_and_custom_metadata_may_be_missing() -> None:
    value = json.loads(METADATA.encode())
    del value["DockerInfo"], value["CustomMetadata"]
    metadata = parse_metadata(json.dumps(value).encode())
    assert (metadata.docker_info, metadata.custom) == (None, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not what nitro-cli writes"),
        (b"{}", "lacks BuildMetadata"),
        (b"[]", "no object"),
        (b'{"BuildMetadata":7}', "no object"),
        (b'{"BuildMetadata":{}}', "lacks ImageName"),
        (METADATA.encode().replace(b'"6.12"', b"6.12"), "no text"),
        (METADATA.encode().replace(b"2.5", b"NaN"), "not JSON"),
        (METADATA.encode().replace(b"2.5", b"9" * 5000), "digits"),
        (METADATA.encode().replace(b"2.5", b"[" * 100_000), "not what nitro-cli writes"),
        (METADATA.encode().replace(b'"me"', b'"\\ud800"'), "surrogates not allowed"),
        (b"\xff\xfe" + METADATA.encode().decode().encode("utf-16-le"), "can't decode"),
    ],
)
def test_what_is_no_metadata_is_one_error(data: bytes, words: str) -> None:
    with pytest.raises(EifError, match=words) as caught:
        parse_metadata(data)
    assert str(caught.value).isprintable()


def test_truncation_at_every_offset_is_an_error() -> None:
    data = METADATA.encode()
    for length in range(len(data)):
        with pytest.raises(EifError):
            parse_metadata(data[:length])


def test_a_build_has_a_constant_time_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert build_metadata("6.1") == BuildMetadata("1980-01-01T00:00:00+00:00", "pyrune", __version__, "Linux", "6.1")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert build_metadata().build_time == "1970-01-01T00:00:00+00:00"
    assert build_metadata().kernel_version == "Unknown"
    assert build_metadata(build_time=datetime(2026, 1, 2, tzinfo=UTC)).build_time == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize("value", ["yesterday", "1" * 30, "-1e9"])
def test_a_source_date_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(EifError, match="SOURCE_DATE_EPOCH"):
        build_metadata()


def test_custom_metadata_are_read_with_sorted_keys(tmp_path: Path) -> None:
    path = tmp_path / "custom.json"
    path.write_text('{"b": {"d": 1, "c": 2}, "a": [3]}')
    assert json.dumps(read_custom_metadata(str(path))) == '{"a": [3], "b": {"c": 2, "d": 1}}'


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "no JSON"), (b"", "no JSON"), (b"\xff", "no JSON"), (b"1" * 4097, "4097 bytes"), (b"[" * 4096, "no JSON")],
)
def test_custom_metadata_that_are_none_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "custom.json"
    path.write_bytes(data)
    with pytest.raises(EifError, match=words):
        read_custom_metadata(str(path))
