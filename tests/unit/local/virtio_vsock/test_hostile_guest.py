"""A guest that means harm loses the packet, the stream or its rings, and never the device."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable

import pytest

from pyrune.local.vhost_user.virtqueue import DESCRIPTOR
from pyrune.local.virtio_vsock.packet import HEADER, Header, Op
from tests.unit.local.front_end import BUFFERS_GUEST, RINGS_SIZE, TIMEOUT_S, DriverQueue, Piece
from tests.unit.local.virtio_vsock.guest import (
    BUF_ALLOC,
    GUEST_CID,
    RX_BUFFER,
    DeviceProcess,
    Guest,
    HostProgram,
    Stream,
    call_guest,
    read_all,
    wait_until_closed,
)

SPARE = BUFFERS_GUEST + 64 * 65536
NEXT, WRITE, INDIRECT = 1, 2, 4


def describe(queue: DriverQueue, *descriptors: tuple[int, int, int, int]) -> None:
    """Offer a chain of raw descriptors (address, length, flags, next), numbered from 0."""
    for index, descriptor in enumerate(descriptors):
        DESCRIPTOR.pack_into(queue.descriptors, 16 * index, *descriptor)
    queue.offer(0)


def bad_tx_chains() -> dict[str, list[tuple[int, int, int, int]]]:
    end = BUFFERS_GUEST + 64 * 65536 + 128 * RX_BUFFER
    return {
        "address in no region": [(0xDEAD0000, 44, 0, 0)],
        "address at the top": [(2**64 - 1, 44, 0, 0)],
        "end beyond the region": [(end - 43, 44, 0, 0)],
        "from one region into the hole behind it": [(RINGS_SIZE - 10, 44, 0, 0)],
        "four gigabytes": [(BUFFERS_GUEST, 0xFFFFFFFF, 0, 0)],
        "no length": [(BUFFERS_GUEST, 0, 0, 0)],
        "no length, thrice": [(BUFFERS_GUEST, 0, NEXT, 1), (BUFFERS_GUEST, 0, NEXT, 2), (BUFFERS_GUEST, 0, 0, 0)],
        "shorter than a header": [(BUFFERS_GUEST, 43, 0, 0)],
        "for the device to write": [(BUFFERS_GUEST, 44, WRITE, 0)],
        "data for the device to write": [(BUFFERS_GUEST, 44, NEXT, 1), (BUFFERS_GUEST + 64, 8, WRITE, 0)],
        "indirect": [(BUFFERS_GUEST, 64, INDIRECT, 0)],
        "a loop of one": [(BUFFERS_GUEST, 44, NEXT, 0)],
        "a loop of two": [(BUFFERS_GUEST, 44, NEXT, 1), (BUFFERS_GUEST, 44, NEXT, 0)],
        "next outside of the table": [(BUFFERS_GUEST, 44, NEXT, 128)],
        "next far outside of the table": [(BUFFERS_GUEST, 44, NEXT, 65535)],
        "as long as the ring": [(BUFFERS_GUEST, 1, NEXT, n + 1) for n in range(127)] + [(BUFFERS_GUEST, 1, 0, 0)],
    }


def assert_alive(guest: Guest, host: HostProgram, sock: socket.socket, old: Stream) -> None:
    """The old stream still works, and a new one can be had."""
    old.write(b"still here")
    assert sock.recv(100) == b"still here"
    sock, stream = call_guest(host, guest, 4242)
    sock.sendall(b"new")
    assert stream.take(3) == b"new"


@pytest.mark.parametrize("name", bad_tx_chains())
def test_a_bad_chain_to_send_is_given_back_and_dropped(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess, name: str
) -> None:
    sock, stream = call_guest(host, plain_guest)
    plain_guest.until(lambda: not plain_guest.tx.chains)
    chain = bad_tx_chains()[name]
    plain_guest.tx.free = list(range(len(chain), 128)) or list(range(1, 128))
    returned = plain_guest.tx.used_index[1]
    describe(plain_guest.tx, *chain)
    plain_guest.tx.kick()
    plain_guest.until(lambda: plain_guest.tx.used_index[1] == (returned + 1) & 0xFFFF)
    assert plain_guest.tx.completed() == [(0, 0)]
    assert_alive(plain_guest, host, sock, stream)
    status, said = device.end()
    assert (status, said.count("\n")) == (0, 1)
    assert said.startswith("pyrune-vsock: a packet of the guest was dropped: ")


def test_a_head_outside_of_the_table_is_passed_over(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    plain_guest.tx.offer(128)
    plain_guest.tx.offer(65535)
    plain_guest.tx.kick()
    assert_alive(plain_guest, host, sock, stream)


@pytest.mark.parametrize(
    "piece",
    [
        Piece(SPARE, RX_BUFFER),
        Piece(SPARE, 43, True),
        Piece(SPARE, 0, True),
        Piece(0xDEAD0000, RX_BUFFER, True),
        Piece(SPARE, 0xFFFFFFFF, True),
    ],
    ids=["not writable", "no room for a header", "no room", "address in no region", "four gigabytes"],
)
def test_a_bad_receive_buffer_is_given_back_empty(device: DeviceProcess, host: HostProgram, piece: Piece) -> None:
    guest = Guest(device.sock)
    guest.post([piece])
    guest.start(buffers=40)
    guest.post([piece])
    guest.rx.kick()
    sock, stream = call_guest(host, guest)
    for _ in range(5):
        sock.sendall(b"d" * 50_000)
        assert stream.take(50_000) == b"d" * 50_000
    assert guest.returned == [[piece], [piece]]
    guest.close()


def test_receive_buffers_without_room_for_data_carry_packets_without_data(
    device: DeviceProcess, host: HostProgram
) -> None:
    guest = Guest(device.sock)
    guest.front_end.negotiate()
    small = [[Piece(SPARE + 64 * place, HEADER.size, True)] for place in range(4)]
    for pieces in small:
        guest.post(pieces)
    guest.front_end.start_rings()
    sock = host.call(b"CONNECT 7\nearly")
    stream = guest.accept()
    # Now there is data, and each of the small buffers comes back when it is tried.
    guest.until(lambda: len(guest.returned) == 4)
    assert sorted(guest.returned) == small
    guest.post_buffers(50)
    guest.rx.kick()
    assert stream.take(5) == b"early"
    sock.close()
    guest.close()


# The device may take one more buffer while the index is being changed; test_virtqueue has the exact limit.
@pytest.mark.parametrize("jump", [160, 1000, 32768, 65000])
@pytest.mark.parametrize("queue", [0, 1])
def test_an_index_that_jumps_ends_the_rings_until_the_driver_starts_them_again(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess, jump: int, queue: int
) -> None:
    sock, _ = call_guest(host, plain_guest)
    plain_guest.until(lambda: not plain_guest.tx.chains)
    ring = plain_guest.front_end.queues[queue]
    ring.available[1] = (ring.used_index[1] + jump) & 0xFFFF
    # The rx queue is looked at only when there is something for it.
    sock.sendall(b"look")
    plain_guest.tx.kick()
    wait_until_closed(sock)
    wait_until_closed(host.call(b"CONNECT 7\n"))
    assert select.select([ring.error_fd], [], [], TIMEOUT_S)[0], "QEMU was not told"
    fresh = _restart(plain_guest)
    assert_alive(fresh, host, *call_guest(host, fresh))
    fresh.close()
    status, said = device.wait()
    assert status == 0
    assert said.startswith("pyrune-vsock: the guest has broken its rings: the driver's index is ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("size", [0, 3, 100, 2048, 0xFFFFFFFF])
def test_a_ring_of_an_impossible_size_is_refused_and_a_good_one_accepted_later(
    device: DeviceProcess, host: HostProgram, size: int
) -> None:
    guest = Guest(device.sock)
    guest.front_end.negotiate()
    guest.tx.size, good = size, guest.tx.size
    if not size:
        # QEMU never starts a ring without a size; it is the one that would lose its device.
        guest.tx.size = 3
    guest.front_end.start_rings()
    guest.tx.size = good
    fresh = _restart(guest)
    call_guest(host, fresh)
    fresh.close()


def _restart(guest: Guest) -> Guest:
    """The guest reboots: QEMU stops the rings, and its new driver starts fresh ones."""
    guest.front_end.stop_ring(0)
    guest.front_end.stop_ring(1)
    fresh = Guest(guest.front_end.sock)
    fresh.post_buffers(128)
    fresh.front_end.start_rings()
    return fresh


HeaderOf = Callable[[Stream], Header]

BAD_HEADERS: dict[str, HeaderOf] = {
    "no operation": lambda s: s.packet(Op.INVALID),
    "an unknown operation": lambda s: s.packet(99),
    "a second request": lambda s: s.packet(Op.REQUEST),
    "a response to nothing": lambda s: s.packet(Op.RESPONSE),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_packet_that_does_not_fit_its_stream_resets_that_stream(
    plain_guest: Guest, host: HostProgram, name: str
) -> None:
    other_sock, other = call_guest(host, plain_guest, 8)
    sock, stream = call_guest(host, plain_guest)
    plain_guest.transmit(BAD_HEADERS[name](stream))
    stream.expect(Op.RST)
    assert read_all(sock) == b""
    assert_alive(plain_guest, host, other_sock, other)


STRAYS: dict[str, HeaderOf] = {
    "data": lambda s: s.packet(Op.RW),
    "shutdown": lambda s: s.packet(Op.SHUTDOWN),
    "credit": lambda s: s.packet(Op.CREDIT_UPDATE),
    "response": lambda s: s.packet(Op.RESPONSE),
    "datagram": lambda s: s.packet(Op.REQUEST)._replace(type=3),
    "seqpacket": lambda s: s.packet(Op.REQUEST)._replace(type=2),
    "another CID in the guest's place": lambda s: s.packet(Op.REQUEST)._replace(src_cid=17),
    "the host's CID in the guest's place": lambda s: s.packet(Op.REQUEST)._replace(src_cid=2),
    "to the guest itself": lambda s: s.packet(Op.REQUEST)._replace(dst_cid=GUEST_CID),
    "to the hypervisor": lambda s: s.packet(Op.REQUEST)._replace(dst_cid=0),
    "to a CID of 64 bits": lambda s: s.packet(Op.REQUEST)._replace(dst_cid=2**64 - 1),
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_packet_of_no_stream_is_answered_by_a_reset(plain_guest: Guest, host: HostProgram, name: str) -> None:
    host.listen(80)
    sent = STRAYS[name](Stream(plain_guest, 700, 80))
    # The driver in these tests insists that every packet is for its own CID; this one may be for whom it was from.
    answers: list[Header] = []
    plain_guest._receive = lambda raw: answers.append(Header._make(HEADER.unpack_from(raw)))  # type: ignore[method-assign]
    plain_guest.transmit(sent)
    plain_guest.until(lambda: bool(answers))
    assert answers == [Header(sent.dst_cid, sent.src_cid, sent.dst_port, sent.src_port, 0, sent.type, Op.RST, 0, 0, 0)]


def test_a_reset_is_never_answered(plain_guest: Guest, host: HostProgram) -> None:
    Stream(plain_guest, 700, 80).send(Op.RST)
    call_guest(host, plain_guest)
    assert plain_guest.strays == []


def test_a_guest_that_sends_more_than_its_credit_loses_the_stream(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    sock, stream = call_guest(host, plain_guest)
    other_sock, other = call_guest(host, plain_guest, 8)
    for _ in range(40):
        stream.send(Op.RW, b"x" * 60_000)
    stream.expect(Op.RST)
    assert device.status_kib("RssAnon") < 64 * 1024
    assert len(read_all(sock)) < 40 * 60_000
    assert_alive(plain_guest, host, other_sock, other)


def test_a_guest_that_sends_data_after_its_shutdown_loses_the_stream(plain_guest: Guest, host: HostProgram) -> None:
    _, stream = call_guest(host, plain_guest)
    stream.send(Op.SHUTDOWN, flags=2)
    stream.send(Op.RW, b"once more")
    stream.expect(Op.RST)


def test_a_length_beyond_the_buffers_drops_the_packet(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    plain_guest.transmit(stream.packet(Op.RW, length=100), b"only this")
    plain_guest.transmit(stream.packet(Op.RW, length=0xFFFFFFFF), b"only this")
    assert_alive(plain_guest, host, sock, stream)


def test_bytes_beyond_the_length_are_not_sent(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    plain_guest.transmit(stream.packet(Op.RW, length=4), b"this and no more")
    stream.sent += 4
    stream.write(b".")
    stream.send(Op.SHUTDOWN, flags=2)
    assert read_all(sock) == b"this."


def test_counters_that_make_no_sense_give_no_credit(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    sock.sendall(b"a")
    assert stream.take(1) == b"a"
    # More forwarded than was ever sent.
    plain_guest.transmit(stream.packet(Op.CREDIT_UPDATE)._replace(buf_alloc=1000, fwd_cnt=5000))
    plain_guest.until(lambda: not plain_guest.tx.chains)
    sock.sendall(b"b")
    stream.expect(Op.CREDIT_REQUEST)
    assert not stream.received
    stream.buf_alloc = BUF_ALLOC
    stream.send(Op.CREDIT_UPDATE)
    assert stream.take(1) == b"b"


def test_a_header_may_be_cut_into_single_bytes(device: DeviceProcess, host: HostProgram) -> None:
    guest = Guest(device.sock)
    guest.front_end.negotiate()
    guest.post([Piece(SPARE + n, 1, True) for n in range(60)])
    guest.front_end.start_rings()
    sock = host.call(b"CONNECT 7\n")
    guest.until(lambda: bool(guest.requests))
    request = guest.requests.popleft()
    stream = Stream(guest, request.dst_port, request.src_port)
    guest.streams[7, stream.host_port] = stream
    raw = HEADER.pack(*stream.packet(Op.RESPONSE))
    for n, byte in enumerate(raw):
        guest.memory.at(BUFFERS_GUEST + 2 * n, 1)[:] = struct.pack("B", byte)
    guest.tx.add([Piece(BUFFERS_GUEST + 2 * n, 1) for n in range(len(raw))])
    guest.tx.kick()
    assert sock.recv(3) == b"OK "
    sock.sendall(b"0123456789" * 4)
    assert stream.take(40) == b"0123456789" * 4
    guest.close()


def test_a_guest_can_fill_only_so_much_of_the_log(plain_guest: Guest, host: HostProgram, device: DeviceProcess) -> None:
    for _ in range(20):
        for _ in range(50):
            plain_guest.tx.add([Piece(0xDEAD0000, 44)])
        plain_guest.tx.kick()
        plain_guest.until(lambda: not plain_guest.tx.chains)
    call_guest(host, plain_guest)
    status, said = device.end()
    assert (status, said.count("\n")) == (0, 100)
    assert said.endswith("nothing more will be said about what the guest does\n")
