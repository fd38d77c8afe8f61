"""All streams of one guest: finding the one a packet is for, opening and closing them, and who is next.

A muxer is one descriptor to poll (its own epoll instance); `dispatch` takes what the unix sockets have to say. The
device gives it the guest's packets (`deliver`) and asks it for packets for the guest, those without data first
(`next_control`), then streams that have data (`next_reader`), each in turn.

Everything is bounded: the number of streams and callers, the bytes that wait for stalled host programs
(`BufferPool`), the RSTs that wait for a guest that does not look (`backlogged`), and the time that half-made streams
may take.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable

from pyrune.local.virtio_vsock.connection import Address, Connection, State
from pyrune.local.virtio_vsock.handshake import BadHandshake, take_port
from pyrune.local.virtio_vsock.host_sockets import HostSockets
from pyrune.local.virtio_vsock.packet import TYPE_STREAM, Header, Op, reset_in_answer_to

# VMADDR_CID_HOST of linux/vm_sockets.h, and the parent as every Nitro enclave knows it: here they are the same.
CID_HOST = 2
CID_PARENT = 3
HOST_CIDS = (CID_HOST, CID_PARENT)

MAX_CONNECTIONS = 1024
# A caller's CONNECT line, the guest's answer to REQUEST, and its RST after SHUTDOWN must come within this time.
PATIENCE_S = 10.0
# Linux' connect(2) in the guest gives up after VSOCK_DEFAULT_CONNECT_TIMEOUT, 2 s.
DIAL_FOR_S = 2.0
REDIAL_EVERY_S = 0.02
# Local ports of streams that host programs open, away from ports that programs choose; as Firecracker does.
FIRST_LOCAL_PORT = 1 << 30
LAST_LOCAL_PORT = (1 << 31) - 1

_MAX_RESETS = 256
_MAX_EVENTS = 256
_ACCEPT_BATCH = 64
_ALL_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class BufferPool:
    """How large a buffer each stream may promise to the guest, so that all promises together stay bounded.

    A stream gets LARGE while that leaves SMALL for every other that may still come.
    """

    LARGE = 256 << 10
    SMALL = 16 << 10

    def __init__(self, total: int, streams: int) -> None:
        self._free = total
        self._streams_left = streams

    def take(self) -> int:
        self._streams_left -= 1
        size = self.LARGE if self._free - self.LARGE >= self._streams_left * self.SMALL else self.SMALL
        self._free -= size
        return size

    def give_back(self, size: int) -> None:
        self._streams_left += 1
        self._free += size


POOL_BYTES = 64 << 20


class Muxer:
    """See the module. `guest_present` is the device's to set: whether there is a driver to talk to."""

    def __init__(
        self,
        guest_cid: int,
        sockets: HostSockets,
        *,
        max_connections: int = MAX_CONNECTIONS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises BackendError when the unix socket for host programs cannot be made."""
        self.guest_present = False
        self._guest_cid = guest_cid
        self._sockets = sockets
        self._max_connections = max_connections
        self._now = now
        self._pool = BufferPool(POOL_BYTES, max_connections)
        self._last_local_port = LAST_LOCAL_PORT
        # Every stream; those that the guest may name; those that have a socket, by its descriptor.
        self._open: set[Connection] = set()
        self._by_address: dict[Address, Connection] = {}
        self._by_fd: dict[int, Connection] = {}
        # Callers that have not said their CONNECT line yet, by descriptor.
        self._callers: dict[int, socket.socket] = {}
        # Streams that wait for room in a host program's queue, with their REQUEST and the time to give up.
        self._dialling: dict[Connection, tuple[Header, float]] = {}
        # Who has something for the guest. These dicts are ordered sets.
        self._resets: deque[Header] = deque()
        self._controls: dict[Connection, None] = {}
        self._readers: dict[Connection, None] = {}
        # Who must hear something soon, and until when. As all wait equally long, the first is always the next.
        self._deadlines: dict[Connection | socket.socket, float] = {}
        self._listener = sockets.listen()
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        """End all streams and remove the unix socket."""
        for connection in list(self._open):
            connection.drop()
            self.settle(connection)
        for sock in list(self._callers.values()):
            self._hang_up(sock)
        self._listener.close()
        self._sockets.remove_listener()
        self._epoll.close()

    def reset(self) -> None:
        """The guest's driver is gone. What it sent still goes to slow host programs; all else about streams ends.

        Callers that have not said their line may go on to wait for a guest.
        """
        self.guest_present = False
        for connection in list(self._open):
            connection.guest_left()
            self.settle(connection)
        self._resets.clear()

    @property
    def has_streams(self) -> bool:
        """After `reset`: whether there are bytes that host programs have not taken yet."""
        return bool(self._open)

    # Between the device and the streams.

    def deliver(self, header: Header, data: list[memoryview]) -> None:
        """A packet of the guest."""
        if header.src_cid != self._guest_cid or header.type != TYPE_STREAM:
            self._refuse(header)
            return
        address = Address(header.dst_cid, header.dst_port, header.src_port)
        connection = self._by_address.get(address)
        if connection is not None:
            connection.receive(header, data)
            self.settle(connection)
        elif header.op == Op.REQUEST and header.dst_cid in HOST_CIDS and not self._is_full():
            self._open_from_guest(address, header)
        else:
            self._refuse(header)

    @property
    def backlogged(self) -> bool:
        """The guest should be heard no further until it has taken some of what waits for it."""
        return len(self._resets) >= _MAX_RESETS

    @property
    def has_control(self) -> bool:
        return bool(self._resets or self._controls)

    @property
    def has_output(self) -> bool:
        return bool(self._resets or self._controls or self._readers)

    def next_control(self) -> Header:
        """The next packet without data; only if `has_control`."""
        if self._resets:
            return self._resets.popleft()
        connection = next(iter(self._controls))
        header = connection.next_control()
        # To the end of the line, or out of it.
        del self._controls[connection]
        self.settle(connection)
        return header

    def next_reader(self) -> Connection | None:
        """The next stream with data and credit, taken out of the line: `settle` it after reading."""
        while self._readers:
            connection = next(iter(self._readers))
            del self._readers[connection]
            if connection.credit:
                return connection
            connection.starve()
            self.settle(connection)
        return None

    def settle(self, connection: Connection) -> None:
        """Draw the consequences of what just happened to a connection."""
        if connection.wants_control:
            self._controls[connection] = None
        if connection.wants_data:
            self._readers[connection] = None
        if connection.awaits_guest:
            if connection not in self._deadlines:
                self._deadlines[connection] = self._now() + PATIENCE_S
        elif self._deadlines:
            self._deadlines.pop(connection, None)
        if connection.state is State.CLOSED:
            self._forget(connection)
        elif connection.state is State.DRAINING:
            self._leave_line(connection)

    # Between the unix sockets and the streams.

    def timeout_s(self) -> float | None:
        """When `dispatch` should be called even if nothing happens: in so many seconds, or never."""
        if self._dialling:
            return REDIAL_EVERY_S
        for deadline in self._deadlines.values():
            return max(0.0, deadline - self._now())
        return None

    def dispatch(self) -> None:
        """Take what epoll has, and let those go who waited too long."""
        accept = False
        for fd, events in self._epoll.poll(0, _MAX_EVENTS):
            if (connection := self._by_fd.get(fd)) is not None:
                connection.host_ready(events)
                self.settle(connection)
            elif (caller := self._callers.get(fd)) is not None:
                self._caller_ready(caller, events)
            elif fd == self._listener.fileno():
                accept = True
        # Last, because it makes new descriptors, whose numbers may be those of older events of this round.
        if accept:
            self._accept()
        if self._dialling:
            self._redial()
        if self._deadlines:
            self._expire()

    def _is_full(self) -> bool:
        return len(self._open) + len(self._callers) >= self._max_connections

    def _refuse(self, header: Header) -> None:
        if header.op != Op.RST:
            self._resets.append(reset_in_answer_to(header))

    def _open_from_guest(self, address: Address, request: Header) -> None:
        connection = self._new_connection(address)
        if not self._dial(connection, request):
            self._dialling[connection] = (request, self._now() + DIAL_FOR_S)

    def _dial(self, connection: Connection, request: Header) -> bool:
        """False when it should be tried again, as the host program's queue is full."""
        try:
            sock = self._sockets.dial(connection.address.host_port)
        except BlockingIOError:
            return False
        except OSError:
            connection.abort()
        else:
            connection.dialled(sock, request)
            self._by_fd[connection.fd] = connection
            self._epoll.register(sock, _ALL_EDGES)
        self.settle(connection)
        return True

    def _redial(self) -> None:
        """Try those in the line again; where one port has no room, the next caller of it has none either."""
        full_ports = set()
        now = self._now()
        for connection, (request, give_up) in list(self._dialling.items()):
            port = connection.address.host_port
            if port not in full_ports and self._dial(connection, request):
                self._dialling.pop(connection, None)
            elif now >= give_up:
                connection.abort()
                self.settle(connection)
            else:
                full_ports.add(port)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptors or no memory: let the callers wait, instead of being woken for them at once again.
                self._epoll.unregister(self._listener)
                self._deadlines[self._listener] = self._now() + PATIENCE_S
                return
            if self._is_full():
                sock.close()
                continue
            sock.setblocking(False)
            self._deadlines[sock] = self._now() + PATIENCE_S
            self._callers[sock.fileno()] = sock
            self._epoll.register(sock, _ALL_EDGES)

    def _caller_ready(self, sock: socket.socket, events: int) -> None:
        """A host program that has not said its CONNECT line yet."""
        try:
            port = take_port(sock)
        except BadHandshake:
            self._hang_up(sock)
            return
        if port is None:
            if events & _GONE:
                self._hang_up(sock)
        elif not self.guest_present or events & select.EPOLLHUP:
            self._hang_up(sock)
        else:
            self._open_from_host(sock, port)

    def _open_from_host(self, sock: socket.socket, guest_port: int) -> None:
        del self._deadlines[sock]
        del self._callers[sock.fileno()]
        connection = self._new_connection(self._free_address(guest_port))
        connection.called_by(sock)
        # The epoll entry goes on to serve the connection.
        self._by_fd[connection.fd] = connection
        self.settle(connection)

    def _new_connection(self, address: Address) -> Connection:
        connection = Connection(address, self._guest_cid, self._pool.take())
        self._open.add(connection)
        self._by_address[address] = connection
        return connection

    def _free_address(self, guest_port: int) -> Address:
        """Ports are used in turn, so one that was used before rests as long as possible."""
        while True:
            self._last_local_port += 1
            if self._last_local_port > LAST_LOCAL_PORT:
                self._last_local_port = FIRST_LOCAL_PORT
            address = Address(CID_PARENT, self._last_local_port, guest_port)
            if address not in self._by_address:
                return address

    def _hang_up(self, sock: socket.socket) -> None:
        self._deadlines.pop(sock, None)
        del self._callers[sock.fileno()]
        sock.close()

    def _expire(self) -> None:
        now = self._now()
        while self._deadlines:
            waiting, deadline = next(iter(self._deadlines.items()))
            if deadline > now:
                return
            del self._deadlines[waiting]
            if isinstance(waiting, Connection):
                waiting.abort()
                self.settle(waiting)
            elif waiting is self._listener:
                self._epoll.register(waiting, select.EPOLLIN)
            else:
                self._hang_up(waiting)

    def _forget(self, connection: Connection) -> None:
        """A closed connection: make room for another, and tell the guest if it does not know."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        if connection.reset_owed:
            self._resets.append(connection.reset_header())
        self._leave_line(connection)
        self._by_fd.pop(connection.fd, None)
        self._dialling.pop(connection, None)
        self._pool.give_back(connection.buf_alloc)

    def _leave_line(self, connection: Connection) -> None:
        """The guest does not know this stream any more, and may use its ports for another."""
        if self._by_address.get(connection.address) is connection:
            del self._by_address[connection.address]
        self._controls.pop(connection, None)
        self._readers.pop(connection, None)
