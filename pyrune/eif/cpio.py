"""The archive format of ramdisks, "newc" cpio: a reader for any of them, a writer for one dialect.

An entry is a header of 110 ASCII bytes (the magic 070701 and thirteen numbers of eight hexadecimal digits), the name
with a NUL, and the data; name and data are each padded with zeros to a multiple of four. An entry of the name
TRAILER!!! ends the archive. The kernel accepts several archives one after another, with zeros between them.

The dialect of the writer is that of linuxkit, which builds the ramdisks of nitro-cli, byte for byte: lower-case
digits, inode numbers that count from 721 on, the trailer taking the next, device 3:1, two links for a directory and
one for anything else, no checksum, and zeros after the trailer up to a multiple of 512. Whatever else an entry says
(mode, owner, time, device number) is the caller's. Hard links are the one thing linuxkit has not: entries that name
the inode number of an earlier one and have no data are links to it, as the kernel understands them.

Sources: Linux, Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c; the archives in
images of nitro-cli 1.4.2.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pyrune.eif.format import Chunk
from pyrune.errors import EifError, printable

TRAILER: Final = b"TRAILER!!!"
MAX_FILE_BYTES: Final = 0xFFFF_FFFF
# PATH_MAX, with its NUL: the kernel skips an entry with a longer name and says nothing.
MAX_NAME_BYTES: Final = 4096

_MAGICS: Final = (b"070701", b"070702")
_HEADER_BYTES: Final = 110
_FIELDS: Final = struct.Struct(">13I")
_FIRST_INO: Final = 721
_DEVICE: Final = (3, 1)
_BLOCK_BYTES: Final = 512
_ZEROS: Final = bytes(_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive, without its data.

    `offset` and `data_offset` say where a reader found it. The writer ignores them, and numbers inodes, links and
    devices itself, unless `CpioWriter.add` is told otherwise.
    """

    name: bytes
    mode: int
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev_major: int = 0
    rdev_minor: int = 0
    ino: int = 0
    nlink: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    check: int = 0
    offset: int = 0
    data_offset: int = 0

    @property
    def padded_bytes(self) -> int:
        """How many bytes of an archive the entry takes, header and data."""
        return _aligned(_HEADER_BYTES + len(self.name) + 1) + _aligned(self.size_bytes)

    @property
    def label(self) -> str:
        """The name in a sentence, printable."""
        return printable(self.name.decode(errors="backslashreplace"))


class Sink(Protocol):
    """What an archive is written to; `write` must take all of what it is given."""

    def write(self, data: Chunk, /) -> object: ...


class CpioReader:
    """Reads the entries of an archive, or of several one after another, from pieces of any size.

    Iterate over the entries; `data` gives the data of the one just seen. `base` is added to every offset, in entries
    and in errors. Raises EifError, at the latest when the iteration ends, for anything that is no archive.
    """

    def __init__(self, pieces: Iterable[Chunk], base: int = 0) -> None:
        self._stream = _Stream(pieces, base)
        self._left_bytes = 0

    def __iter__(self) -> Iterator[Entry]:
        while True:
            yield from self._one_archive()
            if not self._stream.skip_zeros():
                return

    def data(self) -> Iterator[Chunk]:
        """The rest of the data of the current entry. Each piece is gone when the next is asked for."""
        while self._left_bytes:
            piece = self._stream.some(self._left_bytes)
            self._left_bytes -= len(piece)
            yield piece

    def _one_archive(self) -> Iterator[Entry]:
        while (entry := self._entry()).name != TRAILER:
            self._left_bytes = entry.size_bytes
            yield entry
            for _ in self.data():
                pass
            self._stream.align()

    def _entry(self) -> Entry:
        offset = self._stream.offset
        ino, mode, uid, gid, nlink, mtime, size, dev_major, dev_minor, rdev_major, rdev_minor, name_size, check = (
            self._numbers()
        )
        if not 0 < name_size <= MAX_NAME_BYTES:
            raise EifError(f"an archive entry has a name of {name_size} bytes", offset=offset)
        name = self._stream.take(name_size)
        if name.find(0) != name_size - 1:
            raise EifError("the name of an archive entry does not end with a NUL", offset=offset)
        self._stream.align()
        return Entry(
            name=name[:-1],
            mode=mode,
            size_bytes=size,
            uid=uid,
            gid=gid,
            mtime=mtime,
            rdev_major=rdev_major,
            rdev_minor=rdev_minor,
            ino=ino,
            nlink=nlink,
            dev_major=dev_major,
            dev_minor=dev_minor,
            check=check,
            offset=offset,
            data_offset=self._stream.offset,
        )

    def _numbers(self) -> tuple[int, ...]:
        offset = self._stream.offset
        header = self._stream.take(_HEADER_BYTES)
        if header[:6] not in _MAGICS:
            raise EifError("there is no archive entry (newc cpio) where one should begin", offset=offset)
        try:
            # fromhex skips blanks; what is too short then is refused by unpack.
            return _FIELDS.unpack(bytes.fromhex(header[6:].decode("ascii")))
        except (ValueError, struct.error) as exc:
            raise EifError("the header of an archive entry is not hexadecimal", offset=offset) from exc


class CpioWriter:
    """Writes one archive in the dialect that the module describes."""

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._ino = _FIRST_INO
        self.size_bytes = 0

    def add(self, entry: Entry, data: Iterable[Chunk] = (), *, ino: int | None = None, nlink: int | None = None) -> int:
        """Append an entry and its data, which must be `entry.size_bytes` long, and return its inode number.

        `ino` and `nlink` are for hard links: the first has the data and a link count above one, the others its inode
        number, the same count, and no data. Raises EifError if the format cannot hold the entry.
        """
        refuse_impossible(entry)
        return self._append(entry, data, ino, nlink)

    def finish(self) -> None:
        """Write the trailer and the padding."""
        self._append(Entry(TRAILER, 0), (), None, None)
        self._write(_ZEROS[: -self.size_bytes % _BLOCK_BYTES])

    def _append(self, entry: Entry, data: Iterable[Chunk], ino: int | None, nlink: int | None) -> int:
        numbered = replace(
            entry,
            ino=self._ino if ino is None else ino,
            nlink=nlink or (2 if stat.S_ISDIR(entry.mode) else 1),
            dev_major=_DEVICE[0],
            dev_minor=_DEVICE[1],
            check=0,
        )
        self._ino += 1
        self._write(_pack(numbered))
        self._write_data(entry, data)
        return numbered.ino

    def _write_data(self, entry: Entry, data: Iterable[Chunk]) -> None:
        written = 0
        for piece in data:
            written += len(piece)
            if written > entry.size_bytes:
                break
            self._write(piece)
        if written != entry.size_bytes:
            problem = "became longer" if written > entry.size_bytes else "became shorter"
            raise EifError(f"{entry.label} {problem} than {entry.size_bytes} bytes while it was packed")
        self._write(_ZEROS[: -written % 4])

    def _write(self, data: Chunk) -> None:
        self._out.write(data)
        self.size_bytes += len(data)


def refuse_impossible(entry: Entry) -> None:
    """Raise EifError if the format cannot hold an entry."""
    if entry.name == TRAILER:
        raise EifError(f"{entry.label} cannot be packed: the name ends an archive")
    if not entry.name or 0 in entry.name or len(entry.name) >= MAX_NAME_BYTES:
        raise EifError(f"{entry.label} cannot be packed: the name is empty, too long or has a NUL")
    if entry.size_bytes > MAX_FILE_BYTES:
        raise EifError(f"{entry.label} cannot be packed: it has 4 GiB or more, which no archive entry can")


def archive_bytes(entries: Iterable[Entry]) -> int:
    """How large the archive will be that the writer makes of `entries`."""
    size = sum(entry.padded_bytes for entry in entries) + Entry(TRAILER, 0).padded_bytes
    return size + -size % _BLOCK_BYTES


def _aligned(size: int) -> int:
    return size + -size % 4


def _pack(entry: Entry) -> bytes:
    numbers = _FIELDS.pack(
        entry.ino,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.nlink,
        entry.mtime,
        entry.size_bytes,
        entry.dev_major,
        entry.dev_minor,
        entry.rdev_major,
        entry.rdev_minor,
        len(entry.name) + 1,
        entry.check,
    )
    head = _MAGICS[0] + numbers.hex().encode() + entry.name + b"\0"
    return head + _ZEROS[: -len(head) % 4]


class _Stream:
    """Pieces of any size, as a stream of bytes with an offset."""

    def __init__(self, pieces: Iterable[Chunk], base: int) -> None:
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")
        self._base = base
        self.offset = base

    def some(self, at_most: int) -> memoryview:
        """At least one byte, at most `at_most`. Raises EifError at the end."""
        if not self._refill():
            raise EifError("the archive ends without a trailer", offset=self.offset)
        found, self._piece = self._piece[:at_most], self._piece[at_most:]
        self.offset += len(found)
        return found

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        found = bytearray()
        while len(found) < count:
            found += self.some(count - len(found))
        return bytes(found)

    def align(self) -> None:
        """Go on to the next multiple of four."""
        self.take((self._base - self.offset) % 4)

    def skip_zeros(self) -> bool:
        """Go on to the next byte that is not zero; False if there is none."""
        while self._refill():
            piece = bytes(self._piece)
            zeros = len(piece) - len(piece.lstrip(b"\0"))
            self.offset += zeros
            self._piece = self._piece[zeros:]
            if self._piece:
                return True
        return False

    def _refill(self) -> bool:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._piece = memoryview(piece)
        return True
