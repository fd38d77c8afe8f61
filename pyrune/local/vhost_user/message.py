"""Messages of vhost-user: a header, a payload, and file descriptors that travel beside them.

    request: u32 | flags: u32 | payload size: u32 | payload

All little-endian where it matters here (the protocol says native byte order, and both sides are one machine). Most
requests have no answer; those that have one are answered with the same request number. A request that carries
NEED_REPLY and has no answer of its own is acknowledged with a u64: zero for success.

Not here: what a request means. Source: QEMU's docs/interop/vhost-user.rst, "Message Specification".
"""

from __future__ import annotations

import array
import os
import socket
import struct
from enum import IntEnum, IntFlag

from pyrune.errors import BackendError

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
# "A vring state description": index, num.
VRING_STATE = struct.Struct("<II")
# "A vring address description": index, flags, descriptor table, used ring, available ring, log.
VRING_ADDRESSES = struct.Struct("<IIQQQQ")
# "Virtio device config space": offset, size, flags; the contents follow.
CONFIG = struct.Struct("<III")
# "Memory regions description": number of regions, padding; then so many regions.
MEMORY_TABLE = struct.Struct("<II")
# guest address, size, user address, offset in the file.
MEMORY_REGION = struct.Struct("<QQQQ")

# VHOST_MEMORY_BASELINE_NREGIONS: as many regions, and thus descriptors, as one message may have.
MAX_FDS = 8
# No message of the features we offer is longer than a memory table or a 256-byte configuration space.
MAX_PAYLOAD = 1024
# QEMU writes a message in one piece. A piece that does not follow soon will never come.
MESSAGE_TIMEOUT_S = 5.0

_FD_SPACE = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)


class Request(IntEnum):
    """Front-end message types that a device with our features may get, by their names without VHOST_USER_."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


class MessageFlag(IntFlag):
    """The header's flags; the two lowest bits are the version."""

    VERSION = 0x1
    VERSION_MASK = 0x3
    REPLY = 0x4
    NEED_REPLY = 0x8


class ProtocolError(BackendError):
    """QEMU sent what vhost-user does not allow; the device has to end."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"vhost-user: {problem}")


def request_name(request: int) -> str:
    """A name for messages, also of requests that we do not know."""
    return Request(request).name if request in Request.__members__.values() else f"request {request}"


class Message:
    """One request. It owns `fds` until `take_fd` gives one away or `close` closes the rest."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & MessageFlag.NEED_REPLY)

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The whole payload as `layout`. Raises ProtocolError when it has another length."""
        if len(self.payload) != layout.size:
            raise ProtocolError(
                f"{request_name(self.request)} came with {len(self.payload)} bytes instead of {layout.size}"
            )
        return layout.unpack(self.payload)

    def take_fd(self) -> int:
        """The one descriptor of this message, now the caller's. Raises ProtocolError when there is not just one."""
        if len(self.fds) != 1:
            raise ProtocolError(f"{request_name(self.request)} came with {len(self.fds)} descriptors instead of 1")
        return self.fds.pop()

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """The unix socket to QEMU. It blocks, but never for longer than MESSAGE_TIMEOUT_S."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(MESSAGE_TIMEOUT_S)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> Message | None:
        """The next message, which the caller closes; None when QEMU has closed the socket. Raises ProtocolError."""
        fds: list[int] = []
        try:
            header = self._read(HEADER.size, fds)
            if not header:
                return None
            if len(header) < HEADER.size:
                raise ProtocolError("the socket was closed in the middle of a header")
            request, flags, size = HEADER.unpack(header)
            _check_header(request, flags, size)
            payload = self._read(size, fds)
            if len(payload) < size:
                raise ProtocolError(f"the socket was closed in the middle of {request_name(request)}")
            message, fds = Message(request, flags, payload, fds), []
            return message
        finally:
            for fd in fds:
                os.close(fd)

    def reply(self, request: int, payload: bytes) -> None:
        """Answer a request. A QEMU that is gone gets no answer; the next `receive` tells."""
        flags = MessageFlag.VERSION | MessageFlag.REPLY
        try:
            self._sock.sendall(HEADER.pack(request, flags, len(payload)) + payload)
        except TimeoutError as exc:
            raise ProtocolError(f"the answer to {request_name(request)} is not taken") from exc
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _read(self, size: int, fds: list[int]) -> bytes:
        """`size` bytes, fewer only at the end of the stream; descriptors that come along are added to `fds`."""
        data = b""
        while len(data) < size:
            try:
                piece, ancillary, flags, _ = self._sock.recvmsg(size - len(data), _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError as exc:
                raise ProtocolError("a message was begun and not finished") from exc
            except ConnectionResetError:
                break
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(content[: len(content) - len(content) % received.itemsize])
                    fds.extend(received)
            if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                raise ProtocolError(f"a message came with more than {MAX_FDS} descriptors")
            if not piece:
                break
            data += piece
        return data


def _check_header(request: int, flags: int, size: int) -> None:
    if flags & MessageFlag.VERSION_MASK != MessageFlag.VERSION:
        raise ProtocolError(f"{request_name(request)} has flags {flags:#x}, which is not version 1")
    if flags & MessageFlag.REPLY:
        raise ProtocolError(f"{request_name(request)} came as an answer, but nothing was asked")
    if size > MAX_PAYLOAD:
        raise ProtocolError(f"{request_name(request)} announces {size} bytes, more than {MAX_PAYLOAD}")
