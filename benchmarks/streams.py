"""Bytes between this machine and an enclave, beside the same program on the same machine over a unix socket."""

from __future__ import annotations

import socket
from collections.abc import Callable

from benchmarks.figures import Pairs, Series, mib_per_s, microseconds
from benchmarks.guest import Connect, serving_enclave, serving_program
from benchmarks.repetition import duration_s, in_turns
from benchmarks.report import PAIR_COLUMNS, Table, pair_row
from benchmarks.workshop import Workshop

STREAM_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20
PINGS = 1000
LIMIT_S = 20.0


def measure(workshop: Workshop) -> Table:
    with serving_enclave(workshop) as enclave, serving_program(workshop) as here:

        def compare(measurement: Callable[[Connect], float]) -> Pairs:
            return in_turns(
                lambda: measurement(enclave), lambda: measurement(here), most=workshop.turns, limit_s=LIMIT_S
            )

        sent, received, pinged = compare(_send), compare(_receive), compare(_ping)
    size = f"{STREAM_BYTES >> 20} MiB"
    rows = [
        pair_row(f"host to guest, {size}", as_rates(sent), mib_per_s),
        pair_row(f"guest to host, {size}", as_rates(received), mib_per_s),
        pair_row(f"round trip of one byte, median of {PINGS}", pinged, microseconds),
    ]
    return Table("Streams through vsock, beside a unix socket to the same program", PAIR_COLUMNS, rows)


def as_rates(pairs: Pairs) -> Pairs:
    """Bytes a second from the seconds that STREAM_BYTES took."""
    ours, bare = (Series(tuple(STREAM_BYTES / value for value in side.values)) for side in (pairs.ours, pairs.bare))
    return Pairs(ours, bare)


def _send(connect: Connect) -> float:
    """The clock stops when the other end has said that it has everything."""
    chunk = memoryview(bytes(CHUNK_BYTES))

    def send(sock: socket.socket) -> None:
        sock.sendall(b"d")
        for _ in range(STREAM_BYTES // CHUNK_BYTES):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
        if sock.recv(1) == b"":
            raise ConnectionError("the stream broke")

    with connect() as sock:
        return duration_s(lambda: send(sock))


def _receive(connect: Connect) -> float:
    chunk = memoryview(bytearray(CHUNK_BYTES))

    def receive(sock: socket.socket) -> None:
        sock.sendall(b"s" + STREAM_BYTES.to_bytes(8, "little"))
        received = 0
        while size := sock.recv_into(chunk):
            received += size
        if received != STREAM_BYTES:
            raise ConnectionError(f"{received} of {STREAM_BYTES} bytes came")

    with connect() as sock:
        return duration_s(lambda: receive(sock))


def _ping(connect: Connect) -> float:
    def ping(sock: socket.socket) -> None:
        sock.sendall(b"p")
        if sock.recv(1) != b"p":
            raise ConnectionError("what came back is not what was sent")

    with connect() as sock:
        sock.sendall(b"e")
        return Series(tuple(duration_s(lambda: ping(sock)) for _ in range(PINGS))).median
