"""The data of a layer as an archive that can be read at any place: checked against its digests, and decompressed.

A layer that is not compressed stays where it is. Another is decompressed once, into a file without a name in the
directory of the image that is built, which has to have room for as much anyway; it is gone when its descriptor is
closed, however this process ends. Nothing is decompressed to more than the disk has room for.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from pyrune.compose.extent import Extent, ExtentReader
from pyrune.eif.files import CHUNK_BYTES, quoted, reason
from pyrune.eif.format import Chunk
from pyrune.errors import EifError

if TYPE_CHECKING:
    from hashlib import _Hash

# What is left free on the disk that layers are decompressed to.
RESERVED_BYTES: Final = 128 << 20

_ALGORITHMS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_OTHER_MAGICS: Final = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4"}
_ZSTD_WINDOW_BYTES: Final = 128 << 20


class Digest:
    """A digest as images write it, such as sha256:0123..."""

    __slots__ = ("algorithm", "hexadecimal")

    def __init__(self, text: str, label: str) -> None:
        """Raises EifError if it is none that can be checked; `label` says where it was found."""
        self.algorithm, _, self.hexadecimal = text.partition(":")
        digits = _ALGORITHMS.get(self.algorithm)
        if digits is None or len(self.hexadecimal) != digits or self.hexadecimal.strip("0123456789abcdef"):
            raise EifError(f"{label} names no digest that can be checked: {quoted(text[:100])}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hexadecimal}"

    def new(self) -> _Hash:
        """An empty hash of this kind."""
        return hashlib.new(self.algorithm)

    def require(self, computed: _Hash, label: str) -> None:
        """Raise EifError if the data that `computed` has seen are others."""
        if computed.hexdigest() != self.hexadecimal:
            raise EifError(f"{label} is damaged: its digest is not {self}")

    def check(self, extent: Extent) -> None:
        """Raise EifError if an extent holds other data."""
        computed = self.new()
        for piece in extent.pieces():
            computed.update(piece)
        self.require(computed, extent.label)


def layer_archive(stack: ExitStack, layer: Extent, diff_id: Digest, directory: Path) -> Extent:
    """The archive in `layer`, whose decompressed data must have the digest `diff_id`.

    What had to be decompressed lies in `directory` until `stack` is closed. Raises EifError.
    """
    pieces = _decompressed(layer)
    if pieces is None:
        diff_id.check(layer)
        return layer
    try:
        spool = stack.enter_context(cast(BinaryIO, tempfile.TemporaryFile(dir=directory, buffering=0)))
    except OSError as exc:
        raise EifError(
            f"{layer.label} cannot be decompressed to {quoted(os.fspath(directory))}: {reason(exc)}"
        ) from exc
    computed = diff_id.new()
    size_bytes = _copy(pieces, spool, computed, layer.label)
    diff_id.require(computed, layer.label)
    return Extent(spool.fileno(), 0, size_bytes, layer.label)


def is_compressed(extent: Extent) -> bool:
    """Whether the data begin as compressed ones do."""
    return extent.read(0, 6).startswith((_GZIP_MAGIC, _ZSTD_MAGIC, *_OTHER_MAGICS))


def _copy(pieces: Iterable[Chunk], spool: BinaryIO, computed: _Hash, label: str) -> int:
    size_bytes, until_looking = 0, 0
    try:
        for piece in pieces:
            if until_looking <= 0:
                _require_room(spool, label)
                until_looking = RESERVED_BYTES // 2
            computed.update(piece)
            _write(spool, piece)
            size_bytes += len(piece)
            until_looking -= len(piece)
    except OSError as exc:
        raise EifError(f"{label} cannot be decompressed: {reason(exc)}") from exc
    return size_bytes


def _write(spool: BinaryIO, piece: Chunk) -> None:
    view = memoryview(piece)
    while view:
        view = view[spool.write(view) :]


def _require_room(spool: BinaryIO, label: str) -> None:
    status = os.fstatvfs(spool.fileno())
    if status.f_bavail * status.f_frsize < RESERVED_BYTES:
        raise EifError(f"{label} cannot be decompressed: it needs more room than the output's disk has")


def _decompressed(layer: Extent) -> Iterator[Chunk] | None:
    """The data of a compressed layer; None if it is not compressed."""
    magic = layer.read(0, 6)
    if magic.startswith(_GZIP_MAGIC):
        return _gunzipped(layer)
    if magic.startswith(_ZSTD_MAGIC):
        return _unzstd(layer)
    for other, name in _OTHER_MAGICS.items():
        if magic.startswith(other):
            raise EifError(f"{layer.label} is compressed with {name}; gzip and zstd are supported")
    return None


def _gunzipped(layer: Extent) -> Iterator[bytes]:
    """At most CHUNK_BYTES at a time, whatever the ratio. Several members one after another are one."""
    reader = ExtentReader(layer)
    pending = b""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        while pending := pending or reader.read(CHUNK_BYTES) or b"":
            if unpacker.eof:
                unpacker = zlib.decompressobj(wbits=31)
            piece = unpacker.decompress(pending, CHUNK_BYTES)
            pending = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if piece:
                yield piece
        while not unpacker.eof and (piece := unpacker.decompress(b"", CHUNK_BYTES)):
            yield piece
    except zlib.error as exc:
        raise EifError(f"{layer.label} is damaged: its compression is broken") from exc
    if not unpacker.eof:
        raise EifError(f"{layer.label} is damaged: it is cut short")


def _unzstd(layer: Extent) -> Iterator[bytes]:
    """As _gunzipped; by Python's own module where there is one, 3.14, or else by the package zstandard."""
    source = ExtentReader(layer)
    reader: BinaryIO
    try:
        from compression import zstd

        broken: type[Exception] = zstd.ZstdError
        limit = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_BYTES.bit_length() - 1}
        reader = zstd.ZstdFile(source, options=limit)
    except ImportError:
        try:
            import zstandard
        except ImportError as exc:
            remedy = "it takes Python 3.14, or: pip install 'pyrune[zstd]'"
            raise EifError(f"{layer.label} is compressed with zstd; {remedy}") from exc
        broken = zstandard.ZstdError
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        reader = unpacker.stream_reader(io.BufferedReader(source), read_across_frames=True)
    try:
        while piece := reader.read(CHUNK_BYTES):
            yield piece
    except (broken, EOFError) as exc:
        raise EifError(f"{layer.label} is damaged: its compression is broken") from exc
