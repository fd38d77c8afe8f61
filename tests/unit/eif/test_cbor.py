from __future__ import annotations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.cbor import CborError, decode, encode_byte_array, encode_bytes, encode_head, encode_text

VALUES = st.recursive(
    st.integers(-(1 << 64), (1 << 64) - 1) | st.binary(max_size=300) | st.text(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5) | st.integers(-9, 9), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_what_cbor2_writes_is_read(value: object) -> None:
    data = cbor2.dumps(value)
    try:
        assert decode(data) == value
    except CborError as exc:
        assert "nested too deeply" in exc.problem  # noqa: PT017


@given(st.binary(max_size=60))
def test_whatever_is_read_cbor2_reads_alike(data: bytes) -> None:
    try:
        value = decode(data)
    except CborError as exc:
        position = exc.position
    else:
        position = 0
        assert cbor2.loads(data) == value
    assert 0 <= position <= len(data)


def test_truncation_at_every_offset_is_an_error() -> None:
    data = cbor2.dumps([{"a": [1, 256, 65536, 1 << 40], "b": b"x" * 300}, "text", -5])
    for length in range(len(data)):
        with pytest.raises(CborError):
            decode(data[:length])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("c24101", "a tag"),
        ("f5", "a simple value"),
        ("f93c00", "a float"),
        ("9f01ff", "indefinite"),
        ("1c", "indefinite"),
        ("0000", "bytes follow"),
        ("9bffffffffffffffff", "end inside"),
        ("5bffffffffffffffff", "end inside"),
        ("bbffffffffffffffff", "end inside"),
        ("61ff", "not UTF-8"),
        ("a2616101616102", "key twice"),
        ("a1800000", "neither number nor text"),
        ("81" * 20 + "00", "nested too deeply"),
    ],
)
def test_what_is_not_expected_is_refused(data: str, words: str) -> None:
    with pytest.raises(CborError, match=words):
        decode(bytes.fromhex(data))


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_written_in_the_shortest_form(number: int) -> None:
    assert encode_head(0, number) == cbor2.dumps(number)


def test_a_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        encode_head(0, 1 << 64)


@given(st.binary(max_size=300), st.text(max_size=300))
def test_strings_are_written_as_cbor2_writes_them(data: bytes, text: str) -> None:
    assert encode_bytes(data) == cbor2.dumps(data)
    assert encode_text(text) == cbor2.dumps(text)


@given(st.binary(max_size=300))
def test_an_array_of_bytes_is_an_array_of_integers(data: bytes) -> None:
    assert encode_byte_array(data) == cbor2.dumps(list(data))
