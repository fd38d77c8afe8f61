"""What differs between two ramdisks, entry by entry.

Both archives are read at the same pace, and an entry is held only until its counterpart, of the same name, comes by
in the other: where some entries were added, removed or changed, that is as many as were added or removed. Of a file's
data a digest is kept, of some small texts the data. An archive may have several entries of the same name; the first
belongs to the first.

The order of entries is measured, too. Counterparts come by in the order of both archives unless that differs.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from pyrune.eif.cpio import CpioReader, Entry
from pyrune.eif.diff.difference import Difference, escaped
from pyrune.eif.diff.texts import compare_environments, compare_lines
from pyrune.errors import EifError

# What is held of two archives that have little in common; about 170 MiB.
MAX_HELD: Final = 250_000
# Of an archive that has many files by the names below, or many symbolic links.
_MAX_TEXT_BYTES: Final = 1 << 20
_MAX_TARGET_BYTES: Final = 4096

# What AWS's init and pyrune's read: one argument, variable or module in a line. An init may be a script.
_ENVIRONMENT: Final = b"env"
_LISTS: Final = frozenset({b"cmd", b"init", b"modules.load"})

_TYPES: Final = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry, its number in the archive, and what is known of its data; `text` is None for what was not kept.

    `first` is the name of the first entry of the same inode, where there may be more than one.
    """

    entry: Entry
    place: int
    first: bytes
    digest: bytes
    text: bytes | None


def compare_archives(before: CpioReader, after: CpioReader, *, show_values: bool = False) -> Iterator[Difference]:
    """The differences, in no certain order. Raises EifError for what is no archive, or too different to be held."""
    waiting: tuple[dict[bytes, list[_Item]], dict[bytes, list[_Item]]] = ({}, {})
    held = 0
    reached = (-1, -1)
    for items in zip_longest(_items(before), _items(after)):
        for side, item in enumerate(items):
            if item is None:
                continue
            counterpart = _taken(waiting[1 - side], item.entry.name)
            if counterpart is None:
                waiting[side].setdefault(item.entry.name, []).append(item)
                held += 1
                continue
            held -= 1
            old, new = (item, counterpart) if side == 0 else (counterpart, item)
            yield from _changes(old, new, show_values)
            if old.place < reached[0] or new.place < reached[1]:
                yield Difference("order", f"entry {old.place + 1}", f"entry {new.place + 1}", old.entry.label)
            else:
                reached = (old.place, new.place)
        if held > MAX_HELD:
            raise EifError(f"more than {MAX_HELD} entries have no counterpart where it would be expected")
    for lonely in (item for group in waiting[0].values() for item in group):
        yield Difference("entry", _type(lonely.entry), None, lonely.entry.label)
    for lonely in (item for group in waiting[1].values() for item in group):
        yield Difference("entry", None, _type(lonely.entry), lonely.entry.label)


def _items(reader: CpioReader) -> Iterator[_Item]:
    text_bytes = 0
    inodes: dict[tuple[int, int, int], bytes] = {}
    for place, entry in enumerate(reader):
        digest = hashlib.sha256()
        text = bytearray() if _is_text(entry) and text_bytes + entry.size_bytes <= _MAX_TEXT_BYTES else None
        for piece in reader.data():
            digest.update(piece)
            if text is not None:
                text += piece
        text_bytes += 0 if text is None else len(text)
        first = entry.name
        if entry.nlink > 1 and not stat.S_ISDIR(entry.mode):
            first = inodes.setdefault((entry.dev_major, entry.dev_minor, entry.ino), entry.name)
        if len(inodes) > MAX_HELD:
            raise EifError(f"more than {MAX_HELD} files have hard links")
        yield _Item(entry, place, first, digest.digest(), None if text is None else bytes(text))


def _is_text(entry: Entry) -> bool:
    if stat.S_ISLNK(entry.mode):
        return entry.size_bytes <= _MAX_TARGET_BYTES
    return stat.S_ISREG(entry.mode) and _base(entry) in {_ENVIRONMENT, *_LISTS}


def _base(entry: Entry) -> bytes:
    """The name of an entry at the top of the archive, however it is written."""
    return entry.name.removeprefix(b"./").strip(b"/")


def _taken(waiting: dict[bytes, list[_Item]], name: bytes) -> _Item | None:
    group = waiting.get(name)
    if group is None:
        return None
    item = group.pop(0)
    if not group:
        del waiting[name]
    return item


def _changes(old: _Item, new: _Item, show_values: bool) -> Iterator[Difference]:
    path = old.entry.label
    for (attribute, before), (_, after) in zip(_attributes(old), _attributes(new), strict=True):
        if before != after:
            yield Difference(attribute, before, after, path)
    if old.digest != new.digest and not stat.S_ISLNK(old.entry.mode) and None not in (old.text, new.text):
        for change in _lines(old, new, show_values):
            yield Difference(change.attribute, change.before, change.after, path)


def _lines(old: _Item, new: _Item, show_values: bool) -> Iterator[Difference]:
    before, after = old.text or b"", new.text or b""
    if _base(old.entry) == _ENVIRONMENT:
        return compare_environments(before, after, show_values=show_values)
    if 0 in before or 0 in after:
        # A program, as init often is.
        return iter(())
    return compare_lines(before, after, show_values=show_values)


def _attributes(item: _Item) -> Iterator[tuple[str, str]]:
    entry = item.entry
    yield "type", _type(entry)
    yield "mode", f"{stat.S_IMODE(entry.mode):04o}"
    yield "uid", str(entry.uid)
    yield "gid", str(entry.gid)
    yield "mtime", str(entry.mtime)
    yield "links", str(entry.nlink)
    yield "hard link of", "none" if item.first == entry.name else escaped(item.first)
    yield "device", f"{entry.rdev_major}:{entry.rdev_minor}"
    yield "size", str(entry.size_bytes)
    target = item.text if stat.S_ISLNK(entry.mode) else None
    yield "target", "none" if target is None else escaped(target)
    yield "content", "none" if target is not None else f"sha256:{item.digest.hex()}"


def _type(entry: Entry) -> str:
    kind = stat.S_IFMT(entry.mode)
    return _TYPES.get(kind, f"type {kind:#o}")
