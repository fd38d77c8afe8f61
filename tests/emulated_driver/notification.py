"""One intercepted system call, and the ways to answer it.

The caller stands still until it is answered. It may be killed meanwhile; then nothing about it may be believed any
more, since another task may have its number: `require_waiting` is called after looking at the caller, before acting.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.emulated_driver.kernel import (
    ADD_FD,
    ADDFD_SEND,
    NATIVE,
    NOTIF_ADDFD,
    NOTIF_ID_VALID,
    NOTIF_RECV,
    NOTIF_SEND,
    NOTIFICATION,
    RESPONSE,
    RESPONSE_CONTINUE,
)

_NAMES = {number: name for name, number in NATIVE.numbers.items()}


class CallerGone(Exception):
    """The caller was killed while its call was looked at."""


@dataclass(frozen=True, slots=True)
class Value:
    """The call returns this number."""

    number: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """The call fails with this errno, which may be one of the driver's own above 255."""

    number: int


@dataclass(frozen=True, slots=True)
class NewDescriptor:
    """The call returns a new descriptor of the caller's: a copy of `fd`, which the answer closes."""

    fd: int
    close_on_exec: bool


@dataclass(frozen=True, slots=True)
class LetThrough:
    """The kernel carries the call out as if nothing had happened."""


Answer = Value | Failure | NewDescriptor | LetThrough
LET_THROUGH = LetThrough()


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that waits. `task` is the calling thread."""

    listener: int
    id: int
    task: int
    name: str
    arguments: tuple[int, ...]

    @classmethod
    def receive(cls, listener: int) -> Notification | None:
        """The next call on a listener that is ready; None when its caller has just been killed."""
        buffer = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, NOTIF_RECV, buffer)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        identity, task, _flags, number, _audit, _pointer, *arguments = NOTIFICATION.unpack(buffer)
        return cls(listener, identity, task, _NAMES[number], tuple(arguments))

    @property
    def is_waiting(self) -> bool:
        try:
            fcntl.ioctl(self.listener, NOTIF_ID_VALID, struct.pack("=Q", self.id))
        except OSError:
            return False
        return True

    def require_waiting(self) -> None:
        if not self.is_waiting:
            raise CallerGone

    def answer(self, answer: Answer) -> int:
        """Let the caller go on. Returns what its call returned; raises CallerGone."""
        match answer:
            case Value(number):
                return self._respond(number, 0, 0)
            case Failure(number):
                return self._respond(-1, -number, 0)
            case LetThrough():
                return self._respond(0, 0, RESPONSE_CONTINUE)
            case NewDescriptor(fd, close_on_exec):
                try:
                    return self._give(fd, close_on_exec)
                finally:
                    os.close(fd)

    def _respond(self, value: int, error: int, flags: int) -> int:
        with self._caller_may_be_gone():
            fcntl.ioctl(self.listener, NOTIF_SEND, RESPONSE.pack(self.id, value, error, flags))
        return value

    def _give(self, fd: int, close_on_exec: bool) -> int:
        order = ADD_FD.pack(self.id, ADDFD_SEND, fd, 0, os.O_CLOEXEC if close_on_exec else 0)
        try:
            with self._caller_may_be_gone():
                return int(fcntl.ioctl(self.listener, NOTIF_ADDFD, bytearray(order)))
        except OSError as exc:
            # The caller's table of descriptors is full.
            return self._respond(-1, -(exc.errno or errno.EMFILE), 0)

    @contextlib.contextmanager
    def _caller_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EINPROGRESS, errno.ESRCH):
                raise CallerGone from exc
            raise
