"""What QEMU has said about one ring, and the ring's eventfds.

A ring is set up piece by piece and starts with its kick descriptor; it may be used while it is also enabled. A stop
(GET_VRING_BASE) leaves size, addresses and the call descriptor as they are, for the next start.

Source: QEMU's docs/interop/vhost-user.rst, "Ring states".
"""

from __future__ import annotations

import contextlib
import os

from pyrune.local.vhost_user.memory import GuestMemory
from pyrune.local.vhost_user.message import ProtocolError
from pyrune.local.vhost_user.virtqueue import RingAddresses, Virtqueue

_EVENT = (1).to_bytes(8, "little")


class Ring:
    """One ring; it owns its descriptors. `queue` is there while it runs and is not broken."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.addresses: RingAddresses | None = None
        self.base = 0
        self.enabled = False
        self.queue: Virtqueue | None = None
        self.kick_fd: int | None = None
        self._call_fd: int | None = None
        self._error_fd: int | None = None

    @property
    def active(self) -> Virtqueue | None:
        """The queue, if it may be used now."""
        return self.queue if self.enabled else None

    def start(self, memory: GuestMemory, kick_fd: int) -> None:
        """Start, or change the kick descriptor while it runs. Takes `kick_fd`. Raises BrokenRing, ProtocolError."""
        _close(self.kick_fd)
        self.kick_fd = kick_fd
        if self.addresses is None or not self.size:
            raise ProtocolError(f"ring {self.index} was started before it had a size and addresses")
        if self.queue is None:
            self.queue = Virtqueue(memory, self.size, self.addresses, self.base, self._interrupt)

    def stop(self) -> None:
        """End the ring; `base` is then where the next start goes on. No matter if it does not run."""
        self._keep_place()
        _close(self.kick_fd)
        self.kick_fd = None

    def move(self, memory: GuestMemory) -> None:
        """Use a new memory table. Raises BrokenRing when the ring is not in it."""
        if self.queue is not None and self.addresses is not None:
            self.queue.place(memory, self.addresses)

    def break_down(self) -> None:
        """Use the ring no more until it is started again, and tell QEMU so."""
        self._keep_place()
        _signal(self._error_fd)

    def set_call_fd(self, fd: int | None) -> None:
        """How to interrupt the guest from now on. What it may have missed meanwhile, it hears of now."""
        _close(self._call_fd)
        self._call_fd = fd
        if self.queue is not None:
            self._interrupt()

    def set_error_fd(self, fd: int | None) -> None:
        _close(self._error_fd)
        self._error_fd = fd

    def close(self) -> None:
        self.stop()
        _close(self._call_fd)
        _close(self._error_fd)
        self._call_fd = self._error_fd = None

    def _keep_place(self) -> None:
        if self.queue is not None:
            self.base = self.queue.next_available
            self.queue = None

    def _interrupt(self) -> None:
        _signal(self._call_fd)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


def _signal(eventfd: int | None) -> None:
    if eventfd is not None:
        # A counter that is full has woken its reader already.
        with contextlib.suppress(BlockingIOError):
            os.write(eventfd, _EVENT)


def check_eventfd(fd: int) -> None:
    """Make sure that `fd` is an eventfd, and that using it never blocks. Raises ProtocolError; `fd` stays open."""
    if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
        raise ProtocolError("a ring's notifier is not an eventfd")
    os.set_blocking(fd, False)
