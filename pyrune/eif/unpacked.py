"""A ramdisk section as an archive, if it is one: as it is, or packed by gzip.

The kernel knows more: other programs that pack, and archives of which some are packed and some not, one after the
other. The images of nitro-cli have none of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from pyrune.eif.cpio import CpioReader
from pyrune.eif.files import CHUNK_BYTES
from pyrune.eif.format import Chunk, Section
from pyrune.eif.reader import EifImage
from pyrune.errors import EifError

_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = zlib.MAX_WBITS | 16


def read_ramdisk(image: EifImage, section: Section) -> CpioReader:
    """A reader of the entries of a ramdisk. It raises EifError where they are no archive that it knows.

    Offsets of a packed archive are those in what it unpacks to. Memory stays constant, whatever that is.
    """
    pieces = image.chunks(section, bytearray(CHUNK_BYTES))
    if image.head(section, len(_GZIP_MAGIC)) == _GZIP_MAGIC:
        return CpioReader(gunzipped(pieces))
    return CpioReader(pieces, section.data_offset)


def gunzipped(pieces: Iterable[Chunk]) -> Iterator[bytes]:
    """What gzip packed, in pieces of CHUNK_BYTES at most. Zeros may follow each stream. Raises EifError."""
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        for piece in pieces:
            data = bytes(piece)
            while data:
                if stream.eof:
                    data = data.lstrip(b"\0")
                    stream = zlib.decompressobj(_GZIP_WINDOW) if data else stream
                else:
                    yield from _unpacked(stream, data)
                    data = stream.unused_data
    except zlib.error as exc:
        raise EifError("what gzip packed is damaged") from exc
    if not stream.eof:
        raise EifError("what gzip packed ends too early")


def _unpacked(stream: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """What a stream makes of all of `data`, up to the stream's end."""
    while True:
        found = stream.decompress(data, CHUNK_BYTES)
        data = stream.unconsumed_tail
        if found:
            yield found
        if stream.eof or (not data and len(found) < CHUNK_BYTES):
            return
