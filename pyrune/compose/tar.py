"""The entries of a tar archive, one after another: the dialects that image archives come in, and nothing doubtful.

An archive is a row of headers of 512 bytes, each followed by its data, padded to a multiple of 512; two blocks of
zeros end it. Three dialects are mixed freely: ustar, GNU's (entries of type L and K hold a long name for the next
header; large numbers are binary) and pax (an entry of type x holds key=value records about the next one).

Python's tarfile is not used: it takes a damaged header for the end of the archive, reads extended headers of any
size into memory, and decides by itself what an archive means that two programs could read differently. Here such an
archive is refused. Names are bytes, and neither names nor links are interpreted: that is `compose.root`'s part.

Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Basic Tar Format";
golang's archive/tar for SCHILY.xattr, which is how images carry extended attributes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from pyrune.compose.extent import Extent
from pyrune.eif.files import quoted
from pyrune.errors import EifError

BLOCK_BYTES: Final = 512
# Of one extended header. A path of Linux has 4 KiB, all attributes of one file 64 KiB.
MAX_EXTENDED_BYTES: Final = 1 << 20
UINT32_MAX: Final = 0xFFFF_FFFF
# Linux, include/linux/kdev_t.h.
_MAX_MAJOR: Final = (1 << 12) - 1
_MAX_MINOR: Final = (1 << 20) - 1

_ZEROS: Final = bytes(BLOCK_BYTES)
_CHECKSUM: Final = slice(148, 156)
_TYPE_OFFSET: Final = 156
_USTAR_MAGIC: Final = b"ustar\x0000"
_KINDS: Final = {
    ord("0"): stat.S_IFREG,
    ord("\0"): stat.S_IFREG,
    ord("7"): stat.S_IFREG,
    ord("1"): stat.S_IFREG,
    ord("2"): stat.S_IFLNK,
    ord("3"): stat.S_IFCHR,
    ord("4"): stat.S_IFBLK,
    ord("5"): stat.S_IFDIR,
    ord("6"): stat.S_IFIFO,
}
_WITH_DATA: Final = b"0\x007"
_HARD_LINK: Final = ord("1")
_LONG_NAME, _LONG_LINK = ord("L"), ord("K")
_PAX_NEXT, _PAX_ALL = ord("x"), ord("g")
_ATTRIBUTE_KEYS: Final = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
_SPARSE_KEY: Final = b"GNU.sparse."
_PAX_NUMBERS: Final = frozenset([b"size", b"uid", b"gid"])


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `mode` has the file's type; `link` is the target of a symbolic link or of a hard link.

    `data_offset` is that of the data in the archive. `attributes` are the names of extended attributes.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int = 0
    link: bytes = b""
    is_hard_link: bool = False
    rdev_major: int = 0
    rdev_minor: int = 0
    data_offset: int = 0
    attributes: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Extended:
    """What extended headers say about the entry that follows them."""

    name: bytes | None = None
    link: bytes | None = None
    numbers: dict[bytes, int] = field(default_factory=dict)
    attributes: list[bytes] = field(default_factory=list)


def read_tar(archive: Extent) -> Iterator[Member]:
    """The entries of the archive. Raises EifError for what is none, or could be read in two ways."""
    return _Reader(archive).members()


class _Reader:
    def __init__(self, archive: Extent) -> None:
        self._archive = archive
        self._offset = 0

    def members(self) -> Iterator[Member]:
        extended = _Extended()
        while block := self._header():
            kind = block[_TYPE_OFFSET]
            if kind in (_LONG_NAME, _LONG_LINK, _PAX_NEXT, _PAX_ALL):
                self._extend(extended, kind, block)
                continue
            yield self._member(block, extended)
            extended = _Extended()
        if extended != _Extended():
            raise self._error("ends after an extended header")

    def _header(self) -> bytes:
        """The next header, and past it; nothing at the end of the archive."""
        block = self._archive.read(self._offset, BLOCK_BYTES)
        if block == _ZEROS:
            following = self._archive.read(self._offset + BLOCK_BYTES, BLOCK_BYTES)
            if following.strip(b"\0"):
                raise self._error("goes on after its end")
            return b""
        if not block:
            return b""
        if len(block) < BLOCK_BYTES:
            raise self._error("is cut short")
        if not _checksum_is_right(block):
            raise self._error("has no entry where one should begin")
        self._offset += BLOCK_BYTES
        return block

    def _member(self, block: bytes, extended: _Extended) -> Member:
        kind = block[_TYPE_OFFSET]
        name = extended.name if extended.name is not None else _name(block)
        shown = quoted(name)
        if kind not in _KINDS:
            raise self._error(f"has an entry of the type {quoted(bytes([kind]))}, which is not supported: {shown}")
        file_type = _KINDS[kind]
        if kind == 0 and name.endswith(b"/"):
            file_type = stat.S_IFDIR
        mode = self._number(block[100:108], shown)
        member = Member(
            name=name,
            mode=file_type | mode & 0o7777,
            uid=self._id(extended.numbers.get(b"uid"), block[108:116], shown),
            gid=self._id(extended.numbers.get(b"gid"), block[116:124], shown),
            link=extended.link if extended.link is not None else _until_nul(block[157:257]),
            is_hard_link=kind == _HARD_LINK,
            attributes=tuple(extended.attributes),
        )
        if file_type in (stat.S_IFCHR, stat.S_IFBLK):
            major, minor = self._number(block[329:337], shown), self._number(block[337:345], shown)
            if major > _MAX_MAJOR or minor > _MAX_MINOR:
                raise self._error(f"has a device that Linux cannot have: {shown}")
            member = replace(member, rdev_major=major, rdev_minor=minor)
        if kind in _WITH_DATA and file_type == stat.S_IFREG:
            size_bytes = extended.numbers.get(b"size")
            if size_bytes is None:
                size_bytes = self._number(block[124:136], shown)
            member = replace(member, size_bytes=size_bytes, data_offset=self._offset)
            self._skip(size_bytes, shown)
        return member

    def _extend(self, extended: _Extended, kind: int, block: bytes) -> None:
        size_bytes = self._number(block[124:136], "an extended header")
        if size_bytes > MAX_EXTENDED_BYTES:
            raise self._error(f"has an extended header of {size_bytes} bytes")
        start = self._offset
        self._skip(size_bytes, "an extended header")
        data = self._archive.read(start, size_bytes)
        if kind == _LONG_NAME:
            extended.name = _until_nul(data)
        elif kind == _LONG_LINK:
            extended.link = _until_nul(data)
        else:
            for key, value in self._records(data):
                if kind == _PAX_NEXT:
                    self._note(extended, key, value)
                elif key in (b"path", b"linkpath") or key in _PAX_NUMBERS or key.startswith(_ATTRIBUTE_KEYS):
                    # Some programs apply these to every entry, others ignore them.
                    raise self._error(f"says {quoted(key)} of all its entries at once")

    def _records(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The records of a pax header: their length in decimal, a blank, key=value and a newline."""
        while data.strip(b"\0"):
            length_text, blank, _ = data.partition(b" ")
            length = int(length_text) if length_text.isdigit() and len(length_text) < 8 else 0
            key, equals, value = data[len(length_text) + 1 : length - 1].partition(b"=")
            if not (blank and equals and key) or length > len(data) or data[length - 1 : length] != b"\n":
                raise self._error("has a damaged extended header")
            yield key, value
            data = data[length:]

    def _note(self, extended: _Extended, key: bytes, value: bytes) -> None:
        if key in (b"path", b"linkpath") and b"\0" in value:
            raise self._error("has a name with a NUL in it")
        if key == b"path":
            extended.name = value
        elif key == b"linkpath":
            extended.link = value
        elif key in _PAX_NUMBERS:
            if not value.isdigit() or len(value) > 20:
                raise self._error(f"says of an entry that its {quoted(key)} is {quoted(value[:40])}")
            extended.numbers[key] = int(value)
        elif key.startswith(_SPARSE_KEY):
            raise self._error("has sparse files; pack it again without --sparse")
        elif key.startswith(_ATTRIBUTE_KEYS):
            extended.attributes.append(key.partition(b".xattr.")[2])

    def _skip(self, size_bytes: int, shown: str) -> None:
        end = self._offset + size_bytes
        if end > self._archive.size_bytes:
            raise self._error(f"ends inside {shown}")
        self._offset = end + -end % BLOCK_BYTES
        if self._offset > self._archive.size_bytes:
            raise self._error("is cut short")

    def _id(self, noted: int | None, digits: bytes, shown: str) -> int:
        number = self._number(digits, shown) if noted is None else noted
        if number > UINT32_MAX:
            raise self._error(f"has an owner that no file can have: {shown}")
        return number

    def _number(self, digits: bytes, shown: str) -> int:
        """A number in octal, or in binary if its first bit is set."""
        if digits[0] == 0x80:
            return int.from_bytes(digits[1:], "big")
        text = digits.partition(b"\0")[0].strip(b" ")
        if text.strip(b"01234567"):
            raise self._error(f"has a number that is none at {shown}")
        return int(text or b"0", 8)

    def _error(self, problem: str) -> EifError:
        return EifError(f"{self._archive.label} {problem}", offset=self._offset)


def _checksum_is_right(block: bytes) -> bool:
    """The sum of the header's bytes, with blanks for the sum itself; some programs of old added signed bytes."""
    text = block[_CHECKSUM].strip(b"\0 ")
    if not text or text.strip(b"01234567"):
        return False
    stated = int(text, 8)
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    unsigned = sum(rest) + 8 * ord(" ")
    return stated in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _name(block: bytes) -> bytes:
    name, prefix = _until_nul(block[:100]), _until_nul(block[345:500])
    # GNU's dialect has other things where ustar has a prefix.
    return prefix + b"/" + name if prefix and block[257:265] == _USTAR_MAGIC else name


def _until_nul(text: bytes) -> bytes:
    return text.partition(b"\0")[0]
