"""Layers of a container image, one over the other: which files are there in the end.

A layer is a tar archive of what is new or different. A file `.wh.NAME` says that NAME of the layers below is gone,
`.wh..wh..opq` that all the layers below have in its folder is gone. Both concern lower layers only, whatever their
place in the archive, so they are obeyed before anything of their own layer is added.

Otherwise the order of the archive counts, as where it is unpacked: the later of two entries wins, a folder over a
folder changes its attributes only, and a hard link's target must be there already.

Source: the OCI image specification, layer.md.
"""

from __future__ import annotations

import stat
from typing import Final

from pyrune.compose.extent import Extent
from pyrune.compose.root import Folder, Item, Leaf, Parts, RootTree
from pyrune.compose.tar import Member, read_tar
from pyrune.eif.files import quoted
from pyrune.eif.tree import refuse_attributes
from pyrune.errors import EifError

_WHITEOUT: Final = b".wh."
# What begins with two of them is for the file system that made the layer (aufs), but for one name.
_OF_THE_FILE_SYSTEM: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"


def apply_layer(tree: RootTree, archive: Extent) -> None:
    """Change `tree` as the layer says. Raises EifError for a layer that could not be unpacked, or not kept whole."""
    added: list[tuple[Parts, Member]] = []
    for member in read_tar(archive):
        parts = path_parts(member.name, archive.label)
        name = parts[-1] if parts else b""
        if name == _OPAQUE:
            _empty(tree, parts[:-1])
        elif name.startswith(_OF_THE_FILE_SYSTEM):
            continue
        elif name.startswith(_WHITEOUT):
            gone = name.removeprefix(_WHITEOUT)
            if gone in (b"", b".", b".."):
                raise tree.error(parts, "hides nothing that a file could be called")
            tree.remove((*parts[:-1], gone))
        else:
            added.append((parts, member))
    for parts, member in added:
        refuse_attributes(member.attributes, f"{archive.label}: {quoted(member.name)}")
        tree.put(parts, _item(tree, member, archive))


def path_parts(name: bytes, label: str) -> Parts:
    """A name in an archive as a path from the root. Raises EifError if it leads upwards."""
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise EifError(f"{label} has an entry whose name leads elsewhere: {quoted(name)}")
    return parts


def _empty(tree: RootTree, parts: Parts) -> None:
    folder = tree.find(parts, follow=True)
    if isinstance(folder, Folder):
        folder.children.clear()


def _item(tree: RootTree, member: Member, archive: Extent) -> Item:
    if member.is_hard_link:
        return _linked(tree, member, archive)
    if stat.S_ISDIR(member.mode):
        return Folder(member.mode, member.uid, member.gid)
    if stat.S_ISLNK(member.mode):
        if not member.link:
            raise tree.error([member.name], "is a symbolic link without a target")
        return Leaf(member.mode, member.uid, member.gid, target=member.link)
    return Leaf(
        member.mode,
        member.uid,
        member.gid,
        size_bytes=member.size_bytes,
        content=archive.part(member.data_offset, member.size_bytes),
        rdev=(member.rdev_major, member.rdev_minor),
    )


def _linked(tree: RootTree, member: Member, archive: Extent) -> Leaf:
    target = tree.find(path_parts(member.link, archive.label))
    if not isinstance(target, Leaf):
        raise tree.error([member.name], f"is a hard link to {quoted(member.link)}, which is no file so far")
    return target
