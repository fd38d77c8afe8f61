"""One stream between the guest and a host program's unix socket.

A primer: the life of a stream.

    DIALLING     the guest sent REQUEST; the host program's queue of callers is full, so we try again soon
    REQUESTED    a host program called; REQUEST goes to the guest, whose RESPONSE is awaited
    ESTABLISHED  bytes flow
    DRAINING     the guest left; bytes that it sent before still go to the host program
    CLOSED       over; if `reset_owed`, the guest has yet to hear of it by RST

*From guest to host.* Bytes go straight from the guest's memory into the unix socket. What the socket does not take
waits in the *outbox*. The guest may have at most `buf_alloc` bytes on the way, and `fwd_cnt` moves on only when the
unix socket took the bytes: so a host program that stalls stalls the guest, and the outbox never holds more than that.

*From host to guest.* Bytes are read off the unix socket straight into the guest's memory, and only as many as the guest
has said it has room for (`credit`). A guest without room stalls the host program, and nothing is kept here at all.

*Closing* is per direction. A host program that shuts down its writing side ends one direction: SHUTDOWN(SEND), once all
was read. A guest's SHUTDOWN(SEND) shuts down the unix socket's writing side once the outbox is empty. A direction that
the host program has closed for reading is SHUTDOWN(RECEIVE); what the guest still sends is taken and forgotten. When
the guest has said SHUTDOWN(BOTH), as Linux does on close, RST is the answer, after the outbox is empty: without it the
guest's socket lingers for eight seconds (VSOCK_CLOSE_TIMEOUT). When we have said it, the guest answers with RST.

A guest that breaks the rules (more bytes than its credit, data after SHUTDOWN, a packet that does not fit the state)
loses the stream, by RST.

Not here: which streams there are, the queues, epoll. A connection is told what happened (`receive`, `host_ready`) and
then asked what it wants (`wants_control`, `wants_data`, `state`).

Source: VIRTIO 1.2, 5.10.6.3 "Buffer Space Management" to 5.10.6.6 "Stream Sockets"; unix(7), epoll(7).
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence
from enum import Enum, IntFlag
from typing import NamedTuple

from pyrune.local.virtio_vsock import handshake
from pyrune.local.virtio_vsock.packet import TYPE_STREAM, Header, Op, Shutdown

_COUNTER_MASK = 0xFFFFFFFF
_HUNG_UP = select.EPOLLHUP | select.EPOLLERR
_MAY_READ = select.EPOLLIN | select.EPOLLRDHUP | _HUNG_UP
_MAY_WRITE = select.EPOLLOUT | _HUNG_UP


class State(Enum):
    """See the module."""

    DIALLING = "dialling"
    REQUESTED = "requested"
    ESTABLISHED = "established"
    DRAINING = "draining"
    CLOSED = "closed"


class Pending(IntFlag):
    """Packets without data that the guest should get; each kind at most once, however often there was a reason."""

    NONE = 0
    REQUEST = 1
    RESPONSE = 2
    CREDIT_UPDATE = 4
    CREDIT_REQUEST = 8
    SHUTDOWN = 16


# In the order in which they go out.
_PENDING_OPS = (
    (Pending.REQUEST, Op.REQUEST),
    (Pending.RESPONSE, Op.RESPONSE),
    (Pending.CREDIT_REQUEST, Op.CREDIT_REQUEST),
    (Pending.CREDIT_UPDATE, Op.CREDIT_UPDATE),
    (Pending.SHUTDOWN, Op.SHUTDOWN),
)


class Address(NamedTuple):
    """What tells a stream from all others of one guest."""

    host_cid: int
    host_port: int
    guest_port: int


class Connection:
    """See the module. It owns its socket from `dialled` or `called_by` on, until `state` is CLOSED."""

    __slots__ = (
        "_done",
        "_fwd_cnt",
        "_fwd_cnt_told",
        "_guest_cid",
        "_guest_done",
        "_hung_up",
        "_outbox",
        "_peer_buf_alloc",
        "_peer_fwd_cnt",
        "_pending",
        "_readable",
        "_sock",
        "_starved",
        "_tx_cnt",
        "_write_over",
        "address",
        "buf_alloc",
        "fd",
        "reset_owed",
        "state",
    )

    def __init__(self, address: Address, guest_cid: int, buf_alloc: int) -> None:
        self.address = address
        self.state = State.DIALLING
        self.buf_alloc = buf_alloc
        # The socket's descriptor, -1 before there is a socket; it keeps its value when the socket is closed.
        self.fd = -1
        self.reset_owed = False
        self._guest_cid = guest_cid
        self._sock: socket.socket | None = None
        self._pending = Pending.NONE
        # What we, and what the guest, will not do any more.
        self._done = Shutdown.NONE
        self._guest_done = Shutdown.NONE
        # From guest to host.
        self._outbox = bytearray()
        self._fwd_cnt = 0
        self._fwd_cnt_told = 0
        self._write_over = False
        # From host to guest. `_readable` may be wrong, the read then says so; `_starved` means out of credit.
        self._tx_cnt = 0
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0
        self._readable = False
        self._starved = False
        self._hung_up = False

    # What is asked of a connection.

    @property
    def wants_control(self) -> bool:
        """`next_control` has a packet."""
        return bool(self._pending)

    @property
    def wants_data(self) -> bool:
        """`read_into` may have data, as far as is known."""
        return self._readable and not self._starved

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for. A guest that counts wrongly gets nothing."""
        return max(0, self._peer_buf_alloc - ((self._tx_cnt - self._peer_fwd_cnt) & _COUNTER_MASK))

    @property
    def buffered(self) -> int:
        """How many bytes wait in the outbox."""
        return len(self._outbox)

    @property
    def awaits_guest(self) -> bool:
        """Only a packet from the guest can move this connection on, and it ought to come soon."""
        return self.state is State.REQUESTED or (self.state is State.ESTABLISHED and self._done == Shutdown.BOTH)

    # The beginning.

    def dialled(self, sock: socket.socket, request: Header) -> None:
        """The host program that the guest asked for has been reached."""
        self._own(sock)
        self._learn_credit(request)
        self.state = State.ESTABLISHED
        self._pending |= Pending.RESPONSE

    def called_by(self, sock: socket.socket) -> None:
        """A host program asks for the guest."""
        self._own(sock)
        self.state = State.REQUESTED
        self._pending |= Pending.REQUEST

    # What happens to a connection.

    def receive(self, header: Header, data: Sequence[memoryview]) -> None:
        """A packet of the guest for this stream; `data` has `header.length` bytes."""
        self._learn_credit(header)
        if header.op == Op.RW and self.state is State.ESTABLISHED:
            self._take(data, header.length)
            return
        match self.state, header.op:
            case _, Op.RST:
                self.guest_left()
            case State.REQUESTED, Op.RESPONSE:
                self._guest_accepted()
            case State.ESTABLISHED, Op.SHUTDOWN:
                self._guest_shut_down(Shutdown(header.flags & Shutdown.BOTH))
            case State.ESTABLISHED, Op.CREDIT_REQUEST:
                self._pending |= Pending.CREDIT_UPDATE
            case State.ESTABLISHED, Op.CREDIT_UPDATE:
                pass
            case _:
                self.abort()

    def host_ready(self, events: int) -> None:
        """What epoll says about the socket; it says each thing once (EPOLLET)."""
        if events & _HUNG_UP:
            self._hung_up = True
            if self.state is State.REQUESTED:
                self.abort()
        if self._outbox and events & _MAY_WRITE:
            self._flush()
        if self.state is State.ESTABLISHED and events & _MAY_READ:
            if not self._done & Shutdown.SEND:
                self._readable = True
            elif self._hung_up:
                self._finish(Shutdown.RECEIVE)

    def abort(self) -> None:
        """End the stream now, and tell the guest, if it has heard of the stream."""
        self.reset_owed = not self._pending & Pending.REQUEST
        self._close()

    def guest_left(self) -> None:
        """The guest has no part in the stream any more, and need not be told."""
        if not self._outbox:
            self._close()
            return
        self.state = State.DRAINING
        self._pending = Pending.NONE
        self._stop_reading()

    def drop(self) -> None:
        """End the stream now, whatever is left to do."""
        self._close()

    # What a connection gives to the guest.

    def next_control(self) -> Header:
        """The next packet without data; only if `wants_control`."""
        for reason, op in _PENDING_OPS:
            if self._pending & reason:
                self._pending &= ~reason
                return self._header(op, flags=int(self._done) if op is Op.SHUTDOWN else 0)
        raise AssertionError("no packet is pending")

    def starve(self) -> None:
        """There may be data, but the guest has no room: ask it, once, to say when it has."""
        self._starved = True
        self._pending |= Pending.CREDIT_REQUEST

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """Read from the host program; the caller passes at most `credit` bytes of room, and sends what was read.

        Zero when there is nothing now; why, shows in the connection's wishes.
        """
        try:
            count = os.readv(self.fd, buffers)
        except BlockingIOError:
            self._readable = False
            return 0
        except OSError:
            # The host program left bytes of the guest unread; unix(7) tells its peer by ECONNRESET.
            self.abort()
            return 0
        if count:
            self._tx_cnt = (self._tx_cnt + count) & _COUNTER_MASK
        else:
            self._readable = False
            self._finish(Shutdown.BOTH if self._hung_up else Shutdown.SEND)
        return count

    def data_header(self, length: int) -> Header:
        """The header for `length` bytes that `read_into` brought."""
        return self._header(Op.RW, length=length)

    def reset_header(self) -> Header:
        """The RST for this stream."""
        return self._header(Op.RST)

    # From here on: how.

    def _header(self, op: Op, *, length: int = 0, flags: int = 0) -> Header:
        """Every packet tells the guest its credit, so an update is not needed after any."""
        self._pending &= ~Pending.CREDIT_UPDATE
        self._fwd_cnt_told = self._fwd_cnt
        host_cid, host_port, guest_port = self.address
        return Header(
            host_cid,
            self._guest_cid,
            host_port,
            guest_port,
            length,
            TYPE_STREAM,
            op,
            flags,
            self.buf_alloc,
            self._fwd_cnt,
        )

    def _learn_credit(self, header: Header) -> None:
        self._peer_buf_alloc = header.buf_alloc
        self._peer_fwd_cnt = header.fwd_cnt
        if self._starved and self.credit:
            self._starved = False

    def _take(self, data: Sequence[memoryview], length: int) -> None:
        if self._guest_done & Shutdown.SEND or length > self.buf_alloc - len(self._outbox):
            self.abort()
            return
        sent = 0
        if not self._outbox and length:
            sent = self._send(data, length)
        if sent < length:
            skip = sent
            for piece in data:
                self._outbox += piece[skip:]
                skip = max(0, skip - len(piece))
        self._forwarded(sent)

    def _flush(self) -> None:
        while self._outbox:
            sent = self._send((self._outbox,), len(self._outbox))
            if not sent:
                return
            del self._outbox[:sent]
            self._forwarded(sent)
        self._drained()

    def _send(self, data: Sequence[memoryview | bytearray], length: int) -> int:
        """How many of the `length` bytes in `data` need no further thought: sent, or nobody will read them."""
        assert self._sock is not None
        if self._done & Shutdown.RECEIVE:
            return length
        try:
            return self._sock.send(data[0]) if len(data) == 1 else self._sock.sendmsg(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._finish(Shutdown.RECEIVE)
            return length

    def _forwarded(self, count: int) -> None:
        self._fwd_cnt = (self._fwd_cnt + count) & _COUNTER_MASK
        if (self._fwd_cnt - self._fwd_cnt_told) & _COUNTER_MASK >= self.buf_alloc // 2:
            self._pending |= Pending.CREDIT_UPDATE

    def _drained(self) -> None:
        """The outbox is empty: now what the guest said about closing applies."""
        if self.state is State.DRAINING:
            self._close()
        elif self._guest_done == Shutdown.BOTH:
            self.abort()
        elif self._guest_done & Shutdown.SEND and not self._write_over:
            self._write_over = True
            self._shut_down_socket(socket.SHUT_WR)

    def _finish(self, directions: Shutdown) -> None:
        if directions & ~self._done:
            self._done |= directions
            self._pending |= Pending.SHUTDOWN

    def _guest_accepted(self) -> None:
        assert self._sock is not None
        self.state = State.ESTABLISHED
        # The host program may have written ahead; epoll has told that already, and tells it no second time.
        self._readable = True
        try:
            self._sock.send(handshake.answer(self.address.host_port))
        except OSError:
            self.abort()

    def _guest_shut_down(self, directions: Shutdown) -> None:
        self._guest_done |= directions
        if directions & Shutdown.RECEIVE:
            self._stop_reading()
        if not self._outbox:
            self._drained()

    def _stop_reading(self) -> None:
        """The guest takes nothing any more. A host program that writes on gets EPIPE, as from any peer."""
        self._readable = False
        self._done |= Shutdown.SEND
        self._shut_down_socket(socket.SHUT_RD)

    def _shut_down_socket(self, how: int) -> None:
        assert self._sock is not None
        try:
            self._sock.shutdown(how)
        except OSError:
            # The host program is gone; the next event says so, too.
            self._hung_up = True

    def _close(self) -> None:
        self.state = State.CLOSED
        self._pending = Pending.NONE
        self._readable = False
        self._outbox.clear()
        if self._sock is not None:
            self._sock.close()

    def _own(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fd = sock.fileno()
