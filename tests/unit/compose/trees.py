"""Trees and ramdisks in the tests' own words."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyrune.compose.extent import Extent
from pyrune.compose.layers import apply_layer
from pyrune.compose.root import RootTree
from pyrune.eif.cpio import CpioReader, Entry
from pyrune.eif.ramdisk import Ramdisk
from tests.support.image_archives import File, tar


@contextmanager
def extent(data: bytes, label: str = "archive") -> Iterator[Extent]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Extent(file.fileno(), 0, len(data), label)


def written(ramdisk: Ramdisk) -> bytes:
    out = io.BytesIO()
    ramdisk.write(out)
    assert len(out.getvalue()) == ramdisk.size_bytes
    return out.getvalue()


def unpacked(data: bytes) -> dict[bytes, tuple[Entry, bytes]]:
    reader = CpioReader([data])
    return {entry.name: (entry, b"".join(bytes(piece) for piece in reader.data())) for entry in reader}


def content(tree: RootTree) -> dict[str, tuple[Entry, bytes]]:
    """Everything in a tree, by its path, without directories that nobody named."""
    return {os.fsdecode(name): found for name, found in unpacked(written(Ramdisk(tree.nodes()))).items()}


def layered(*layers: list[File] | bytes) -> dict[str, tuple[Entry, bytes]]:
    """What is there when these layers lie one over the other."""
    tree = RootTree("image")
    with ExitStack() as stack:
        for layer in layers:
            data = layer if isinstance(layer, bytes) else tar(*layer)
            apply_layer(tree, stack.enter_context(extent(data, "layer")))
        return content(tree)


def texts(found: dict[str, tuple[Entry, bytes]]) -> dict[str, str]:
    """The regular files and links, and what they hold."""
    return {name: data.decode() for name, (entry, data) in found.items() if entry.mode & 0o170000 != 0o040000}


def populate(root: Path, files: dict[str, str]) -> Path:
    """Regular files with modes that do not depend on the umask."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "bin/" in name else 0o644)
    for directory in [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]:
        directory.chmod(0o755)
    return root
