"""The virtio socket device: the guest's packets off the tx queue, ours onto the rx queue.

A round (`serve`) moves a bounded number of packets, tx first. While there is work the guest is asked not to kick;
before we go to sleep it is asked to kick again, and the queue is looked at once more, as a kick may have been left out
just before. The rx queue needs kicks only while packets wait for buffers.

Source: VIRTIO 1.2, 5.10.2 "Virtqueues", 5.10.4 "Device configuration layout", 2.7.13 "Supplying Buffers to The Device".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from pyrune.local.vhost_user.virtqueue import BadChain, Chain, Virtqueue
from pyrune.local.virtio_vsock.connection import Connection
from pyrune.local.virtio_vsock.muxer import Muxer
from pyrune.local.virtio_vsock.packet import (
    HEADER,
    BadPacket,
    cut,
    data_room,
    parse_packet,
    write_header,
)

# struct virtio_vsock_config: guest_cid.
_CONFIG = struct.Struct("<Q")
# Packets of each queue in one round; then other descriptors get a look.
_ROUND = 256
# Buffers that one stream may fill before the next has its turn: 256 KiB with Linux' buffers of nearly 4 KiB.
_TURN = 64


# IOV_MAX of limits.h: as many pieces as one readv takes.
_IOV_MAX = 1024


class Slot(NamedTuple):
    """A chain of the rx queue: all of its buffers, and `size` bytes of room for data in them."""

    head: int
    buffers: list[memoryview]
    room: list[memoryview]
    size: int


class VsockDevice:
    """See the module. Queue 0 is rx and queue 1 is tx, as the guest sees them; queue 2 is QEMU's own."""

    queue_count = 2

    def __init__(self, guest_cid: int, muxer: Muxer, warn: Callable[[str], None]) -> None:
        self.config = _CONFIG.pack(guest_cid)
        self._muxer = muxer
        self._warn = warn

    def reset(self) -> None:
        self._muxer.reset()

    def serve(self, queues: list[Virtqueue]) -> bool:
        """See `pyrune.local.vhost_user.session.Device`."""
        rx, tx = queues
        self._muxer.guest_present = True
        self._drain_tx(tx)
        self._fill_rx(rx)
        return self._has_more(rx, tx)

    def _has_more(self, rx: Virtqueue, tx: Virtqueue) -> bool:
        """Whether to go on at once. If not, the queues whose state holds us up are asked for kicks."""
        if self._muxer.has_output:
            if not rx.pending():
                rx.ask_for_kicks()
            if rx.pending():
                return True
        else:
            rx.suppress_kicks()
        if self._muxer.backlogged:
            return False
        if not tx.pending():
            tx.ask_for_kicks()
        return tx.pending() > 0

    def _drain_tx(self, tx: Virtqueue) -> None:
        waiting = min(tx.pending(), _ROUND)
        if not waiting:
            return
        tx.suppress_kicks()
        for _ in range(waiting):
            if self._muxer.backlogged:
                break
            try:
                head, buffers = tx.peek(0, writable=False)
                header, data = parse_packet(buffers)
            except BadChain as exc:
                self._warn(f"a packet of the guest was dropped: {exc}")
                tx.complete(exc.head, 0)
                continue
            except BadPacket as exc:
                self._warn(f"a packet of the guest was dropped: {exc}")
            else:
                self._muxer.deliver(header, data)
            tx.complete(head, 0)
        tx.publish()

    def _fill_rx(self, rx: Virtqueue) -> None:
        budget = _ROUND
        while budget > 0 and self._muxer.has_output:
            waiting = rx.pending()
            if not waiting:
                break
            if self._muxer.has_control:
                budget -= self._send_control(rx)
            elif (connection := self._muxer.next_reader()) is not None:
                budget -= self._send_data(rx, connection, min(waiting, _TURN))
                self._muxer.settle(connection)
        rx.publish()

    def _send_control(self, rx: Virtqueue) -> int:
        """Put one packet without data into the first chain, if that will do. How many chains are gone: 1."""
        head, buffers = self._peek(rx, 0)
        if sum(map(len, buffers)) < HEADER.size:
            self._give_back(rx, head, "it has no room for a header")
        else:
            write_header(buffers, self._muxer.next_control())
            rx.complete(head, HEADER.size)
        return 1

    def _send_data(self, rx: Virtqueue, connection: Connection, waiting: int) -> int:
        """One turn of a stream: one read into as many chains as it takes. How many chains are gone, at least 1."""
        slots = self._slots(rx, waiting, connection.credit)
        if not slots:
            return 1
        left = connection.read_into([piece for slot in slots for piece in slot.room])
        used = 0
        for head, buffers, _, size in slots:
            if not left:
                break
            length = min(left, size)
            write_header(buffers, connection.data_header(length))
            rx.complete(head, HEADER.size + length)
            left -= length
            used += 1
        rx.publish()
        return max(1, used)

    def _slots(self, rx: Virtqueue, waiting: int, credit: int) -> list[Slot]:
        """Chains from the first on, with room for at most `credit` bytes together.

        A chain that will not do is given back, but only as the first: chains go back in their order.
        """
        slots: list[Slot] = []
        pieces = 0
        for offset in range(waiting):
            head, buffers = self._peek(rx, offset)
            room = cut(data_room(buffers), credit)
            size = sum(map(len, room))
            pieces += len(room)
            if not size or pieces > _IOV_MAX:
                if not slots:
                    self._give_back(rx, head, "it has no room for data")
                break
            slots.append(Slot(head, buffers, room, size))
            credit -= size
            if not credit:
                break
        return slots

    def _peek(self, rx: Virtqueue, offset: int) -> Chain:
        """A chain of the rx queue; one that makes no sense has no buffers, and so no room for anything."""
        try:
            return rx.peek(offset, writable=True)
        except BadChain as exc:
            return Chain(exc.head, [])

    def _give_back(self, rx: Virtqueue, head: int, problem: str) -> None:
        self._warn(f"a buffer of the guest was given back: {problem}")
        rx.complete(head, 0)
