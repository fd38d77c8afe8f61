"""Messages as they come over the socket, whole and broken."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pyrune.local.vhost_user import message
from pyrune.local.vhost_user.message import (
    HEADER,
    U64,
    VRING_ADDRESSES,
    Channel,
    Message,
    ProtocolError,
    Request,
)

# SET_VRING_ADDR of ring 1, as QEMU 7.2 writes it.
RAW = bytes.fromhex(
    "09000000"  # request
    "01000000"  # flags: version 1
    "28000000"  # 40 bytes
    "01000000 00000000"  # index, flags
    "0010008f3f7f0000 0020008f3f7f0000 0018008f3f7f0000 0000000000000000".replace(" ", "")
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Channel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs)


def received(channel: Channel) -> Message:
    got = channel.receive()
    assert got is not None
    return got


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_message_is_read_as_the_protocol_lays_it_out(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    sock.sendall(RAW)
    got = received(channel)
    assert (got.request, got.needs_reply) == (Request.SET_VRING_ADDR, False)
    assert got.unpack(VRING_ADDRESSES) == (1, 0, 0x7F3F8F001000, 0x7F3F8F002000, 0x7F3F8F001800, 0)


def test_messages_that_come_in_one_piece_are_told_apart(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    sock.sendall(RAW + HEADER.pack(Request.GET_FEATURES, 9, 0) + RAW)
    requests = [received(channel).request for _ in range(3)]
    assert requests == [Request.SET_VRING_ADDR, Request.GET_FEATURES, Request.SET_VRING_ADDR]


def test_a_message_that_comes_byte_by_byte_is_put_together(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends

    def drip() -> None:
        for byte in RAW:
            sock.sendall(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert received(channel).payload == RAW[HEADER.size :]
    thread.join()


@pytest.mark.parametrize("length", range(1, len(RAW)))
def test_a_message_cut_at_any_offset_is_an_error(ends: tuple[socket.socket, Channel], length: int) -> None:
    sock, channel = ends
    sock.sendall(RAW[:length])
    sock.close()
    with pytest.raises(ProtocolError, match="vhost-user: the socket was closed in the middle of "):
        channel.receive()


def test_a_socket_closed_between_messages_is_the_end(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    sock.sendall(RAW)
    sock.close()
    received(channel)
    assert channel.receive() is None


def test_a_message_that_is_begun_and_not_finished_is_an_error(
    ends: tuple[socket.socket, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message, "MESSAGE_TIMEOUT_S", 0.05)
    sock, theirs = socket.socketpair()
    with sock, theirs:
        sock.sendall(RAW[:20])
        with pytest.raises(ProtocolError, match="begun and not finished"):
            Channel(theirs).receive()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (HEADER.pack(5, 0, 0), "SET_MEM_TABLE has flags 0x0, which is not version 1"),
        (HEADER.pack(5, 2, 0), "SET_MEM_TABLE has flags 0x2, which is not version 1"),
        (HEADER.pack(1, 5, 0), "GET_FEATURES came as an answer, but nothing was asked"),
        (HEADER.pack(77, 1, 1025), "request 77 announces 1025 bytes, more than 1024"),
        (HEADER.pack(5, 1, 0xFFFFFFFF), "SET_MEM_TABLE announces 4294967295 bytes, more than 1024"),
    ],
)
def test_a_header_that_makes_no_sense_is_an_error(
    ends: tuple[socket.socket, Channel], header: bytes, problem: str
) -> None:
    sock, channel = ends
    sock.sendall(header + bytes(8))
    with pytest.raises(ProtocolError, match=f"^vhost-user: {problem}$"):
        channel.receive()


def test_descriptors_belong_to_their_message_until_taken(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    before = open_fds()
    socket.send_fds(sock, [HEADER.pack(Request.SET_OWNER, 1, 0)], [0, 1, 2])
    got = received(channel)
    assert open_fds() == before + 3
    assert not any(os.get_inheritable(fd) for fd in got.fds)
    with pytest.raises(ProtocolError, match="SET_OWNER came with 3 descriptors instead of 1"):
        got.take_fd()
    got.close()
    assert open_fds() == before

    socket.send_fds(sock, [HEADER.pack(Request.SET_OWNER, 1, 0)], [0])
    got = received(channel)
    fd = got.take_fd()
    got.close()
    assert open_fds() == before + 1
    os.close(fd)


@pytest.mark.parametrize("count", [9, 64, 250])
def test_too_many_descriptors_are_an_error_and_closed(ends: tuple[socket.socket, Channel], count: int) -> None:
    sock, channel = ends
    before = open_fds()
    socket.send_fds(sock, [HEADER.pack(Request.SET_OWNER, 1, 0)], [0] * count)
    with pytest.raises(ProtocolError, match="more than 8 descriptors"):
        channel.receive()
    assert open_fds() == before


def test_descriptors_that_trickle_in_with_the_payload_are_bounded_too(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    before = open_fds()
    sock.sendall(HEADER.pack(Request.SET_OWNER, 1, 40))
    for _ in range(5):
        socket.send_fds(sock, [bytes(8)], [0, 1])
    with pytest.raises(ProtocolError, match="more than 8 descriptors"):
        channel.receive()
    assert open_fds() == before


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_payload_of_another_length_is_an_error(ends: tuple[socket.socket, Channel], length: int) -> None:
    sock, channel = ends
    sock.sendall(HEADER.pack(Request.SET_FEATURES, 1, length) + bytes(length))
    with pytest.raises(ProtocolError, match=f"SET_FEATURES came with {length} bytes instead of 8"):
        received(channel).unpack(U64)


def test_an_answer_has_the_request_and_the_reply_flag(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    channel.reply(Request.GET_FEATURES, U64.pack(1 << 32))
    assert sock.recv(100) == bytes.fromhex("01000000 05000000 08000000 0000000001000000".replace(" ", ""))


def test_an_answer_to_nobody_is_no_error(ends: tuple[socket.socket, Channel]) -> None:
    sock, channel = ends
    sock.close()
    channel.reply(Request.GET_FEATURES, U64.pack(0))
    assert channel.receive() is None
