"""Many streams: what is bounded, what times out, and that no order of packets upsets it. A clock that stands still."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.local.virtio_vsock.connection import State
from pyrune.local.virtio_vsock.host_sockets import HostSockets
from pyrune.local.virtio_vsock.muxer import (
    CID_PARENT,
    DIAL_FOR_S,
    FIRST_LOCAL_PORT,
    LAST_LOCAL_PORT,
    PATIENCE_S,
    POOL_BYTES,
    BufferPool,
    Muxer,
)
from pyrune.local.virtio_vsock.packet import TYPE_STREAM, Header, Op, Shutdown

GUEST_CID = 16


def packet(op: int, guest_port: int = 1000, host_port: int = 80, *, length: int = 0, flags: int = 0) -> Header:
    return Header(GUEST_CID, CID_PARENT, guest_port, host_port, length, TYPE_STREAM, op, flags, 65536, 0)


class World:
    """A muxer with a guest that is present, a directory, and a clock."""

    def __init__(self, directory: Path, **limits: int) -> None:
        self.directory = directory
        self.time = 1000.0
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.muxer = Muxer(GUEST_CID, HostSockets(self._fd), now=lambda: self.time, **limits)
        self.muxer.guest_present = True
        self._sockets: list[socket.socket] = []

    def listen(self, port: int = 80, backlog: int = 64) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"/proc/self/fd/{self._fd}/vsock_{port}")
        sock.listen(backlog)
        sock.settimeout(5)
        self._sockets.append(sock)
        return sock

    def call(self, first: bytes = b"CONNECT 7\n") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"/proc/self/fd/{self._fd}/vsock")
        sock.sendall(first)
        sock.settimeout(5)
        self._sockets.append(sock)
        return sock

    def dispatch(self) -> None:
        """Often enough for what one event leads to."""
        for _ in range(4):
            self.muxer.dispatch()

    def packets(self) -> list[Header]:
        found = []
        while self.muxer.has_control:
            found.append(self.muxer.next_control())
        return found

    def ops(self) -> list[int]:
        return [header.op for header in self.packets()]

    def close(self) -> None:
        self.muxer.close()
        for sock in self._sockets:
            sock.close()
        os.close(self._fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    it = World(tmp_path, max_connections=8)
    yield it
    it.close()


def closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_a_caller_that_says_no_line_is_hung_up_on_after_its_time(world: World) -> None:
    early = world.call(b"CONN")
    world.dispatch()
    world.time += 4
    late = world.call(b"")
    world.dispatch()
    assert world.muxer.timeout_s() == PATIENCE_S - 4
    world.time += PATIENCE_S - 4
    world.dispatch()
    assert closed(early)
    assert not closed(late)
    assert world.muxer.timeout_s() == 4
    world.time += 4
    world.dispatch()
    assert closed(late)
    assert world.muxer.timeout_s() is None


def test_a_guest_that_does_not_answer_a_request_loses_the_caller_after_its_time(world: World) -> None:
    sock = world.call()
    world.dispatch()
    assert world.ops() == [Op.REQUEST]
    world.time += PATIENCE_S
    world.dispatch()
    assert closed(sock)
    assert world.ops() == [Op.RST]


def test_a_guest_that_never_took_the_request_is_not_told_of_its_end(world: World) -> None:
    for _ in range(3):
        world.call()
    world.dispatch()
    world.time += PATIENCE_S
    world.dispatch()
    assert world.packets() == []


def test_an_answered_request_has_no_time_limit(world: World) -> None:
    sock = world.call()
    world.dispatch()
    (request,) = world.packets()
    world.muxer.deliver(packet(Op.RESPONSE, 7, request.src_port), [])
    world.time += 1e6
    world.dispatch()
    assert sock.recv(100) == b"OK %d\n" % request.src_port
    assert world.muxer.timeout_s() is None
    assert not closed(sock)
    assert world.packets() == []


def test_a_guest_that_does_not_answer_a_shutdown_is_reset_after_its_time(world: World) -> None:
    listener = world.listen()
    world.muxer.deliver(packet(Op.REQUEST), [])
    listener.accept()[0].close()
    world.dispatch()
    reader = world.muxer.next_reader()
    assert reader is not None
    assert reader.read_into([memoryview(bytearray(10))]) == 0
    world.muxer.settle(reader)
    assert world.ops() == [Op.RESPONSE, Op.SHUTDOWN]
    assert world.muxer.timeout_s() == PATIENCE_S
    world.time += PATIENCE_S
    world.dispatch()
    assert world.ops() == [Op.RST]
    assert reader.state is State.CLOSED


def test_a_host_program_whose_queue_stays_full_is_given_up_in_the_end(world: World) -> None:
    world.listen(backlog=0)
    for port in range(3):
        world.muxer.deliver(packet(Op.REQUEST, 1000 + port), [])
    assert world.ops() == [Op.RESPONSE]
    assert world.muxer.timeout_s() is not None
    world.dispatch()
    assert world.packets() == []
    world.time += DIAL_FOR_S
    world.dispatch()
    assert world.ops() == [Op.RST, Op.RST]
    assert world.muxer.timeout_s() is None


def test_a_host_program_that_makes_room_in_time_is_reached(world: World) -> None:
    listener = world.listen(backlog=0)
    for port in range(3):
        world.muxer.deliver(packet(Op.REQUEST, 1000 + port), [])
    kept = []
    answered = []
    for _ in range(3):
        answered += world.packets()
        kept.append(listener.accept()[0])
        world.dispatch()
    assert [header.op for header in answered] == [Op.RESPONSE] * 3
    assert [header.dst_port for header in answered] == [1000, 1001, 1002]
    for sock in kept:
        sock.close()


def test_a_guest_may_change_its_mind_while_a_host_program_is_busy(world: World) -> None:
    world.listen(backlog=0)
    world.muxer.deliver(packet(Op.REQUEST, 1000), [])
    world.muxer.deliver(packet(Op.REQUEST, 1001), [])
    world.muxer.deliver(packet(Op.RST, 1001), [])
    assert world.ops() == [Op.RESPONSE]
    assert world.muxer.timeout_s() is None


def test_streams_and_callers_count_together_and_make_room_when_they_go(world: World) -> None:
    world.listen()
    for port in range(5):
        world.muxer.deliver(packet(Op.REQUEST, 1000 + port), [])
    callers = [world.call(b"") for _ in range(4)]
    world.dispatch()
    assert [closed(sock) for sock in callers] == [False, False, False, True]
    world.packets()
    world.muxer.deliver(packet(Op.REQUEST, 2000), [])
    assert world.ops() == [Op.RST]
    callers[0].close()
    world.dispatch()
    world.muxer.deliver(packet(Op.REQUEST, 2000), [])
    assert world.ops() == [Op.RESPONSE]


def test_resets_that_nobody_takes_stop_the_guest_from_being_heard(world: World) -> None:
    for port in range(256):
        assert not world.muxer.backlogged
        world.muxer.deliver(packet(Op.RW, port), [])
    assert world.muxer.backlogged
    assert world.ops() == [Op.RST] * 256
    assert not world.muxer.backlogged


def test_callers_are_turned_away_while_there_is_no_driver(world: World) -> None:
    world.muxer.reset()
    sock = world.call()
    world.dispatch()
    assert closed(sock)


def test_local_ports_are_used_in_turn_and_never_twice_at_once(world: World) -> None:
    world.muxer._last_local_port = LAST_LOCAL_PORT - 1
    for _ in range(3):
        world.call()
    world.dispatch()
    assert [header.src_port for header in world.packets()] == [LAST_LOCAL_PORT, FIRST_LOCAL_PORT, FIRST_LOCAL_PORT + 1]
    world.muxer._last_local_port = LAST_LOCAL_PORT
    world.call()
    world.call(b"CONNECT 8\n")
    world.dispatch()
    assert [(header.src_port, header.dst_port) for header in world.packets()] == [
        (FIRST_LOCAL_PORT + 2, 7),
        (FIRST_LOCAL_PORT + 3, 8),
    ]


@given(st.lists(st.booleans(), max_size=400))
def test_a_pool_never_promises_more_than_it_has_and_always_has_something(opens: list[bool]) -> None:
    streams = 64
    total = 2 * BufferPool.LARGE + streams * BufferPool.SMALL
    pool = BufferPool(total, streams)
    taken: list[int] = []
    for opening in opens:
        if opening and len(taken) < streams:
            taken.append(pool.take())
        elif taken:
            pool.give_back(taken.pop())
        assert sum(taken) <= total
    while len(taken) < streams:
        taken.append(pool.take())
    assert sum(taken) <= total
    assert min(taken) == BufferPool.SMALL


def test_ordinary_numbers_of_streams_have_large_buffers() -> None:
    pool = BufferPool(POOL_BYTES, 1024)
    taken = [pool.take() for _ in range(1024)]
    assert taken[:190] == [BufferPool.LARGE] * 190
    assert set(taken) == {BufferPool.LARGE, BufferPool.SMALL}
    assert sum(taken) <= POOL_BYTES


# One thing that may happen: a packet of the guest, a host program's doing, or time.
happenings = st.one_of(
    st.tuples(
        st.just("packet"),
        st.integers(0, 8),  # operation
        st.integers(1000, 1002),  # guest port
        st.sampled_from([80, 81, 82, FIRST_LOCAL_PORT, FIRST_LOCAL_PORT + 1]),
        st.sampled_from([0, 1, 5000, 70_000, 300_000]),  # data
        st.integers(0, 3),  # flags
    ),
    st.tuples(st.sampled_from(["call", "accept", "read", "write", "half-close", "close", "wait", "output", "reset"])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(happenings, max_size=40))
def test_whatever_happens_in_whatever_order_everything_is_given_back(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[object, ...]]
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    world = World(tmp_path_factory.mktemp("story"), max_connections=6)
    listeners = [world.listen(80), world.listen(81, backlog=0)]
    programs: list[socket.socket] = []
    for happening, *facts in story:
        _happen(world, listeners, programs, str(happening), [int(str(fact)) for fact in facts])
        world.dispatch()
        streams = world.muxer._open
        assert len(streams) + len(world.muxer._callers) <= 6
        assert all(stream.buffered <= stream.buf_alloc for stream in streams)
        assert all(stream.state is not State.CLOSED for stream in streams)
        assert set(world.muxer._by_address.values()) <= streams
        assert set(world.muxer._controls) | set(world.muxer._readers) | set(world.muxer._dialling) <= streams
    world.muxer.reset()
    assert not world.muxer.has_output
    assert all(stream.state is State.DRAINING for stream in world.muxer._open)
    for sock in programs:
        sock.close()
    world.dispatch()
    world.close()
    assert world.muxer._pool._streams_left == 6
    assert world.muxer._pool._free == POOL_BYTES
    assert len(os.listdir("/proc/self/fd")) == before


def _happen(
    world: World, listeners: list[socket.socket], programs: list[socket.socket], what: str, facts: list[int]
) -> None:
    muxer = world.muxer
    if what == "packet":
        op, guest_port, host_port, length, flags = facts
        data = [memoryview(bytes(length))] if length else []
        muxer.deliver(packet(op, guest_port, host_port, length=length, flags=flags), data)
    elif what == "call":
        # Guest ports in the packets of a story are those of its calls, too.
        programs.append(world.call(b"CONNECT 100%d\n" % (len(programs) % 3)))
    elif what == "accept":
        for listener in listeners:
            listener.setblocking(False)
            try:
                programs.append(listener.accept()[0])
            except BlockingIOError:
                pass
    elif what == "wait":
        world.time += 3
    elif what == "reset":
        muxer.reset()
        muxer.guest_present = True
    elif what == "output":
        _take_output(world)
    elif programs:
        _act(programs, what)


def _take_output(world: World) -> None:
    world.packets()
    reader = world.muxer.next_reader()
    if reader is not None:
        reader.read_into([memoryview(bytearray(min(reader.credit, 4000)))])
        world.muxer.settle(reader)


def _act(programs: list[socket.socket], what: str) -> None:
    sock = programs[-1]
    sock.setblocking(False)
    try:
        match what:
            case "read":
                sock.recv(100_000)
            case "write":
                sock.send(b"w" * 1000)
            case "half-close":
                sock.shutdown(socket.SHUT_WR)
            case "close":
                programs.pop().close()
    except (BlockingIOError, BrokenPipeError, ConnectionResetError, OSError):
        pass


def test_a_shutdown_of_nothing_changes_nothing(world: World) -> None:
    listener = world.listen()
    world.muxer.deliver(packet(Op.REQUEST), [])
    world.muxer.deliver(packet(Op.SHUTDOWN, flags=Shutdown.NONE), [])
    world.muxer.deliver(packet(Op.RW, length=2), [memoryview(b"hi")])
    with listener.accept()[0] as sock:
        assert sock.recv(10) == b"hi"
