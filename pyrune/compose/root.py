"""The root file system that an enclave will have, as an index in memory: names and attributes here, data elsewhere.

It is put together as container engines do it in a root directory of their own: a path is followed through the symbolic
links that are in the tree, which lead nowhere but into the tree, and directories that nobody mentioned come into being.
Nothing is read from, or written to, any file system meanwhile.

What no ramdisk could hold is refused here, by name, because the kernel leaves such entries out without a word.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from pyrune.eif.cpio import MAX_NAME_BYTES, Entry
from pyrune.eif.files import quoted
from pyrune.eif.ramdisk import MTIME, Content, InMemory, Node
from pyrune.errors import EifError

# NAME_MAX and MAXSYMLINKS of Linux.
MAX_COMPONENT_BYTES: Final = 255
_MAX_LINKS_FOLLOWED: Final = 40
_NOTHING: Final = InMemory(b"")

Parts: TypeAlias = tuple[bytes, ...]


class Folder:
    """A directory."""

    __slots__ = ("children", "gid", "mode", "uid")

    def __init__(self, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        self.mode = stat.S_IFDIR | stat.S_IMODE(mode)
        self.uid = uid
        self.gid = gid
        self.children: dict[bytes, Item] = {}


class Leaf:
    """Anything else. One that stands in several places is one file with several names."""

    __slots__ = ("content", "gid", "mode", "rdev", "size_bytes", "target", "uid")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        *,
        size_bytes: int = 0,
        content: Content = _NOTHING,
        target: bytes = b"",
        rdev: tuple[int, int] = (0, 0),
    ) -> None:
        """`mode` has the type. `target` is a symbolic link's; it is the content, too."""
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size_bytes = len(target) if target else size_bytes
        self.content = InMemory(target) if target else content
        self.target = target
        self.rdev = rdev

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


Item: TypeAlias = Folder | Leaf


def regular(data: bytes, mode: int = 0o644) -> Leaf:
    """A file of root's with these data."""
    return Leaf(stat.S_IFREG | mode, size_bytes=len(data), content=InMemory(data))


class RootTree:
    """A tree of folders and leaves. `label` names its origin in errors."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.top = Folder()

    def put(self, parts: Parts, item: Item) -> None:
        """Give `item` this path, in place of what had it; a folder's new attributes do not empty it."""
        if not parts:
            if not isinstance(item, Folder):
                raise self.error(parts, "is the root and no folder")
            self._take_attributes(self.top, item)
            return
        parent = self._make_folder(parts[:-1], parts)
        there = parent.children.get(parts[-1])
        if isinstance(there, Folder) and isinstance(item, Folder):
            self._take_attributes(there, item)
        else:
            parent.children[parts[-1]] = item

    def find(self, parts: Parts, *, follow: bool = False) -> Item | None:
        """What is at this path; with `follow`, where it leads if it is a symbolic link. None if nothing is there."""
        return self._walk(parts, make=False, follow=follow)

    def remove(self, parts: Parts) -> None:
        """Forget what is at this path and below it, if anything is."""
        parent = self._walk(parts[:-1], make=False, follow=True) if parts else None
        if isinstance(parent, Folder):
            parent.children.pop(parts[-1], None)

    def nodes(self, prefix: bytes = b"") -> Iterator[Node]:
        """Everything as a ramdisk's entries, sorted bytewise, folders first; the root itself if it has a name."""
        if prefix:
            yield self._node(prefix, self.top)
        pending = self._listed(prefix, self.top)
        while pending:
            name, item = pending.pop()
            yield self._node(name, item)
            if isinstance(item, Folder):
                pending += self._listed(name, item)

    def error(self, parts: Sequence[bytes], problem: str) -> EifError:
        """An error about a path in this tree."""
        return EifError(f"{self.label}: {quoted(b'/' + b'/'.join(parts))} {problem}")

    def _walk(self, parts: Parts, *, make: bool, follow: bool) -> Item | None:
        """The item at a path, through the tree's symbolic links. With `make`, folders that are missing are made."""
        chain: list[Folder] = [self.top]
        pending = list(reversed(parts))
        links = 0
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                chain = chain[:-1] or chain
                continue
            item = chain[-1].children.get(name)
            if isinstance(item, Leaf) and item.is_symlink and (pending or follow):
                links += 1
                if links > _MAX_LINKS_FOLLOWED:
                    raise self.error(parts, "leads through too many symbolic links")
                if item.target.startswith(b"/"):
                    chain = [self.top]
                pending += reversed(item.target.split(b"/"))
                continue
            if item is None and make:
                self._refuse_long(name, parts)
                item = chain[-1].children[name] = Folder()
            if isinstance(item, Folder):
                chain.append(item)
            elif pending:
                return None
            else:
                return item
        return chain[-1]

    def _make_folder(self, parts: Parts, wanted: Parts) -> Folder:
        self._refuse_long(wanted[-1], wanted)
        found = self._walk(parts, make=True, follow=True)
        if not isinstance(found, Folder):
            raise self.error(wanted, "lies below something that is no folder")
        return found

    def _refuse_long(self, name: bytes, parts: Parts) -> None:
        if len(name) > MAX_COMPONENT_BYTES:
            raise self.error([name[:40] + b"..."], f"has a name of more than {MAX_COMPONENT_BYTES} bytes")
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise self.error(parts, "has a name that no file can have")

    @staticmethod
    def _take_attributes(folder: Folder, other: Folder) -> None:
        folder.mode, folder.uid, folder.gid = other.mode, other.uid, other.gid

    @staticmethod
    def _listed(path: bytes, folder: Folder) -> list[tuple[bytes, Item]]:
        """What is in a folder, last one first."""
        names = sorted(folder.children, reverse=True)
        return [(path + b"/" + name if path else name, folder.children[name]) for name in names]

    def _node(self, name: bytes, item: Item) -> Node:
        if len(name) >= MAX_NAME_BYTES:
            raise self.error([name[:80] + b"..."], f"has a path of more than {MAX_NAME_BYTES - 1} bytes in the ramdisk")
        if isinstance(item, Folder):
            return Node(Entry(name, item.mode, uid=item.uid, gid=item.gid, mtime=MTIME), _NOTHING)
        if item.is_symlink and not 0 < len(item.target) < MAX_NAME_BYTES:
            raise self.error([name], "is a symbolic link that leads nowhere, or has a target that is too long")
        entry = Entry(
            name=name,
            mode=item.mode,
            size_bytes=item.size_bytes,
            uid=item.uid,
            gid=item.gid,
            mtime=MTIME,
            rdev_major=item.rdev[0],
            rdev_minor=item.rdev[1],
        )
        return Node(entry, item.content, item)
