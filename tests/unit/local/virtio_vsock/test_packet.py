"""The wire format, in buffers cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.local.virtio_vsock.packet import (
    HEADER,
    TYPE_STREAM,
    BadPacket,
    Header,
    Op,
    cut,
    data_room,
    parse_packet,
    reset_in_answer_to,
    write_header,
)

# Linux 6.1's heartbeat to 3:9000 from CID 16: a REQUEST with its usual buffer of 256 KiB.
REQUEST = Header(16, 3, 0x12345678, 9000, 0, TYPE_STREAM, Op.REQUEST, 0, 0x40000, 7)
RAW = bytes.fromhex(
    "1000000000000000 0300000000000000"  # source and destination CID
    "78563412 28230000"  # source and destination port
    "00000000"  # length
    "0100 0100"  # type, operation
    "00000000 00000400 07000000".replace(" ", "")  # flags, buf_alloc, fwd_cnt
)


def in_pieces(raw: bytes, cuts: list[int]) -> list[memoryview]:
    """`raw` as writable buffers, cut at these offsets; empty buffers where one occurs twice."""
    edges = [0, *sorted(min(offset, len(raw)) for offset in cuts), len(raw)]
    return [memoryview(bytearray(raw[a:b])) for a, b in itertools.pairwise(edges)]


def test_a_header_has_44_bytes_in_virtios_order() -> None:
    assert HEADER.size == len(RAW) == 44
    assert parse_packet([memoryview(RAW)]) == (REQUEST, [])
    buffer = memoryview(bytearray(44))
    write_header([buffer], REQUEST)
    assert bytes(buffer) == RAW


@given(data=st.binary(max_size=300), extra=st.binary(max_size=9), cuts=st.lists(st.integers(0, 360), max_size=12))
def test_a_packet_may_be_cut_anywhere(data: bytes, extra: bytes, cuts: list[int]) -> None:
    raw = HEADER.pack(*REQUEST._replace(op=Op.RW, length=len(data))) + data
    header, pieces = parse_packet(in_pieces(raw + extra, cuts))
    assert header == REQUEST._replace(op=Op.RW, length=len(data))
    assert b"".join(pieces) == data


@given(size=st.integers(0, 300), cuts=st.lists(st.integers(0, 300), max_size=12))
def test_a_header_and_its_data_go_into_buffers_cut_anywhere(size: int, cuts: list[int]) -> None:
    buffers = in_pieces(bytes(size), cuts)
    room = data_room(buffers)
    assert sum(map(len, room)) == max(0, size - HEADER.size)
    assert all(room)
    if size < HEADER.size:
        return
    write_header(buffers, REQUEST)
    for piece in room:
        piece[:] = b"d" * len(piece)
    assert b"".join(buffers) == RAW + b"d" * (size - HEADER.size)


@pytest.mark.parametrize("length", range(44))
def test_a_header_cut_at_any_offset_is_an_error(length: int) -> None:
    with pytest.raises(BadPacket, match=f"{length} bytes, fewer than its header"):
        parse_packet([memoryview(RAW[:length])])


@pytest.mark.parametrize("length", [1, 100, 0xFFFFFFFF])
def test_data_that_are_not_there_are_an_error(length: int) -> None:
    raw = HEADER.pack(*REQUEST._replace(length=length)) + bytes(length - 1 if length <= 100 else 50)
    with pytest.raises(BadPacket, match=f"announces {length} bytes and has fewer"):
        parse_packet([memoryview(raw)])


def test_no_buffers_have_no_room() -> None:
    assert data_room([]) == []
    assert cut([], 5) == []


def test_what_is_cut_is_no_copy() -> None:
    buffer = bytearray(10)
    (piece,) = cut([memoryview(buffer)], 4)
    piece[:] = b"abcd"
    assert buffer == b"abcd" + bytes(6)


def test_the_reset_in_answer_goes_back_where_the_packet_came_from() -> None:
    assert reset_in_answer_to(REQUEST._replace(type=2)) == Header(3, 16, 9000, 0x12345678, 0, 2, Op.RST, 0, 0, 0)
