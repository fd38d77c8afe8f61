"""The files of an image archive by their names: those of a directory, or those within a tar archive, read in place.

Nothing is unpacked, and no symbolic link is followed out of the archive or the directory.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import Final, Protocol

from pyrune.compose.extent import Extent
from pyrune.compose.layer_data import is_compressed
from pyrune.compose.layers import path_parts
from pyrune.compose.root import Folder, Leaf, RootTree
from pyrune.compose.tar import read_tar
from pyrune.eif.files import kind_of, open_regular, quoted, reason
from pyrune.errors import EifError

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


class Store(Protocol):
    """Files by name, such as blobs/sha256/0123. `label` names all of it in errors."""

    label: str

    def find(self, name: str) -> Extent | None:
        """The data of a file; None if there is no such file. Raises EifError."""
        ...

    def check_unchanged(self) -> None:
        """Raise EifError if a file that was given out is not as it was then."""
        ...


def open_store(stack: ExitStack, path: str, what: str) -> Store:
    """The store at `path`, until `stack` is closed; `what` is a word for it, such as "docker archive"."""
    label = f"{what} {quoted(path)}"
    if os.path.isdir(path):
        return _DirectoryStore(stack, path, label)
    return _TarStore(stack, path, label)


class _Files:
    """Open files, and how they were when they were opened."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._states: list[tuple[int, str, tuple[int, ...]]] = []

    def add(self, fd: int, label: str) -> None:
        """Close it with the stack, and remember its state."""
        self._stack.callback(os.close, fd)
        self._states.append((fd, label, _state(fd)))

    def check_unchanged(self) -> None:
        """Raise EifError if one of them was written to."""
        for fd, label, state in self._states:
            if _state(fd) != state:
                raise EifError(f"{label} changed while it was read")


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _TarStore:
    def __init__(self, stack: ExitStack, path: str, label: str) -> None:
        self.label = label
        self._files = _Files(stack)
        fd, size_bytes = open_regular(path, label)
        self._files.add(fd, label)
        archive = Extent(fd, 0, size_bytes, label)
        if is_compressed(archive):
            raise EifError(f"{label} is compressed as a whole; decompress it first")
        # Only names and places matter here, but links between the files do, too: docker save makes them.
        self._tree = RootTree(label)
        for member in read_tar(archive):
            parts = path_parts(member.name, label)
            if stat.S_ISDIR(member.mode):
                self._tree.put(parts, Folder())
                continue
            if self._tree.find(parts) is not None:
                raise EifError(f"{label} has two files of one name: {quoted(member.name)}")
            data = archive.part(member.data_offset, member.size_bytes)
            target = member.link if stat.S_ISLNK(member.mode) else b""
            self._tree.put(parts, Leaf(member.mode, size_bytes=member.size_bytes, content=data, target=target))

    def find(self, name: str) -> Extent | None:
        item = self._tree.find(tuple(os.fsencode(name).split(b"/")), follow=True)
        if not isinstance(item, Leaf) or not isinstance(item.content, Extent):
            return None
        extent = item.content
        return Extent(extent.fd, extent.offset, extent.size_bytes, f"{self.label}: {quoted(name)}")

    def check_unchanged(self) -> None:
        self._files.check_unchanged()


class _DirectoryStore:
    def __init__(self, stack: ExitStack, path: str, label: str) -> None:
        self.label = label
        self._files = _Files(stack)
        self._found: dict[str, Extent] = {}
        try:
            self._fd = os.open(path, _DIRECTORY_FLAGS)
        except OSError as exc:
            raise EifError(f"{label} does not open: {reason(exc)}") from exc
        stack.callback(os.close, self._fd)

    def find(self, name: str) -> Extent | None:
        if name not in self._found:
            label = f"{self.label}: {quoted(name)}"
            fd = self._open(name, label)
            if fd is None:
                return None
            self._files.add(fd, label)
            self._found[name] = Extent(fd, 0, os.fstat(fd).st_size, label)
        return self._found[name]

    def check_unchanged(self) -> None:
        self._files.check_unchanged()

    def _open(self, name: str, label: str) -> int | None:
        """A descriptor of a regular file, reached through no symbolic link; None if there is none."""
        *folders, last = name.split("/")
        if not all(folders) or not last or ".." in name.split("/"):
            raise EifError(f"{label} is no name of a file in it")
        with ExitStack() as stack:
            parent = self._fd
            try:
                for folder in folders:
                    parent = os.open(folder, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
                    stack.callback(os.close, parent)
                mode = os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return None
            except OSError as exc:
                raise EifError(f"{label} does not open: {reason(exc)}") from exc
            if not stat.S_ISREG(mode):
                raise EifError(f"{label} does not open: it is no regular file but {kind_of(mode)}")
            return open_regular(last, label, dir_fd=parent, follow=False)[0]
