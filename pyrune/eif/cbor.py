"""A strict decoder for the CBOR that signatures of enclave images are made of, and the little encoding they need.

It knows integers, byte and text strings, arrays and maps, all of definite length, and nothing else. The general
decoder, cbor2, is not let near an image: its author would choose which of the many tags it obeys, and some of those
(big floats, regular expressions, shared values) cost whatever the author likes.

Source: RFC 8949.
"""

from __future__ import annotations

from typing import Final, TypeAlias

Value: TypeAlias = "int | bytes | str | list[Value] | dict[int | str, Value]"

UNSIGNED: Final = 0
NEGATIVE: Final = 1
BYTES: Final = 2
TEXT: Final = 3
ARRAY: Final = 4
MAP: Final = 5

_MAX_DEPTH: Final = 8


class CborError(ValueError):
    """Bytes that are not the CBOR that was expected. `position` counts from their beginning."""

    def __init__(self, problem: str, position: int) -> None:
        self.problem = problem
        self.position = position
        super().__init__(f"{problem} at byte {position}")


def decode(data: bytes) -> Value:
    """The one value that `data` consists of. Raises CborError."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.position != len(data):
        raise CborError("bytes follow the value", reader.position)
    return value


def encode_head(major: int, argument: int) -> bytes:
    """The bytes that begin a value: its major type and its number or length, in the shortest form."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * size:
            return bytes([major << 5 | info]) + argument.to_bytes(size, "big")
    raise ValueError(f"{argument} does not fit into 64 bits")


def encode_bytes(data: bytes) -> bytes:
    """A byte string."""
    return encode_head(BYTES, len(data)) + data


def encode_text(text: str) -> bytes:
    """A text string."""
    data = text.encode()
    return encode_head(TEXT, len(data)) + data


def encode_byte_array(data: bytes) -> bytes:
    """An array of integers, one for each byte: what a serialiser writes that does not know byte strings."""
    return encode_head(ARRAY, len(data)) + b"".join(_INTEGERS[byte] for byte in data)


_INTEGERS: Final = tuple(encode_head(UNSIGNED, byte) for byte in range(256))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def value(self, depth: int) -> Value:
        start = self.position
        major, argument = self._head()
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self._take(argument)
            case 3:
                return self._text(argument)
            case 4 | 5 if depth == _MAX_DEPTH:
                raise CborError("values are nested too deeply", start)
            case 4:
                return [self.value(depth + 1) for _ in self._items(argument)]
            case 5:
                return self._map(argument, depth)
            case _:
                raise CborError("a tag, a float or a simple value is not expected", start)

    def _head(self) -> tuple[int, int]:
        start = self.position
        (first,) = self._take(1)
        info = first & 0x1F
        if info < 24:
            return first >> 5, info
        if info > 27:
            raise CborError("a value of indefinite length is not expected", start)
        return first >> 5, int.from_bytes(self._take(1 << info - 24), "big")

    def _take(self, size: int) -> bytes:
        piece = self._data[self.position : self.position + size]
        if len(piece) != size:
            raise CborError("the data end inside a value", len(self._data))
        self.position += size
        return piece

    def _text(self, size: int) -> str:
        start = self.position
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as exc:
            raise CborError("a text is not UTF-8", start + exc.start) from exc

    def _items(self, count: int) -> range:
        # Each item has a byte at least: a count that cannot be true is told before memory is taken for it.
        if count > len(self._data) - self.position:
            raise CborError("the data end inside a value", len(self._data))
        return range(count)

    def _map(self, count: int, depth: int) -> Value:
        pairs: dict[int | str, Value] = {}
        for _ in self._items(count):
            start = self.position
            key = self.value(depth + 1)
            if not isinstance(key, int | str) or key in pairs:
                raise CborError("a map has a key twice, or one that is neither number nor text", start)
            pairs[key] = self.value(depth + 1)
        return pairs
