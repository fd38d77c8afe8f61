"""A guest's vsock driver in small, and the device process that it talks to.

The driver keeps the rules of credit, unless a test sends packets itself. Like Linux before 6.3 it can put headers into
buffers of their own (`separate_headers`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pyrune.local.virtio_vsock.packet import HEADER, TYPE_STREAM, Header, Op, Shutdown
from tests.needs import missing
from tests.unit.local.front_end import BUFFERS_GUEST, TIMEOUT_S, DriverQueue, FrontEnd, Memory, Piece

GUEST_CID = 16
PARENT_CID = 3
QUEUE_SIZE = 128
RX_BUFFER = 4096
TX_BUFFER = 64 << 10
BUF_ALLOC = 256 << 10


class DeviceProcess:
    """`python -I -m pyrune.local.vsock_device`, as the monitor starts it."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        self.directory = directory
        self.sock, theirs = socket.socketpair()
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.popen = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "pyrune.local.vsock_device"),
                *("--vhost-fd", str(theirs.fileno()), "--dir-fd", str(directory_fd)),
                *("--guest-cid", str(GUEST_CID), "--parent-pid", str(os.getpid())),
            ],
            pass_fds=[theirs.fileno(), directory_fd],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        os.close(directory_fd)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def status_kib(self, key: str) -> int:
        """A size of /proc/PID/status."""
        text = Path(f"/proc/{self.popen.pid}/status").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{key}:"))

    def open_fds(self) -> int:
        try:
            return len(os.listdir(f"/proc/{self.popen.pid}/fd"))
        except PermissionError:
            missing("root", "only root may count the descriptors of a process that forbids tracing")

    def end(self) -> tuple[int, str]:
        """Close QEMU's end; the exit status and all that was said."""
        self.sock.close()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        _, said = self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode, said.decode()

    def close(self) -> None:
        self.sock.close()
        self.popen.kill()
        self.popen.communicate(timeout=TIMEOUT_S)


class Stream:
    """One stream, from the guest's side."""

    def __init__(self, guest: Guest, guest_port: int, host_port: int, host_cid: int = PARENT_CID) -> None:
        self.guest = guest
        self.guest_port = guest_port
        self.host_port = host_port
        self.host_cid = host_cid
        self.received = bytearray()
        self.packets: deque[Header] = deque()
        self.sent = 0
        self.fwd_cnt = 0
        self.fwd_cnt_told = 0
        self.buf_alloc = BUF_ALLOC
        self.peer_buf_alloc = 0
        self.peer_fwd_cnt = 0

    @property
    def credit(self) -> int:
        return self.peer_buf_alloc - (self.sent - self.peer_fwd_cnt)

    def packet(self, op: int, *, length: int = 0, flags: int = 0) -> Header:
        self.fwd_cnt_told = self.fwd_cnt
        return Header(
            *(GUEST_CID, self.host_cid, self.guest_port, self.host_port, length, TYPE_STREAM, op, flags),
            *(self.buf_alloc, self.fwd_cnt & 0xFFFFFFFF),
        )

    def send(self, op: int, data: bytes = b"", *, flags: int = 0) -> None:
        """A packet, whatever the credit."""
        self.guest.transmit(self.packet(op, length=len(data), flags=flags), data)
        self.sent += len(data)

    def write(self, data: bytes) -> None:
        """All of `data`, as credit comes."""
        rest = memoryview(data)
        while rest:
            self.guest.until(lambda: self.credit > 0)
            size = min(self.credit, len(rest), TX_BUFFER - HEADER.size)
            self.send(Op.RW, rest[:size].tobytes())
            rest = rest[size:]

    def accept_packet(self, header: Header, data: bytes) -> None:
        self.peer_buf_alloc, self.peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        if header.op == Op.RW:
            self.received += data
        else:
            self.packets.append(header)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes, when they have come; only then is there room for more, as with a slow reader."""
        taken = bytearray()
        while len(taken) < count:
            self.guest.until(lambda: bool(self.received))
            size = min(count - len(taken), len(self.received))
            taken += self.received[:size]
            del self.received[:size]
            self.fwd_cnt += size
            if self.fwd_cnt - self.fwd_cnt_told >= self.buf_alloc // 2:
                self.send(Op.CREDIT_UPDATE)
        return bytes(taken)

    def expect(self, op: Op, flags: int | None = None) -> Header:
        """The next packet without data, passing over those about credit unless asked for; it must be `op`."""

        def next_packet() -> bool:
            while self.packets and self.packets[0].op in (Op.CREDIT_UPDATE, Op.CREDIT_REQUEST) and op < 6:
                self.packets.popleft()
            return bool(self.packets)

        self.guest.until(next_packet)
        header = self.packets.popleft()
        assert header.op == op, header
        assert flags is None or header.flags == flags, header
        return header

    def expect_both_directions_closed(self) -> None:
        """SHUTDOWN(BOTH); the device may have heard of one direction before the other."""
        while self.expect(Op.SHUTDOWN).flags != Shutdown.BOTH:
            pass


class Guest:
    """The driver: both queues, and streams by their ports."""

    def __init__(self, sock: socket.socket, *, separate_headers: bool = False) -> None:
        self.memory = Memory((QUEUE_SIZE // 2 * TX_BUFFER) + QUEUE_SIZE * RX_BUFFER)
        self.rx = DriverQueue(self.memory, 0x00000, QUEUE_SIZE)
        self.tx = DriverQueue(self.memory, 0x10000, QUEUE_SIZE)
        self.front_end = FrontEnd(sock, self.memory, [self.rx, self.tx])
        self.separate_headers = separate_headers
        self.streams: dict[tuple[int, int], Stream] = {}
        self.requests: deque[Header] = deque()
        self.strays: list[Header] = []
        self.returned: list[list[Piece]] = []
        self._rx_base = BUFFERS_GUEST + QUEUE_SIZE // 2 * TX_BUFFER
        self._rx_pieces: dict[int, list[Piece]] = {}
        self._tx_places = [BUFFERS_GUEST + place * TX_BUFFER for place in range(QUEUE_SIZE // 2)]
        self._tx_of: dict[int, int] = {}
        self.next_port = 5000

    def start(self, *, buffers: int = QUEUE_SIZE) -> None:
        """Bring the device up with so many receive descriptors' worth of buffers."""
        self.front_end.negotiate()
        self.post_buffers(buffers)
        self.front_end.start_rings()

    def post_buffers(self, count: int) -> None:
        for place in range(count // 2 if self.separate_headers else count):
            self.post(self._pieces_for(place))

    def stream(self, host_port: int, host_cid: int = PARENT_CID) -> Stream:
        """A stream that the guest will ask for."""
        self.next_port += 1
        stream = Stream(self, self.next_port, host_port, host_cid)
        self.streams[stream.guest_port, stream.host_port] = stream
        return stream

    def connect(self, host_port: int, host_cid: int = PARENT_CID) -> Stream:
        stream = self.stream(host_port, host_cid)
        stream.send(Op.REQUEST)
        stream.expect(Op.RESPONSE)
        return stream

    def accept(self) -> Stream:
        """A stream that the host asked for."""
        self.until(lambda: bool(self.requests))
        request = self.requests.popleft()
        stream = Stream(self, request.dst_port, request.src_port)
        stream.peer_buf_alloc = request.buf_alloc
        self.streams[stream.guest_port, stream.host_port] = stream
        stream.send(Op.RESPONSE)
        return stream

    def may_transmit(self, wait_s: float) -> bool:
        """Whether `transmit` would have a place at once, or after waiting for one to come back."""
        self.poll()
        if not self._tx_places:
            time.sleep(wait_s)
            self.poll()
        return bool(self._tx_places)

    def transmit(self, header: Header, data: bytes = b"") -> None:
        """Put a packet on the tx queue and kick."""
        self.until(lambda: bool(self._tx_places))
        place = self._tx_places.pop()
        size = HEADER.size + len(data)
        self.memory.at(place, size)[:] = HEADER.pack(*header) + data
        pieces = [Piece(place, size)]
        if self.separate_headers and data:
            pieces = [Piece(place, HEADER.size), Piece(place + HEADER.size, len(data))]
        self._tx_of[self.tx.add(pieces)] = place
        self.tx.kick()

    def until(self, ready: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Handle what the device sends until `ready`."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.poll()
            if ready():
                return
            assert time.monotonic() < deadline, "the device did not do what was waited for"
            self.rx.wait(0.002)

    def poll(self) -> None:
        """Take what has come back on both queues."""
        for head, _ in self.tx.completed():
            if head in self._tx_of:
                self._tx_places.append(self._tx_of.pop(head))
        # All first: a chain that is posted again may get the head of one that is still to be looked at.
        done = [(self._rx_pieces.pop(head), written) for head, written in self.rx.completed()]
        for pieces, written in done:
            if not written:
                self.returned.append(pieces)
                continue
            self._receive(b"".join(bytes(self.memory.at(p.address, p.length)) for p in pieces)[:written])
            self.post(pieces)
        if done:
            self.rx.kick()

    def close(self) -> None:
        self.front_end.close()
        self.rx.close()
        self.tx.close()
        self.memory.close()

    def _receive(self, raw: bytes) -> None:
        header = Header._make(HEADER.unpack_from(raw))
        data = raw[HEADER.size :]
        assert len(data) == header.length
        assert header.dst_cid == GUEST_CID
        stream = self.streams.get((header.dst_port, header.src_port))
        if stream is not None:
            stream.accept_packet(header, data)
        elif header.op == Op.REQUEST:
            self.requests.append(header)
        else:
            self.strays.append(header)

    def _pieces_for(self, place: int) -> list[Piece]:
        address = self._rx_base + place * RX_BUFFER
        if self.separate_headers:
            return [
                Piece(address, HEADER.size, True),
                Piece(address + HEADER.size, RX_BUFFER - HEADER.size, True),
            ]
        return [Piece(address, RX_BUFFER, True)]

    def post(self, pieces: list[Piece]) -> None:
        """Make a receive buffer available. Those that come back empty are in `returned`, and are not posted again."""
        self._rx_pieces[self.rx.add(pieces)] = pieces


class HostProgram:
    """A host program that listens on the parent's `port`, or calls the guest."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: list[socket.socket] = []

    def listen(self, port: int, backlog: int = 128) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT_S)
        sock.bind(str(self.directory / f"vsock_{port}"))
        sock.listen(backlog)
        self._open.append(sock)
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        sock, _ = listener.accept()
        sock.settimeout(TIMEOUT_S)
        self._open.append(sock)
        return sock

    def call(self, first: bytes = b"") -> socket.socket:
        """A socket connected to the device, on which `first` was said."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT_S)
        self._open.append(sock)
        sock.connect(str(self.directory / "vsock"))
        if first:
            sock.sendall(first)
        return sock

    def close(self) -> None:
        for sock in self._open:
            sock.close()


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            break
        line += piece
    return line


def wait_until_closed(sock: socket.socket) -> None:
    """Until the other end is closed; unix(7) says so by an error where bytes of this end were left unread."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def call_guest(host: HostProgram, guest: Guest, port: int = 7) -> tuple[socket.socket, Stream]:
    """A stream that a host program opens and the guest accepts: both ends."""
    sock = host.call(b"CONNECT %d\n" % port)
    stream = guest.accept()
    assert read_line(sock) == b"OK %d\n" % stream.host_port
    assert stream.guest_port == port
    return sock, stream
