"""The other side of vhost-user: what QEMU says to a device, and what a guest's driver does with its rings.

It is the real thing in small: a memfd as guest memory in two regions, eventfds, split virtqueues. It does as it is
told, nonsense included.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pyrune.local.vhost_user.barrier import full_barrier
from pyrune.local.vhost_user.message import (
    HEADER,
    MEMORY_REGION,
    MEMORY_TABLE,
    U64,
    VRING_ADDRESSES,
    VRING_STATE,
    MessageFlag,
    Request,
)
from pyrune.local.vhost_user.session import FEATURES, PROTOCOL_FEATURES
from pyrune.local.vhost_user.virtqueue import (
    DESCRIPTOR,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
)

TIMEOUT_S = 20.0

MIB = 1 << 20
# Rings are in the first region and buffers in the second; the two addresses of each have nothing in common.
RINGS_GUEST, RINGS_USER, RINGS_SIZE = 0x0, 0x7F0000000000, MIB
BUFFERS_GUEST, BUFFERS_USER = 0x4000_0000, 0x7E0000000000


class Piece(NamedTuple):
    """One descriptor to be: where, how long, and whether the device may write."""

    address: int
    length: int
    writable: bool = False


class Memory:
    """Guest memory: a memfd, mapped here as well."""

    def __init__(self, buffers_size: int = 8 * MIB) -> None:
        import mmap

        self.size = RINGS_SIZE + buffers_size
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self.bytes = memoryview(mmap.mmap(self.fd, self.size))

    def regions(self) -> list[tuple[int, int, int, int]]:
        """guest address, size, user address, offset; as MEMORY_REGION has them."""
        return [
            (RINGS_GUEST, RINGS_SIZE, RINGS_USER, 0),
            (BUFFERS_GUEST, self.size - RINGS_SIZE, BUFFERS_USER, RINGS_SIZE),
        ]

    def table(self) -> bytes:
        regions = self.regions()
        return MEMORY_TABLE.pack(len(regions), 0) + b"".join(MEMORY_REGION.pack(*region) for region in regions)

    def at(self, guest_address: int, length: int) -> memoryview:
        offset = guest_address if guest_address < RINGS_SIZE else guest_address - BUFFERS_GUEST + RINGS_SIZE
        return self.bytes[offset : offset + length]

    def close(self) -> None:
        os.close(self.fd)


class DriverQueue:
    """A ring as its driver sees it, at `start` in the first region (and 64 KiB from there on)."""

    def __init__(self, memory: Memory, start: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.start = start
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.error_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.descriptors = memory.at(start, 16 * size)
        self.available = memory.at(start + 0x8000, 4 + 2 * size).cast("H")
        self.used = memory.at(start + 0xC000, 4 + 8 * size).cast("I")
        self.used_index = memory.at(start + 0xC000, 4).cast("H")
        self.free = list(range(size))
        self.chains: dict[int, list[int]] = {}
        self.seen = 0

    def addresses(self) -> tuple[int, int, int]:
        """descriptors, used, available; as VRING_ADDRESSES has them."""
        return RINGS_USER + self.start, RINGS_USER + self.start + 0xC000, RINGS_USER + self.start + 0x8000

    def describe(self, index: int, piece: Piece, following: int | None) -> None:
        flags = (VRING_DESC_F_WRITE if piece.writable else 0) | (VRING_DESC_F_NEXT if following is not None else 0)
        DESCRIPTOR.pack_into(self.descriptors, 16 * index, piece.address, piece.length, flags, following or 0)

    def add(self, pieces: Sequence[Piece]) -> int:
        """Make a chain available; its head. There must be enough free descriptors."""
        indices = [self.free.pop() for _ in pieces]
        for place, piece in enumerate(pieces):
            self.describe(indices[place], piece, indices[place + 1] if place + 1 < len(indices) else None)
        self.chains[indices[0]] = indices
        self.offer(indices[0])
        return indices[0]

    def offer(self, head: int) -> None:
        """Put a head on the available ring, whatever it is."""
        index = self.available[1]
        self.available[2 + index % self.size] = head
        full_barrier()
        self.available[1] = (index + 1) & 0xFFFF

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def completed(self) -> list[tuple[int, int]]:
        """Heads that came back, with the bytes written; their descriptors are free again."""
        done = []
        while self.seen != self.used_index[1]:
            slot = 1 + 2 * (self.seen % self.size)
            head, written = self.used[slot], self.used[slot + 1]
            done.append((head, written))
            self.free.extend(self.chains.pop(head, ()))
            self.seen = (self.seen + 1) & 0xFFFF
        return done

    def wait(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Wait for an interrupt; False when none came."""
        if not select.select([self.call_fd], [], [], timeout_s)[0]:
            return False
        os.eventfd_read(self.call_fd)
        return True

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)


class FrontEnd:
    """QEMU's end of the socket."""

    def __init__(self, sock: socket.socket, memory: Memory, queues: Sequence[DriverQueue]) -> None:
        sock.settimeout(TIMEOUT_S)
        self.sock = sock
        self.memory = memory
        self.queues = queues

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        flags = MessageFlag.VERSION | (MessageFlag.NEED_REPLY if need_reply else 0)
        socket.send_fds(self.sock, [HEADER.pack(request, flags, len(payload)) + payload], list(fds))

    def answer(self, request: int) -> bytes:
        """The payload of the answer, which must be one to `request`."""
        got, flags, size = HEADER.unpack(self._read(HEADER.size))
        assert (got, flags) == (request, MessageFlag.VERSION | MessageFlag.REPLY)
        return self._read(size)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """A request that has an answer of its own."""
        self.send(request, payload, fds)
        return self.answer(request)

    def order(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A request that is only acknowledged; what with."""
        self.send(request, payload, fds, need_reply=True)
        return int(U64.unpack(self.answer(request))[0])

    def ask_u64(self, request: int) -> int:
        return int(U64.unpack(self.ask(request))[0])

    def negotiate(self) -> None:
        """What QEMU 7.2 says when its device is made."""
        assert self.ask_u64(Request.GET_FEATURES) == FEATURES
        assert self.ask_u64(Request.GET_PROTOCOL_FEATURES) == PROTOCOL_FEATURES
        self.send(Request.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES))
        assert self.ask_u64(Request.GET_QUEUE_NUM) == len(self.queues)
        self.send(Request.SET_OWNER)

    def share_memory(self) -> None:
        regions = len(self.memory.regions())
        assert self.order(Request.SET_MEM_TABLE, self.memory.table(), [self.memory.fd] * regions) == 0

    def start_rings(self) -> None:
        """What QEMU 7.2 says when the guest's driver is ready."""
        self.send(Request.SET_FEATURES, U64.pack(FEATURES))
        self.share_memory()
        for index in range(len(self.queues)):
            self.start_ring(index)
            self.send(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))
        self.ask_u64(Request.GET_FEATURES)

    def start_ring(self, index: int) -> None:
        queue = self.queues[index]
        self.send(Request.SET_VRING_NUM, VRING_STATE.pack(index, queue.size))
        self.send(Request.SET_VRING_BASE, VRING_STATE.pack(index, 0))
        self.send(Request.SET_VRING_ADDR, VRING_ADDRESSES.pack(index, 0, *queue.addresses(), 0))
        self.send(Request.SET_VRING_ERR, U64.pack(index), [queue.error_fd])
        self.send(Request.SET_VRING_KICK, U64.pack(index), [queue.kick_fd])
        self.send(Request.SET_VRING_CALL, U64.pack(index), [queue.call_fd])

    def stop_ring(self, index: int) -> int:
        """Where the device would go on."""
        got, base = VRING_STATE.unpack(self.ask(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0)))
        assert got == index
        return int(base)

    def close(self) -> None:
        self.sock.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise ConnectionError("the device has closed the socket")
            data += piece
        return data


def unpack_descriptor(raw: bytes) -> tuple[int, ...]:
    return struct.unpack("<QIHH", raw)
