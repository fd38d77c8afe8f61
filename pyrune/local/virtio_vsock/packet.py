"""The wire format of a virtio socket: 44 bytes of header, then data, in the buffers of one descriptor chain.

Drivers may cut a packet anywhere. Linux before 6.3 puts the header into a buffer of its own, later versions put
both into one. Whatever the cut, a header is copied out of the guest's memory once, and data are not copied here at all.

Source: VIRTIO 1.2, 5.10.6 "Device Operation"; struct virtio_vsock_hdr in linux/virtio_vsock.h.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

HEADER = struct.Struct("<QQIIIHHIII")

# enum virtio_vsock_type.
TYPE_STREAM = 1


class Op(IntEnum):
    """enum virtio_vsock_op."""

    INVALID = 0
    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """enum virtio_vsock_shutdown: what the sender of a SHUTDOWN will not do any more."""

    NONE = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


class BadPacket(Exception):
    """A packet of the guest that has no complete header or no complete data."""


class Header(NamedTuple):
    """struct virtio_vsock_hdr. `op` and `type` are as the sender wrote them, which may be no Op at all."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


def reset_in_answer_to(header: Header) -> Header:
    """The RST for a packet that belongs to no stream."""
    return Header(header.dst_cid, header.src_cid, header.dst_port, header.src_port, 0, header.type, Op.RST, 0, 0, 0)


def parse_packet(buffers: list[memoryview]) -> tuple[Header, list[memoryview]]:
    """Header and data of a packet in the guest's memory. Raises BadPacket."""
    first = buffers[0]
    if len(first) >= HEADER.size:
        header = Header._make(HEADER.unpack_from(first))
    else:
        raw = _gather(buffers, HEADER.size)
        if len(raw) < HEADER.size:
            raise BadPacket(f"a packet has {len(raw)} bytes, fewer than its header")
        header = Header._make(HEADER.unpack(raw))
    if not header.length:
        return header, []
    data = cut(data_room(buffers), header.length)
    if sum(map(len, data)) < header.length:
        raise BadPacket(f"a packet announces {header.length} bytes and has fewer")
    return header, data


def write_header(buffers: list[memoryview], header: Header) -> None:
    """Store a header at the beginning of buffers that have room for it."""
    if len(buffers[0]) >= HEADER.size:
        HEADER.pack_into(buffers[0], 0, *header)
        return
    raw = HEADER.pack(*header)
    for buffer in cut(buffers, HEADER.size):
        buffer[:] = raw[: len(buffer)]
        raw = raw[len(buffer) :]


def data_room(buffers: list[memoryview]) -> list[memoryview]:
    """What comes after the header, without empty pieces; nothing where there is not even room for a header."""
    left = HEADER.size
    room = []
    for buffer in buffers:
        if left < len(buffer):
            room.append(buffer[left:] if left else buffer)
            left = 0
        else:
            left -= len(buffer)
    return room


def cut(buffers: list[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of `buffers`, or all of them where they are shorter."""
    pieces = []
    for buffer in buffers:
        if length <= len(buffer):
            pieces.append(buffer if length == len(buffer) else buffer[:length])
            break
        pieces.append(buffer)
        length -= len(buffer)
    return pieces


def _gather(buffers: list[memoryview], length: int) -> bytes:
    return b"".join(cut(buffers, length))
