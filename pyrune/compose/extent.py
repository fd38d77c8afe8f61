"""A stretch of an open file: how everything here names bytes without holding them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyrune.eif.files import CHUNK_BYTES, chunks, reason
from pyrune.errors import EifError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Extent:
    """`size_bytes` bytes at `offset` of the file behind `fd`, which somebody else closes; `label` is for errors."""

    __slots__ = ("fd", "label", "offset", "size_bytes")

    def __init__(self, fd: int, offset: int, size_bytes: int, label: str) -> None:
        self.fd = fd
        self.offset = offset
        self.size_bytes = size_bytes
        self.label = label

    def part(self, offset: int, size_bytes: int) -> Extent:
        """A stretch of this one, which must contain it."""
        if not 0 <= offset <= offset + size_bytes <= self.size_bytes:
            raise EifError(f"{self.label} ends before it should", offset=self.size_bytes)
        return Extent(self.fd, self.offset + offset, size_bytes, self.label)

    def pieces(self) -> Iterator[memoryview]:
        """All of it. Each piece is gone when the next is asked for."""
        buffer = bytearray(min(CHUNK_BYTES, self.size_bytes) or 1)
        return chunks(self.fd, self.offset, self.offset + self.size_bytes, buffer, self.label)

    def read(self, offset: int, at_most: int) -> bytes:
        """What is there at `offset`, less than asked for only at the end."""
        wanted = max(0, min(at_most, self.size_bytes - offset))
        try:
            data = os.pread(self.fd, wanted, self.offset + offset)
        except OSError as exc:
            raise EifError(f"{self.label} cannot be read: {reason(exc)}", offset=offset) from exc
        if len(data) < wanted:
            raise EifError(f"{self.label}: it became shorter while it was read", offset=offset)
        return data

    def whole(self, limit_bytes: int) -> bytes:
        """All of it at once. Raises EifError if that is more than `limit_bytes`."""
        if self.size_bytes > limit_bytes:
            raise EifError(f"{self.label} has {self.size_bytes} bytes, more than {limit_bytes}")
        return self.read(0, self.size_bytes)


class ExtentReader(io.RawIOBase):
    """An extent as a file that is read from its beginning to its end, for decompressors that want one."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._offset = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """The next bytes, or 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._extent.read(self._offset, len(view))
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)
