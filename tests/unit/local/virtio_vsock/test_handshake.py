"""The CONNECT line, and not a byte more."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.local.virtio_vsock.handshake import MAX_LINE, BadHandshake, answer, parse_connect, take_port


@pytest.mark.parametrize(
    ("line", "port"),
    [
        (b"CONNECT 1\n", 1),
        (b"connect 9000\n", 9000),
        (b"CONNECT 0\n", 0),
        (b"CONNECT 0000000052\n", 52),
        (b"CONNECT 4294967295\n", 4294967295),
    ],
)
def test_a_line_names_a_port(line: bytes, port: int) -> None:
    assert parse_connect(line) == port


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"CONNECT\n", b"CONNECT \n", b"CONNECT x\n", b"CONNECT 1", b"CONNECT 1\r\n", b"CONNECT  1\n"),
        *(b"CONNECT -1\n", b"CONNECT +1\n", b"CONNECT 1_0\n", b"CONNECT 4294967296\n", b"CONNECT 99999999999\n"),
        *(b" CONNECT 1\n", b"CONNECT 1 2\n", b"OK 1\n", b"CONNECT 1\n\n", "CONNECT \u0661\n".encode()),
    ],
)
def test_anything_else_is_no_line(line: bytes) -> None:
    with pytest.raises(BadHandshake):
        parse_connect(line)


@given(st.integers(0, 2**32 - 1))
def test_every_port_fits_a_line(port: int) -> None:
    line = b"CONNECT %d\n" % port
    assert len(line) < MAX_LINE
    assert parse_connect(line) == port


@given(st.binary(max_size=2 * MAX_LINE))
def test_whatever_a_caller_writes_it_is_a_port_or_an_error_or_not_yet_a_line(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        ours.sendall(data + b"")
        try:
            port = take_port(theirs)
        except BadHandshake:
            return
        assert port is not None or (b"\n" not in data and len(data) < MAX_LINE)


def test_a_line_is_taken_off_the_socket_only_when_it_is_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        assert take_port(theirs) is None
        ours.sendall(b"CONNECT ")
        assert take_port(theirs) is None
        ours.sendall(b"77\nCONNECT 1\n")
        assert take_port(theirs) == 77
        assert theirs.recv(100) == b"CONNECT 1\n"


def test_a_caller_that_is_gone_or_says_nothing_of_use_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        ours.sendall(b"x" * MAX_LINE)
        with pytest.raises(BadHandshake):
            take_port(theirs)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        theirs.setblocking(False)
        with pytest.raises(BadHandshake):
            take_port(theirs)


def test_the_answer_names_our_port() -> None:
    assert answer(1 << 30) == b"OK 1073741824\n"
