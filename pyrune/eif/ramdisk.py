"""A ramdisk that is laid out before it is written: which entries it has, and where each one's data will come from.

The data are read while the archive is written, so memory holds names and attributes only. The size is known as soon
as the entries are, as a section's header needs it.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pyrune.eif.cpio import CpioWriter, Entry, Sink, archive_bytes, refuse_impossible
from pyrune.eif.format import Chunk

# 1980-01-01T00:00:00Z, the earliest time that ZIP files can hold: programs that pack their own files still work.
MTIME: Final = 315_532_800


class Content(Protocol):
    """Data that are read when they are needed, and not before."""

    def pieces(self) -> Iterator[Chunk]:
        """All of it. Each piece is gone when the next is asked for. Raises EifError."""
        ...


class InMemory:
    """Data that are there already."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pieces(self) -> Iterator[Chunk]:
        """All of it."""
        if self._data:
            yield self._data


@dataclass(frozen=True, slots=True)
class Node:
    """An entry, with its data. Regular files of the same `identity`, unless it is None, are one file: hard links."""

    entry: Entry
    content: Content
    identity: Hashable = None

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.entry.mode)


class Ramdisk:
    """The archive of `nodes`, in their order: a directory must precede what is in it. See `eif.writer.Source`."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = _without_repeated_data(nodes)
        self.size_bytes = archive_bytes(node.entry for node in self._nodes)
        self.unpacked_bytes = sum(_in_pages(node.entry.size_bytes) for node in self._nodes)

    def write(self, out: Sink) -> None:
        """Write the archive, `size_bytes` long. Raises EifError if a file is not as it was when it was looked at."""
        writer = CpioWriter(out)
        links = Counter(node.identity for node in self._nodes if _may_be_linked(node))
        numbers: dict[Hashable, int] = {}
        for node in self._nodes:
            if not _may_be_linked(node):
                writer.add(node.entry, node.content.pieces())
            elif node.identity in numbers:
                writer.add(node.entry, ino=numbers[node.identity], nlink=links[node.identity])
            else:
                numbers[node.identity] = writer.add(node.entry, node.content.pieces(), nlink=links[node.identity])
        writer.finish()


def _may_be_linked(node: Node) -> bool:
    # The kernel makes hard links of regular files; of a symbolic link it makes a second one, which is as good.
    return node.identity is not None and node.is_regular


def _without_repeated_data(nodes: Iterable[Node]) -> list[Node]:
    """The nodes, those without data that are hard links to an earlier one."""
    seen: set[Hashable] = set()
    result: list[Node] = []
    for node in nodes:
        refuse_impossible(node.entry)
        if _may_be_linked(node):
            if node.identity in seen:
                node = replace(node, entry=replace(node.entry, size_bytes=0))
            seen.add(node.identity)
        result.append(node)
    return result


def _in_pages(size_bytes: int) -> int:
    """How much memory the kernel takes for that much of a file."""
    return size_bytes + -size_bytes % 4096
