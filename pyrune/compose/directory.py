"""A directory as the root file system of an enclave: as it is, with owners that mean something.

Owners are what root sees in a root file system that root unpacked. Somebody else's copy has their own number
everywhere, which nobody wants in an image, so they must say which owner all of it is to have.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from pyrune.compose.root import Folder, Item, Leaf, RootTree
from pyrune.eif.files import quoted
from pyrune.eif.ramdisk import Node
from pyrune.eif.tree import Directory
from pyrune.errors import UsageError

_MAX_ID: Final = 0xFFFF_FFFE
# The nodes of a packed directory come with names below this, so that the directory itself has one.
_PREFIX: Final = "rootfs"


@dataclass(frozen=True, slots=True)
class Owner:
    """Numbers of a user and a group."""

    uid: int
    gid: int


def parse_owner(text: str) -> Owner:
    """The owner in "0:0". Raises UsageError."""
    match = re.fullmatch("([0-9]{1,10}):([0-9]{1,10})", text)
    if match is None or max(int(match[1]), int(match[2])) > _MAX_ID:
        raise UsageError("--owner takes the numbers of a user and of a group, such as 0:0")
    return Owner(int(match[1]), int(match[2]))


def root_of_directory(stack: ExitStack, directory: str, owner: Owner | None) -> RootTree:
    """The tree in `directory`, whose files are read until `stack` is closed. Raises EifError or UsageError."""
    label = f"root file system {quoted(directory)}"
    if owner is None and os.geteuid() != 0:
        raise UsageError(f"{label}: only root knows whose its files are to be; give --owner 0:0")
    scanned = stack.enter_context(
        Directory(directory, prefix=_PREFIX, keep_owners=True, keep_devices=True, refuse_attributes=True)
    )
    tree = RootTree(label)
    files: dict[object, Leaf] = {}
    for node in scanned.nodes():
        tree.put(tuple(node.entry.name.split(b"/"))[1:], _item(node, owner, files))
    return tree


def _item(node: Node, owner: Owner | None, files: dict[object, Leaf]) -> Item:
    """The node as a tree has it. Names of one file become one leaf, remembered in `files`."""
    entry = node.entry
    uid, gid = (entry.uid, entry.gid) if owner is None else (owner.uid, owner.gid)
    if stat.S_ISDIR(entry.mode):
        return Folder(entry.mode, uid, gid)
    if stat.S_ISLNK(entry.mode):
        target = b"".join(bytes(piece) for piece in node.content.pieces())
        return Leaf(entry.mode, uid, gid, target=target)
    leaf = Leaf(
        entry.mode,
        uid,
        gid,
        size_bytes=entry.size_bytes,
        content=node.content,
        rdev=(entry.rdev_major, entry.rdev_minor),
    )
    return files.setdefault(node.identity, leaf) if node.identity is not None else leaf
