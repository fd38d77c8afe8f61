"""Regular files, opened once and read with positioned reads; and why that failed, in this project's words.

Callers of a runtime, containerd for one, look for the kernel's own words ("not found", "permission denied", ...) in
its errors and draw conclusions about the runtime itself or the container's process. A file that an operator named
must not cause those, so no text of strerror gets into a message here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from pyrune.errors import EifError, printable

CHUNK_BYTES: Final = 1 << 20

_REASONS: Final = {
    errno.ENOENT: "nothing is there",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.EISDIR: "it is a folder",
    errno.EACCES: "this user may not do that",
    errno.EPERM: "this user may not do that",
    errno.ELOOP: "its symbolic links lead in a circle, or nowhere they may",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ENXIO: "it is a socket or a device",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an error",
    errno.EMFILE: "this process has too many files open",
    errno.ENFILE: "this machine has too many files open",
}

_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


def reason(exc: OSError) -> str:
    """Why a system call failed, in a few words."""
    number = exc.errno or 0
    return _REASONS.get(number) or f"the system says {errno.errorcode.get(number, number)}"


def kind_of(mode: int) -> str:
    """What a file that is not regular is, from its st_mode."""
    return next((text for test, text in _KINDS if test(mode)), "something unknown")


def open_regular(path: str | bytes, label: str, *, dir_fd: int | None = None, follow: bool = True) -> tuple[int, int]:
    """A descriptor of the regular file at `path`, and its size in bytes. Never blocks.

    `label` names the file in an EifError, such as "image /x/y.eif"; it must be printable.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, dir_fd=dir_fd)
    except OSError as exc:
        raise EifError(f"{label} does not open: {reason(exc)}") from exc
    except ValueError as exc:
        raise EifError(f"{label} does not open: its path is no file name") from exc
    try:
        return fd, regular_size(fd, label)
    except EifError:
        os.close(fd)
        raise


def regular_size(fd: int, label: str) -> int:
    """The size in bytes of the regular file behind `fd`. Raises EifError if it is no regular file."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise EifError(f"{label} does not open: it is no regular file but {kind_of(status.st_mode)}")
    return status.st_size


def chunks(fd: int, start: int, end: int, buffer: bytearray, label: str) -> Iterator[memoryview]:
    """What a file holds from `start` up to `end`, piece by piece in `buffer`, which the next piece overwrites.

    Does not move the descriptor's position. Raises EifError if the file ends before `end`.
    """
    view = memoryview(buffer)
    while start < end:
        try:
            got = os.preadv(fd, [view[: end - start]], start)
        except OSError as exc:
            raise EifError(f"{label} cannot be read: {reason(exc)}", offset=start) from exc
        if not got:
            raise EifError(f"{label}: it became shorter while it was read", offset=start)
        yield view[:got]
        start += got


def read_regular(path: str, label: str, limit_bytes: int) -> bytes:
    """All of the regular file at `path`. Raises EifError if it has more than `limit_bytes`."""
    fd, size_bytes = open_regular(path, label)
    try:
        if size_bytes > limit_bytes:
            raise EifError(f"{label} has {size_bytes} bytes, more than {limit_bytes}")
        return b"".join(bytes(piece) for piece in chunks(fd, 0, size_bytes, bytearray(size_bytes), label))
    finally:
        os.close(fd)


def quoted(path: str | bytes) -> str:
    """A path, fit for a message."""
    return printable(os.fsdecode(path))
