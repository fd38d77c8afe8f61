"""CRC-32 (zlib's) of pieces that are put together, without reading them again.

An image's checksum covers its header first, and the header is known last. The CRC is linear: what stands before n
bytes takes part in the checksum of the whole as its own CRC times x to the power of 8n, modulo the polynomial. So the
sum of a long piece can be moved behind another beginning in some microseconds.

Numbers are polynomials over GF(2) as the CRC has them: the highest bit is the coefficient of x to the power of 0.

Source: zlib, crc32.c (crc32_combine), for the interface; the arithmetic is the textbook's.
"""

from __future__ import annotations

from typing import Final

_POLYNOMIAL: Final = 0xEDB8_8320
_ONE: Final = 1 << 31
_X: Final = 1 << 30


def combined(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two pieces one after the other, from that of each and the length of the second."""
    return _product(first, _power_of_x(8 * second_bytes)) ^ second


def with_other_beginning(whole: int, old: int, new: int, following_bytes: int) -> int:
    """The CRC-32 of a whole whose beginning is exchanged for another of the same length.

    `old` and `new` are the CRC-32 of the two beginnings; `following_bytes` is how much comes after them.
    """
    return combined(old ^ new, whole, following_bytes)


def _product(first: int, second: int) -> int:
    result = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            result ^= second
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return result


def _power_of_x(exponent: int) -> int:
    result, square = _ONE, _X
    while exponent:
        if exponent & 1:
            result = _product(result, square)
        square = _product(square, square)
        exponent >>= 1
    return result
