"""The conversation with QEMU: every request of vhost-user, from the first question about features to the end.

A `Session` owns the memory table and the rings. It is itself one descriptor to poll: `dispatch` then reads one message
from QEMU, if there is one, and takes kicks off the eventfds. A kick only says that a ring is worth a look, so
`dispatch` does no more about it; `serve`, called before every poll, has the device look. That also covers a ring that
was filled before it started.

Source: QEMU's docs/interop/vhost-user.rst, "Communication", and what QEMU 7.2 to 11 send (hw/virtio/vhost-user.c).
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from enum import IntFlag
from typing import Protocol

from pyrune.local.vhost_user.memory import GuestMemory, map_memory_table
from pyrune.local.vhost_user.message import (
    CONFIG,
    U64,
    VRING_ADDRESSES,
    VRING_STATE,
    Channel,
    Message,
    ProtocolError,
    Request,
    request_name,
)
from pyrune.local.vhost_user.ring import Ring, check_eventfd
from pyrune.local.vhost_user.virtqueue import BrokenRing, RingAddresses, Virtqueue


class Feature(IntFlag):
    """Feature bits that every device of ours offers; it has none of its own."""

    PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
    VERSION_1 = 1 << 32  # VIRTIO_F_VERSION_1


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_ bits: how the conversation itself may go."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


# Plain numbers, as the complement of an IntFlag has no bits but its members'.
FEATURES = int(Feature.PROTOCOL_FEATURES | Feature.VERSION_1)
PROTOCOL_FEATURES = int(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG)

# A ring's descriptor comes with a u64: the ring's number in the low byte, and this bit when there is no descriptor.
VRING_INDEX_MASK = 0xFF
VRING_NOFD_MASK = 1 << 8

# Enough for a device to work off full rings, and not for a guest that goes on filling them to keep us here.
_LAST_ROUNDS = 16

_DONE = U64.pack(0)
_REFUSED = U64.pack(1)


class Device(Protocol):
    """What a session serves."""

    @property
    def config(self) -> bytes:
        """The device's configuration space, read-only."""

    @property
    def queue_count(self) -> int:
        """How many rings are ours."""

    def serve(self, queues: list[Virtqueue]) -> bool:
        """Move what can be moved over all rings, and no more than a bounded amount.

        True when there is more to do at once; otherwise a kick, or an event of the device's own, will tell.
        Raises BrokenRing.
        """

    def reset(self) -> None:
        """A ring has stopped: nothing that the guest's driver knew before holds any more."""


class Session:
    """See the module. `rings` are in the order of the device's queues."""

    def __init__(self, sock: socket.socket, device: Device, warn: Callable[[str], None]) -> None:
        self.rings = [Ring(index) for index in range(device.queue_count)]
        self._channel = Channel(sock)
        self._device = device
        self._warn = warn
        self._memory = GuestMemory([])
        self._speaks_protocol_features = False
        self._epoll = select.epoll()
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        self._requests: dict[int, Callable[[Message], bytes | None]] = {
            Request.GET_FEATURES: lambda _: U64.pack(FEATURES),
            Request.SET_FEATURES: self._set_features,
            Request.GET_PROTOCOL_FEATURES: lambda _: U64.pack(PROTOCOL_FEATURES),
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.SET_OWNER: lambda _: None,
            # Given up by the protocol: to be accepted, and not to be obeyed.
            Request.RESET_OWNER: lambda _: None,
            Request.GET_QUEUE_NUM: lambda _: U64.pack(len(self.rings)),
            Request.GET_CONFIG: self._get_config,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
        }

    def fileno(self) -> int:
        return self._epoll.fileno()

    def dispatch(self) -> bool:
        """Take what is there. False when QEMU has closed the socket. Raises ProtocolError."""
        for fd, _ in self._epoll.poll(0):
            if fd == self._channel.fileno():
                if not self._take_message():
                    return False
            elif any(fd == ring.kick_fd for ring in self.rings):
                _take_kick(fd)
        return True

    def serve(self) -> bool:
        """Have the device look at its rings, if all of them run. True when it should be called again at once."""
        queues = [ring.active for ring in self.rings if ring.active is not None]
        if len(queues) < len(self.rings):
            return False
        try:
            return self._device.serve(queues)
        except BrokenRing as exc:
            self._break_rings(exc)
            return False

    def finish(self) -> None:
        """The rings are about to stop, or QEMU is gone: what the guest put on them before that still counts.

        A guest writes its last words and is reset at once, so kick and stop may well arrive together.
        """
        for _ in range(_LAST_ROUNDS):
            if not self.serve():
                return

    def close(self) -> None:
        """Close all but the socket, which is the caller's."""
        for ring in self.rings:
            ring.close()
        self._memory = GuestMemory([])
        self._epoll.close()

    def _break_rings(self, reason: BrokenRing) -> None:
        """A ring makes no sense. A driver sets up its rings together, so all of them wait until it does that again."""
        self._warn(f"the guest has broken its rings: {reason}")
        for ring in self.rings:
            ring.break_down()
        self._device.reset()

    def _take_message(self) -> bool:
        message = self._channel.receive()
        if message is None:
            return False
        try:
            answer = self._answer(message)
        finally:
            message.close()
        if answer is None and message.needs_reply:
            answer = _DONE
        if answer is not None:
            self._channel.reply(message.request, answer)
        return True

    def _answer(self, message: Message) -> bytes | None:
        """Do what is asked; None when there is nothing to say."""
        obey = self._requests.get(message.request)
        if obey is not None:
            return obey(message)
        self._warn(f"vhost-user: {request_name(message.request)} is not supported and was ignored")
        return _REFUSED if message.needs_reply else None

    def _set_features(self, message: Message) -> None:
        """QEMU passes on what the guest chose; bits that we never offered are between those two."""
        (features,) = message.unpack(U64)
        self._speaks_protocol_features = bool(features & Feature.PROTOCOL_FEATURES)

    def _set_protocol_features(self, message: Message) -> None:
        (features,) = message.unpack(U64)
        if features & ~PROTOCOL_FEATURES:
            raise ProtocolError(f"QEMU chose protocol features {features:#x} out of {PROTOCOL_FEATURES:#x}")

    def _get_config(self, message: Message) -> bytes:
        """The answer has the request's form; an empty one means an error."""
        if len(message.payload) < CONFIG.size:
            raise ProtocolError(f"GET_CONFIG came with {len(message.payload)} bytes")
        offset, size, flags = CONFIG.unpack_from(message.payload)
        config = self._device.config
        if offset + size > len(config):
            return b""
        return CONFIG.pack(offset, size, flags) + config[offset : offset + size]

    def _set_mem_table(self, message: Message) -> None:
        self._memory = map_memory_table(message)
        for ring in self.rings:
            try:
                ring.move(self._memory)
            except BrokenRing as exc:
                self._break_rings(exc)

    def _set_vring_num(self, message: Message) -> None:
        index, size = message.unpack(VRING_STATE)
        self._ring(index).size = size

    def _set_vring_addr(self, message: Message) -> None:
        index, _, descriptors, used, available, _ = message.unpack(VRING_ADDRESSES)
        self._ring(index).addresses = RingAddresses(descriptors, used, available)

    def _set_vring_base(self, message: Message) -> None:
        index, base = message.unpack(VRING_STATE)
        self._ring(index).base = base & 0xFFFF

    def _get_vring_base(self, message: Message) -> bytes:
        """Also the request to stop the ring."""
        index, _ = message.unpack(VRING_STATE)
        ring = self._ring(index)
        self.finish()
        self._forget_kick(ring)
        ring.stop()
        self._device.reset()
        return VRING_STATE.pack(index, ring.base)

    def _set_vring_kick(self, message: Message) -> None:
        """Also the request to start the ring."""
        ring, fd = self._ring_and_fd(message)
        if fd is None:
            raise ProtocolError(f"ring {ring.index} was started without a descriptor for its kicks")
        self._forget_kick(ring)
        if not self._speaks_protocol_features:
            # Without that feature there is no SET_VRING_ENABLE, and a started ring counts as enabled.
            ring.enabled = True
        try:
            ring.start(self._memory, fd)
        except BrokenRing as exc:
            self._break_rings(exc)
        self._epoll.register(fd, select.EPOLLIN)

    def _set_vring_call(self, message: Message) -> None:
        ring, fd = self._ring_and_fd(message)
        ring.set_call_fd(fd)

    def _set_vring_err(self, message: Message) -> None:
        ring, fd = self._ring_and_fd(message)
        ring.set_error_fd(fd)

    def _set_vring_enable(self, message: Message) -> None:
        index, enabled = message.unpack(VRING_STATE)
        ring = self._ring(index)
        if not enabled:
            self.finish()
            self._device.reset()
        ring.enabled = bool(enabled)

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise ProtocolError(f"QEMU speaks of ring {index}, but there are only {len(self.rings)}")
        return self.rings[index]

    def _ring_and_fd(self, message: Message) -> tuple[Ring, int | None]:
        """The ring of a message, and the message's eventfd, now the caller's."""
        (value,) = message.unpack(U64)
        ring = self._ring(value & VRING_INDEX_MASK)
        if value & VRING_NOFD_MASK:
            return ring, None
        if message.fds:
            check_eventfd(message.fds[0])
        return ring, message.take_fd()

    def _forget_kick(self, ring: Ring) -> None:
        if ring.kick_fd is not None:
            self._epoll.unregister(ring.kick_fd)


def _take_kick(fd: int) -> None:
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        pass
