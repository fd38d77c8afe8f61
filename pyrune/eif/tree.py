"""Pack a directory into a ramdisk, the same bytes each time, wherever and by whomever it is packed.

What goes in: names, modes, symbolic links as they are, hard links within the tree as hard links, file contents.
What does not: the order of the file system (names are sorted bytewise, a directory before what is in it), times
(all are `MTIME`), owners (all are root, unless asked for), extended attributes and with them file capabilities
(the format has no place for them; they can be refused). Sockets are refused; FIFOs and devices are refused unless
asked for, as a tree that holds any is more likely a mistake.

A tree is scanned first, which gives its size, and read afterwards, through the directory's descriptor and never
through a symbolic link, so that nothing outside it can get in. What changes in between is an error.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pyrune.eif.cpio import Entry, Sink, refuse_impossible
from pyrune.eif.files import CHUNK_BYTES, chunks, kind_of, open_regular, quoted, reason
from pyrune.eif.format import Chunk
from pyrune.eif.ramdisk import MTIME, InMemory, Node, Ramdisk
from pyrune.errors import EifError

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


# Attributes that belong to the machine where a file lies, not to the file: labels, and what overlayfs notes down.
_OF_THE_MACHINE: Final = (b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.")


class _TreeFile:
    """The data of a regular file of a tree, which must still be as it was when the tree was scanned."""

    __slots__ = ("_path", "_state", "_tree")

    def __init__(self, tree: Directory, path: bytes, status: os.stat_result) -> None:
        self._tree = tree
        self._path = path
        self._state = _state(status)

    def pieces(self) -> Iterator[Chunk]:
        """What the file holds."""
        return self._tree.data(self._path, self._state)


def _state(status: os.stat_result) -> bytes:
    """What differs when a file is another one, or was written to. One object of a tree's many files, so a small one."""
    return b"%d %d %d %d %d" % (
        *(status.st_dev, status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


class Directory:
    """An open directory. Use it as a context manager: it holds a descriptor.

    `prefix` is a path that goes before every name in the archive; its directories are entries of their own, the last
    one with the attributes of the directory. Without a prefix the directory itself is no entry.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        prefix: str = "",
        keep_owners: bool = False,
        keep_devices: bool = False,
        refuse_attributes: bool = False,
    ) -> None:
        self._label = quoted(os.fspath(directory))
        self._refuse_attributes = refuse_attributes
        self._keep_owners = keep_owners
        self._keep_devices = keep_devices
        self._prefix = _prefix_parts(prefix)
        self._buffer = bytearray(CHUNK_BYTES)
        try:
            self._fd = os.open(directory, _DIRECTORY_FLAGS)
        except OSError as exc:
            raise EifError(f"folder {self._label} cannot be packed: {reason(exc)}") from exc
        except ValueError as exc:
            raise EifError(f"folder {self._label} cannot be packed: its path is no file name") from exc

    def nodes(self) -> Iterator[Node]:
        """Everything in it, as it is when the iteration comes to it. Raises EifError."""
        yield from self._scan_prefix()
        yield from self._scan()

    def data(self, path: bytes, state: bytes) -> Iterator[Chunk]:
        """What the regular file at `path` below the directory holds, if it still is in that state. Raises EifError."""
        label = self._quoted(path)
        folder, _, name = path.rpartition(b"/")
        with self._directory(folder) as parent_fd:
            fd, size_bytes = open_regular(name, label, dir_fd=parent_fd, follow=False)
        try:
            if _state(os.fstat(fd)) == state:
                yield from chunks(fd, 0, size_bytes, self._buffer, label)
            if _state(os.fstat(fd)) != state:
                raise EifError(f"{label} changed while it was packed")
        finally:
            os.close(fd)

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

    def _scan_prefix(self) -> Iterator[Node]:
        top = os.fstat(self._fd)
        for depth in range(1, len(self._prefix) + 1):
            entry = Entry(b"/".join(self._prefix[:depth]), stat.S_IFDIR | 0o755, mtime=MTIME)
            if depth == len(self._prefix):
                owners = (top.st_uid, top.st_gid) if self._keep_owners else (0, 0)
                entry = replace(entry, mode=top.st_mode, uid=owners[0], gid=owners[1])
            yield Node(entry, InMemory(b""))

    def _scan(self) -> Iterator[Node]:
        # What is still to be visited, the next one last.
        pending = self._children(b"")[::-1]
        while pending:
            path, node = pending.pop()
            yield node
            if stat.S_ISDIR(node.entry.mode):
                pending += self._children(path)[::-1]

    def _children(self, path: bytes) -> list[tuple[bytes, Node]]:
        """What is in the directory `path`, sorted."""
        with self._directory(path) as fd:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            paths = [path + b"/" + name if path else name for name in names]
            return [(below, self._node(fd, name, below)) for name, below in zip(names, paths, strict=True)]

    def _node(self, parent_fd: int, name: bytes, path: bytes) -> Node:
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        target = os.readlink(name, dir_fd=parent_fd) if stat.S_ISLNK(status.st_mode) else b""
        self._refuse_special(path, status.st_mode)
        if self._refuse_attributes:
            refuse_attributes(_attributes(parent_fd, name), self._quoted(path))
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
        if not stat.S_ISREG(status.st_mode):
            return Node(entry, InMemory(target))
        return Node(entry, _TreeFile(self, path, status), (status.st_dev, status.st_ino))

    def _refuse_special(self, path: bytes, mode: int) -> None:
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            return
        if not self._keep_devices or stat.S_ISSOCK(mode):
            raise EifError(f"{self._quoted(path)} cannot be packed: it is {kind_of(mode)}")

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


class Tree(Directory):
    """A directory that has been scanned."""

    def __init__(
        self, directory: str | Path, *, prefix: str = "", keep_owners: bool = False, keep_devices: bool = False
    ) -> None:
        """See `Directory` for the arguments."""
        super().__init__(directory, prefix=prefix, keep_owners=keep_owners, keep_devices=keep_devices)
        try:
            self._ramdisk = Ramdisk(self.nodes())
        except BaseException:
            self.close()
            raise
        self.size_bytes = self._ramdisk.size_bytes

    def write(self, out: Sink) -> None:
        """Write the archive, `size_bytes` long. Raises EifError if a file is not as it was when it was scanned."""
        self._ramdisk.write(out)


def write_tree(
    directory: str | Path,
    out: Sink,
    *,
    prefix: str = "",
    keep_owners: bool = False,
    keep_devices: bool = False,
) -> None:
    """Pack `directory` into an archive on `out`. Raises EifError; see `Directory` for the arguments."""
    with Tree(directory, prefix=prefix, keep_owners=keep_owners, keep_devices=keep_devices) as tree:
        tree.write(out)


def _prefix_parts(prefix: str) -> tuple[bytes, ...]:
    parts = tuple(filter(None, os.fsencode(prefix).split(b"/")))
    if prefix.startswith("/") or b".." in parts or b"." in parts:
        raise ValueError(f"{prefix!r} is no path below the root of an archive")
    return parts


def refuse_attributes(names: Iterable[bytes], label: str) -> None:
    """Raise EifError if one of these names of extended attributes means anything to the file's users."""
    for name in names:
        if not name.startswith(_OF_THE_MACHINE):
            raise EifError(
                f"{label} has the extended attribute {quoted(name)}, which a ramdisk cannot hold; remove it there"
            )


def _attributes(parent_fd: int, name: bytes) -> list[bytes]:
    try:
        found = os.listxattr(b"/proc/self/fd/%d/%s" % (parent_fd, name), follow_symlinks=False)
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return []
        raise
    return [os.fsencode(attribute) for attribute in found]
