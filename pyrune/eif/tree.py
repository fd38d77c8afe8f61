"""Pack a directory into a ramdisk, the same bytes each time, wherever and by whomever it is packed.

What goes in: names, modes, symbolic links as they are, hard links within the tree as hard links, file contents.
What does not: the order of the file system (names are sorted bytewise, a directory before what is in it), times
(all are `MTIME`), owners (all are root, unless asked for), extended attributes and with them file capabilities
(the format has no place for them). Sockets are refused; FIFOs and devices are refused unless asked for, as a tree
that holds any is more likely a mistake.

A tree is scanned first, which gives its size, and read afterwards, through the directory's descriptor and never
through a symbolic link, so that nothing outside it can get in. What changes in between is an error.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyrune.eif.cpio import CpioWriter, Entry, Sink, archive_bytes, refuse_impossible
from pyrune.eif.files import CHUNK_BYTES, chunks, kind_of, open_regular, quoted, reason
from pyrune.errors import EifError

# 1980-01-01T00:00:00Z, the earliest time that ZIP files can hold: programs that pack their own files still work.
MTIME: Final = 315_532_800

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class _Node:
    """A file to be packed: its path below the directory, its entry, and which file it is on this machine."""

    path: bytes
    entry: Entry
    inode: tuple[int, int]
    target: bytes = b""

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.entry.mode)


class Tree:
    """A directory that has been scanned. Use it as a context manager: it holds a descriptor.

    `prefix` is a path that goes before every name in the archive; its directories are entries of their own, the last
    one with the mode of the packed directory. Without a prefix the directory itself is no entry.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        prefix: str = "",
        keep_owners: bool = False,
        keep_devices: bool = False,
    ) -> None:
        self._label = quoted(os.fspath(directory))
        self._keep_owners = keep_owners
        self._keep_devices = keep_devices
        self._prefix = _prefix_parts(prefix)
        try:
            self._fd = os.open(directory, _DIRECTORY_FLAGS)
        except OSError as exc:
            raise EifError(f"folder {self._label} cannot be packed: {reason(exc)}") from exc
        except ValueError as exc:
            raise EifError(f"folder {self._label} cannot be packed: its path is no file name") from exc
        try:
            self._nodes = _without_repeated_data([*self._scan_prefix(), *self._scan()])
        except BaseException:
            self.close()
            raise
        self.size_bytes = archive_bytes(node.entry for node in self._nodes)

    def write(self, out: Sink) -> None:
        """Write the archive, `size_bytes` long. Raises EifError if a file is not as it was when it was scanned."""
        writer = CpioWriter(out)
        links = Counter(node.inode for node in self._nodes if node.is_regular)
        numbers: dict[tuple[int, int], int] = {}
        buffer = bytearray(CHUNK_BYTES)
        for node in self._nodes:
            if not node.is_regular:
                writer.add(node.entry, [node.target] if node.target else ())
            elif node.inode in numbers:
                writer.add(node.entry, ino=numbers[node.inode], nlink=links[node.inode])
            else:
                data = self._data(node, buffer)
                numbers[node.inode] = writer.add(node.entry, data, nlink=links[node.inode])
        writer.finish()

    def close(self) -> None:
        """Close the descriptor. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan_prefix(self) -> Iterator[_Node]:
        for depth in range(1, len(self._prefix) + 1):
            mode = os.fstat(self._fd).st_mode if depth == len(self._prefix) else stat.S_IFDIR | 0o755
            yield _Node(b"", Entry(b"/".join(self._prefix[:depth]), mode, mtime=MTIME), (-1, depth))

    def _scan(self) -> Iterator[_Node]:
        # What is still to be visited, the next one last.
        pending = self._children(b"")[::-1]
        while pending:
            node = pending.pop()
            yield node
            if stat.S_ISDIR(node.entry.mode):
                pending += self._children(node.path)[::-1]

    def _children(self, path: bytes) -> list[_Node]:
        """What is in the directory `path`, sorted."""
        with self._directory(path) as fd:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            return [self._node(fd, name, path + b"/" + name if path else name) for name in names]

    def _node(self, parent_fd: int, name: bytes, path: bytes) -> _Node:
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        target = os.readlink(name, dir_fd=parent_fd) if stat.S_ISLNK(status.st_mode) else b""
        self._refuse_special(path, status.st_mode)
        is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        entry = Entry(
            name=b"/".join((*self._prefix, path)),
            mode=status.st_mode,
            size_bytes=status.st_size if stat.S_ISREG(status.st_mode) else len(target),
            uid=status.st_uid if self._keep_owners else 0,
            gid=status.st_gid if self._keep_owners else 0,
            mtime=MTIME,
            rdev_major=os.major(status.st_rdev) if is_device else 0,
            rdev_minor=os.minor(status.st_rdev) if is_device else 0,
        )
        refuse_impossible(entry)
        return _Node(path, entry, (status.st_dev, status.st_ino), target)

    def _refuse_special(self, path: bytes, mode: int) -> None:
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            return
        if not self._keep_devices or stat.S_ISSOCK(mode):
            raise EifError(f"{self._quoted(path)} cannot be packed: it is {kind_of(mode)}")

    def _data(self, node: _Node, buffer: bytearray) -> Iterator[memoryview]:
        label = self._quoted(node.path)
        folder, _, name = node.path.rpartition(b"/")
        with self._directory(folder) as parent_fd:
            fd, size_bytes = open_regular(name, label, dir_fd=parent_fd, follow=False)
        try:
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != node.inode or size_bytes != node.entry.size_bytes:
                raise EifError(f"{label} changed while it was packed")
            yield from chunks(fd, 0, size_bytes, buffer, label)
        finally:
            os.close(fd)

    @contextmanager
    def _directory(self, path: bytes) -> Iterator[int]:
        """A descriptor of the directory `path` below the packed one, reached through no symbolic link."""
        fd = -1
        try:
            fd = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._fd)
            for name in filter(None, path.split(b"/")):
                below = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        except OSError as exc:
            raise EifError(f"{self._quoted(path)} cannot be packed: {reason(exc)}") from exc
        finally:
            if fd >= 0:
                os.close(fd)

    def _quoted(self, path: bytes) -> str:
        return f"{self._label}/{quoted(path)}" if path else self._label


def write_tree(
    directory: str | Path,
    out: Sink,
    *,
    prefix: str = "",
    keep_owners: bool = False,
    keep_devices: bool = False,
) -> None:
    """Pack `directory` into an archive on `out`. Raises EifError; see `Tree` for the arguments."""
    with Tree(directory, prefix=prefix, keep_owners=keep_owners, keep_devices=keep_devices) as tree:
        tree.write(out)


def _prefix_parts(prefix: str) -> tuple[bytes, ...]:
    parts = tuple(filter(None, os.fsencode(prefix).split(b"/")))
    if prefix.startswith("/") or b".." in parts or b"." in parts:
        raise ValueError(f"{prefix!r} is no path below the root of an archive")
    return parts


def _without_repeated_data(nodes: Iterable[_Node]) -> list[_Node]:
    """The nodes, those without data that are hard links to an earlier one."""
    seen: set[tuple[int, int]] = set()
    result: list[_Node] = []
    for node in nodes:
        if node.is_regular and node.inode in seen:
            node = replace(node, entry=replace(node.entry, size_bytes=0))
        seen.add(node.inode)
        result.append(node)
    return result
