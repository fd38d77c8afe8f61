"""Files that are written whole or not at all: beside their place, and renamed when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pyrune.eif.files import CHUNK_BYTES, quoted, reason
from pyrune.errors import EifError


@contextmanager
def whole_file(output_path: str | Path, what: str, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place `output_path` when the block ends, and vanishes if it raises.

    `what` names the kind of file in an EifError, such as "image". The mode is that of any new file unless one is
    given. What replaces another file is on the disk before it does so.
    """
    path = checked_output(output_path, what)
    temporary = path.with_name(f".pyrune-{secrets.token_hex(8)}.tmp")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
        try:
            with os.fdopen(fd, "w+b", buffering=CHUNK_BYTES) as out:
                yield out
                out.flush()
                if mode is not None:
                    os.fchmod(fd, mode)
                if os.path.lexists(path):
                    os.fsync(fd)
            temporary.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise EifError(f"{what} {quoted(os.fspath(path))} cannot be written: {reason(exc)}") from exc


def checked_output(output_path: str | Path, what: str) -> Path:
    """`output_path`, if a file could have it. Raises EifError."""
    path = Path(output_path)
    if not path.name or "\0" in path.name:
        raise EifError(f"{what} {quoted(os.fspath(output_path))} cannot be written: its path is no file name")
    return path
