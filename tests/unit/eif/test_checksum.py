from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.checksum import combined, with_other_beginning


@given(st.binary(), st.binary())
def test_two_pieces_have_the_checksum_of_the_whole(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=50), st.binary())
def test_a_beginning_can_be_exchanged(pairs: list[tuple[int, int]], rest: bytes) -> None:
    old, new = (bytes(pair[side] for pair in pairs) for side in (0, 1))
    found = with_other_beginning(zlib.crc32(old + rest), zlib.crc32(old), zlib.crc32(new), len(rest))
    assert found == zlib.crc32(new + rest)


def test_a_piece_may_be_long() -> None:
    piece = bytes(1 << 20)
    crc32, whole = 0, zlib.crc32(b"x")
    for _ in range(100):
        crc32, whole = zlib.crc32(piece, crc32), zlib.crc32(piece, whole)
    assert combined(zlib.crc32(b"x"), crc32, 100 << 20) == whole
