"""One split virtqueue, seen from the device.

A primer (VIRTIO 1.2, 2.7). The driver describes buffers in the *descriptor table*: address, length, flags, and the
number of the next descriptor of the same *chain*. It puts the number of a chain's first descriptor (its *head*) on the
*available ring* and moves that ring's index on. The device uses the chain, puts the head and the number of bytes it
wrote on the *used ring*, moves that index on, and interrupts the driver. Indices count on for ever, modulo 2^16; the
slot is the index modulo the ring's size. Each side may ask the other to be left alone: the driver by a flag in the
available ring (no interrupts), the device by a flag in the used ring (no kicks).

All of it lies in memory that the guest can change at any moment. So every value is read once, and judged after it was
read. Index and flag stores are single 16-bit writes, never bytes. (Rings are little-endian, and so are both
architectures that run enclaves: the native order is the right one.)

Not here: what is in the buffers, and the eventfds: `interrupt` is a call that the owner of the queue provides.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from pyrune.errors import BackendError
from pyrune.local.vhost_user.barrier import full_barrier, order_barrier
from pyrune.local.vhost_user.memory import BadAddress, GuestMemory

# struct vring_desc: addr, len, flags, next (linux/virtio_ring.h).
DESCRIPTOR = struct.Struct("<QIHH")
VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4
VRING_AVAIL_F_NO_INTERRUPT = 1
VRING_USED_F_NO_NOTIFY = 1

# struct vring_avail and vring_used begin with flags and idx, two u16 each; then come the slots.
_FLAGS, _IDX, _SLOTS = 0, 1, 2
_RING_HEADER_BYTES = 4
_AVAIL_SLOT_BYTES = 2
_USED_SLOT_BYTES = 8

# VIRTQUEUE_MAX_SIZE of QEMU.
MAX_QUEUE_SIZE = 1024
# A packet of Linux has at most MAX_SKB_FRAGS (17, at most 45 by configuration) pieces and a header. The limit keeps a
# guest from having us walk 1024 descriptors for each of 1024 chains.
MAX_CHAIN = 64


class BrokenRing(BackendError):
    """A ring that cannot be used any more until the driver sets it up anew."""


class BadChain(Exception):
    """A descriptor chain that cannot be used. The queue can: `complete(head, 0)` gives the chain back."""

    def __init__(self, head: int, problem: str) -> None:
        self.head = head
        super().__init__(problem)


class RingAddresses(NamedTuple):
    """Where the three parts of a ring are, as user addresses."""

    descriptors: int
    used: int
    available: int


class Chain(NamedTuple):
    """A descriptor chain: the number of its first descriptor, and its buffers in order."""

    head: int
    buffers: list[memoryview]


class Virtqueue:
    """A ring that runs. `next_available` is the index of the first chain that has not been completed."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        addresses: RingAddresses,
        next_available: int,
        interrupt: Callable[[], None],
    ) -> None:
        """Raises BrokenRing when the guest's choice of size or place is impossible."""
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise BrokenRing(f"a ring of {size} descriptors is not a power of two up to {MAX_QUEUE_SIZE}")
        self.size = size
        self.next_available = next_available
        self._mask = size - 1
        self._interrupt = interrupt
        self.place(memory, addresses)
        # The driver of a fresh ring has zeroed it; one that goes on after a stop has left its index there.
        self._used_index = self._published = self._used[_IDX]
        self._kicks_wanted = not self._used[_FLAGS] & VRING_USED_F_NO_NOTIFY

    def place(self, memory: GuestMemory, addresses: RingAddresses) -> None:
        """Find the ring in `memory`, at first and whenever the memory table changes. Raises BrokenRing."""
        # 2.7: alignment of the three parts; with it, no 16-bit access can be torn.
        if addresses.descriptors % 16 or addresses.available % 2 or addresses.used % 4:
            raise BrokenRing("a ring is not aligned")
        used_bytes = self.size * _USED_SLOT_BYTES
        try:
            self._descriptors = memory.at_user_address(addresses.descriptors, self.size * DESCRIPTOR.size)
            available = memory.at_user_address(addresses.available, _RING_HEADER_BYTES + self.size * _AVAIL_SLOT_BYTES)
            used = memory.at_user_address(addresses.used, _RING_HEADER_BYTES + used_bytes)
        except BadAddress as exc:
            raise BrokenRing(f"a ring cannot be reached: {exc}") from exc
        self._available = available.cast("H")
        self._used = used[:_RING_HEADER_BYTES].cast("H")
        self._used_slots = used[_RING_HEADER_BYTES:].cast("I")
        self._at_guest_address = memory.at_guest_address

    def pending(self) -> int:
        """How many chains wait. Raises BrokenRing when the driver's index makes no sense."""
        waiting = (self._available[_IDX] - self.next_available) & 0xFFFF
        if waiting > self.size:
            raise BrokenRing(f"the driver's index is {waiting} ahead in a ring of {self.size}")
        # 2.7.13.3: the slots must be read after the index that covers them.
        order_barrier()
        return waiting

    def peek(self, offset: int, *, writable: bool) -> Chain:
        """The chain `offset` places after the first that waits; the caller knows from `pending` that it is there.

        It is not taken off the ring. `writable` is what every buffer has to be: for the device to write, or to read.
        Raises BadChain.
        """
        head = index = self._available[_SLOTS + ((self.next_available + offset) & self._mask)]
        wanted = VRING_DESC_F_WRITE if writable else 0
        buffers: list[memoryview] = []
        for _ in range(min(self.size, MAX_CHAIN)):
            if index >= self.size:
                raise BadChain(head, f"descriptor {index} is not in a table of {self.size}")
            address, length, flags, index = DESCRIPTOR.unpack_from(self._descriptors, index * DESCRIPTOR.size)
            if flags & (VRING_DESC_F_WRITE | VRING_DESC_F_INDIRECT) != wanted:
                raise BadChain(head, f"a descriptor has flags {flags:#x}")
            try:
                buffers.append(self._at_guest_address(address, length))
            except BadAddress as exc:
                raise BadChain(head, str(exc)) from exc
            if not flags & VRING_DESC_F_NEXT:
                return Chain(head, buffers)
        raise BadChain(head, "a chain is too long, or a loop")

    def complete(self, head: int, written: int) -> None:
        """Take the first waiting chain off the ring and give it back, with `written` bytes in it.

        The driver sees it after `publish`. A head that is not in the table cannot be given back and is passed over.
        """
        self.next_available = (self.next_available + 1) & 0xFFFF
        if head >= self.size:
            return
        slot = (self._used_index & self._mask) * 2
        self._used_slots[slot] = head
        self._used_slots[slot + 1] = written
        self._used_index = (self._used_index + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the driver all completed chains; interrupt it unless it asked not to be."""
        if self._published == self._used_index:
            return
        order_barrier()
        self._used[_IDX] = self._published = self._used_index
        # 2.7.7.2: whoever sets the index must read the flag after it, or both sides may wait for each other.
        full_barrier()
        if not self._available[_FLAGS] & VRING_AVAIL_F_NO_INTERRUPT:
            self._interrupt()

    def suppress_kicks(self) -> None:
        """Tell the driver not to kick: we are looking at the ring anyway."""
        if self._kicks_wanted:
            self._kicks_wanted = False
            self._used[_FLAGS] = VRING_USED_F_NO_NOTIFY

    def ask_for_kicks(self) -> None:
        """Ask the driver to kick. What it added just before shows only in a later `pending`, so call that now."""
        if not self._kicks_wanted:
            self._kicks_wanted = True
            self._used[_FLAGS] = 0
            full_barrier()
