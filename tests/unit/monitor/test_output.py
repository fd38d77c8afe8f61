"""The way to standard output: what came in goes out, in order, in bounded memory, and blocks nobody."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator

import pytest

from pyrune.monitor.output import HIGH_WATER_BYTES, LOW_WATER_BYTES, OutputWriter
from pyrune.reactor import Reactor
from tests.support.programs import TIMEOUT_S
from tests.support.rounds import run_until


class Output:
    """A writer to a pipe, its reactor, and how often it was said that there is room again."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.reactor = Reactor()
        self.rooms = 0
        self.drained = False
        self.writer = OutputWriter(self.write_end, self.reactor, self._on_room)

    def _on_room(self) -> None:
        self.rooms += 1

    def fill(self, chunk: bytes = b"x" * 4096) -> int:
        """Write until it is full; how many bytes that were."""
        written = len(chunk)
        while self.writer.write(chunk):
            written += len(chunk)
        return written

    def await_room(self) -> None:
        expected = self.rooms + 1
        run_until(self.reactor, lambda: self.rooms >= expected)

    def drain(self) -> None:
        """Wait until all is written; nothing can be written afterwards."""
        if not self.drained:
            self.drained = True
            calls: list[None] = []
            self.writer.when_drained(lambda: calls.append(None))
            run_until(self.reactor, lambda: bool(calls))

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            content += os.read(self.read_end, size - len(content))
        return content


@pytest.fixture
def output() -> Iterator[Output]:
    made = Output()
    yield made
    # A thread that is stalled ends with its reader.
    with contextlib.suppress(OSError):
        os.close(made.read_end)
    made.drain()
    made.reactor.close()
    os.close(made.write_end)


def test_bytes_come_out_as_they_went_in(output: Output) -> None:
    chunks = [f"chunk {number}\n".encode() * (number % 7 + 1) for number in range(1000)]
    for chunk in chunks:
        assert output.writer.write(chunk)
    output_size = len(b"".join(chunks))
    assert output.read(output_size) == b"".join(chunks)
    output.drain()
    assert output.writer.written_bytes == output_size


def test_the_descriptor_stays_blocking(output: Output) -> None:
    flags = fcntl.fcntl(output.write_end, fcntl.F_GETFL)
    output.fill()
    assert fcntl.fcntl(output.write_end, fcntl.F_GETFL) == flags
    assert not flags & os.O_NONBLOCK


def test_a_stalled_reader_costs_bounded_memory_and_nothing_is_lost(output: Output) -> None:
    written = output.fill()
    # A pipe holds 64 KiB; one chunk is in the writer's hands.
    assert HIGH_WATER_BYTES <= written <= HIGH_WATER_BYTES + 65536 + 2 * 4096
    assert not output.writer.write(b"more")
    assert output.rooms == 0
    assert output.read(written + 4) == b"x" * written + b"more"
    output.await_room()
    assert output.rooms == 1
    assert output.writer.write(b"y")
    assert output.read(1) == b"y"


def test_who_goes_on_writing_after_full_still_hears_of_room(output: Output) -> None:
    written = output.fill()
    between = (LOW_WATER_BYTES + HIGH_WATER_BYTES) // 2
    output.read(written - between)
    # Still above the low mark: whoever waits has not been called, and this one is told to wait as well.
    assert not output.writer.write(b"z")
    output.read(between + 1)
    output.await_room()
    assert output.rooms == 1


def test_room_is_announced_once_for_each_time_it_was_full(output: Output) -> None:
    for expected in (1, 2, 3):
        output.read(output.fill())
        output.await_room()
        assert output.rooms == expected


def test_a_closed_reader_ends_nothing(output: Output) -> None:
    os.close(output.read_end)
    for _ in range(200):
        if not output.writer.write(b"x" * 4096):
            output.await_room()
    output.drain()
    assert output.writer.written_bytes == 0


def test_a_reader_that_closes_while_the_queue_is_full_makes_room(output: Output) -> None:
    output.fill()
    os.close(output.read_end)
    output.await_room()
    assert output.rooms == 1
    assert output.writer.write(b"x" * HIGH_WATER_BYTES)


def test_drained_is_called_after_the_last_byte(output: Output) -> None:
    output.writer.write(b"x" * 100_000)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(output.read(100_000)))
    reader.start()
    output.drain()
    assert output.writer.written_bytes == 100_000
    reader.join(TIMEOUT_S)
    assert received == [b"x" * 100_000]


def test_an_empty_queue_is_drained_at_once(output: Output) -> None:
    output.drain()


def test_an_output_that_somebody_has_set_non_blocking_loses_nothing(output: Output) -> None:
    os.set_blocking(output.write_end, False)
    written = output.fill()
    assert output.read(written) == b"x" * written
    assert not os.get_blocking(output.write_end)
