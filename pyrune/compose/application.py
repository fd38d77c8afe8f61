"""The application ramdisk: a root file system, and the process in the form that the guest's init reads.

The layout is nitro-cli's, which pyrune's init and AWS's both read: /rootfs, /cmd and /env, the latter with one entry
per line. That form cannot hold everything that a process is. What it cannot hold is an error that names it, for a
program that runs with less than it was given would be measured, and trusted, all the same.

What engines put into a root file system when they make a container of it is brought into one form here, so that an
image and a container of it measure alike: Docker's marker and its empty mount points disappear, those of every
container come into being.

Source: Docker's daemon/initlayer/setup_unix.go, for what it puts there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from pyrune.compose.process_spec import ProcessSpec
from pyrune.compose.root import Folder, Item, Leaf, RootTree, regular
from pyrune.eif.ramdisk import Node, Ramdisk
from pyrune.errors import EifError

_ROOTFS: Final = b"rootfs"
_ENGINES_MODE: Final = 0o755


def application_ramdisk(tree: RootTree, process: ProcessSpec) -> Ramdisk:
    """The ramdisk of a process in a root file system, which is changed. Raises EifError for what it cannot hold."""
    command, environment = _lines(process.args, "argument"), _lines(process.env, "environment variable")
    _refuse_what_cannot_be_said(process)
    normalise(tree)
    return Ramdisk(_nodes(tree, command, environment))


def normalise(tree: RootTree) -> None:
    """Take out of a root file system what makes a container of it, and put in what every container has."""
    for path, is_engines in _ENGINES_FILES.items():
        item = tree.find(_parts(path))
        if item is not None and is_engines(item):
            tree.remove(_parts(path))
    for path in ("dev", "proc", "sys", "etc"):
        item = tree.find(_parts(path))
        if item is None or (_is_empty_folder(item) and path != "etc"):
            # The guest mounts over it, so nobody ever sees its attributes.
            tree.remove(_parts(path))
            tree.put(_parts(path), Folder(_ENGINES_MODE))
    if isinstance(tree.find(_parts("etc")), Folder) and tree.find(_parts("etc/mtab")) is None:
        tree.put(_parts("etc/mtab"), Leaf(stat.S_IFLNK | 0o777, target=b"/proc/mounts"))


def _is_empty_folder(item: Item) -> bool:
    return isinstance(item, Folder) and not item.children


def _is_empty_file(item: Item) -> bool:
    return isinstance(item, Leaf) and stat.S_ISREG(item.mode) and not item.size_bytes


def _is_mount_point_for_a_file(item: Item) -> bool:
    """An image may have an empty /etc/resolv.conf of its own, but not with these attributes."""
    return _is_empty_file(item) and (stat.S_IMODE(item.mode), item.uid, item.gid) == (_ENGINES_MODE, 0, 0)


_ENGINES_FILES: Final[dict[str, Callable[[Item], bool]]] = {
    ".dockerenv": _is_empty_file,
    "dev/console": _is_empty_file,
    "dev/pts": _is_empty_folder,
    "dev/shm": _is_empty_folder,
    "etc/hostname": _is_mount_point_for_a_file,
    "etc/hosts": _is_mount_point_for_a_file,
    "etc/resolv.conf": _is_mount_point_for_a_file,
}


def _parts(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(path).split(b"/"))


def _nodes(tree: RootTree, command: bytes, environment: bytes) -> Iterator[Node]:
    """In bytewise order, as everything in pyrune's ramdisks."""
    files = RootTree("the application ramdisk")
    files.put((b"cmd",), regular(command))
    files.put((b"env",), regular(environment))
    yield from files.nodes()
    yield from tree.nodes(_ROOTFS)


def _lines(entries: tuple[str, ...], what: str) -> bytes:
    """One entry per line. The error does not quote it: environments hold secrets."""
    lines = [os.fsencode(entry) for entry in entries]
    for number, line in enumerate(lines):
        if b"\n" in line or b"\0" in line:
            raise EifError(f"{what} {number} has a line break or a NUL in it, which the guest's init cannot take")
    return b"".join(line + b"\n" for line in lines)


def _refuse_what_cannot_be_said(process: ProcessSpec) -> None:
    if not process.args or not process.args[0]:
        raise EifError("there is no program to run: name one, after --")
    if process.cwd.rstrip("/"):
        problem = f"the working directory {process.cwd!r} cannot be given to the guest's init yet"
        raise EifError(f"{problem}, which starts programs in /")
    if (process.uid, process.gid) != (0, 0):
        problem = f"the user {process.uid}:{process.gid} cannot be given to the guest's init yet"
        raise EifError(f"{problem}, which runs programs as 0:0")
