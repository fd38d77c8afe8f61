"""What single parts of the benchmarks compute from what they read."""

from __future__ import annotations

import os
import socket

import pytest

from benchmarks.console import Silence, drain, wait_for
from benchmarks.creation import PHASES, WHOLE, phase_durations, phase_rows
from benchmarks.figures import Pairs
from benchmarks.host import processor
from benchmarks.memory import kib_field
from benchmarks.streams import STREAM_BYTES, as_rates
from benchmarks.workshop import ProgramFailed, run


def test_a_phase_lasts_from_the_end_of_the_one_before() -> None:
    assert phase_durations([1.0, 1.5, 4.0]) == [1.0, 0.5, 2.5]


def test_a_clock_that_lags_behind_gives_no_negative_time() -> None:
    assert phase_durations([1.0, 0.998, 2.0])[1] == 0.0


def test_every_phase_of_create_has_a_row_and_the_last_is_the_whole() -> None:
    moments = [[float(number + each) for number in range(1, len(PHASES) + 1)] for each in (0, 1, 2)]
    rows = phase_rows(moments)
    assert [row[0] for row in rows] == [*PHASES, WHOLE]
    assert rows[0][1:] == ("2000 ms (1000 ms to 3000 ms)", "2000 ms")
    assert rows[1][1:] == ("1000 ms (1000 ms to 1000 ms)", "3000 ms")


def test_rates_are_bytes_in_a_second() -> None:
    rates = as_rates(Pairs.of([(2.0, 0.5)]))
    assert rates.ours.values == (STREAM_BYTES / 2,)
    assert rates.ratios.values == (0.25,)


def test_a_field_of_proc_is_found_by_its_whole_name() -> None:
    text = "Pss_Dirty:   12 kB\nPss:        3456 kB\nRssAnon:\t  78 kB\n"
    assert (kib_field(text, "Pss"), kib_field(text, "RssAnon")) == (3456, 78)
    with pytest.raises(KeyError):
        kib_field(text, "Swap")


def test_the_processors_name_is_read_where_there_is_one() -> None:
    assert processor("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: fpu\n") == "Some CPU @ 2 GHz"
    assert processor("processor\t: 0\n") == os.uname().machine


def test_a_line_is_found_though_it_comes_in_pieces() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        for piece in (b"boot\r\nhel", b"lo\r\nmore"):
            writer.send(piece)
        wait_for(reader.fileno(), b"hello", timeout_s=10)
        writer.close()
        drain(reader.fileno(), timeout_s=10)
        assert reader.recv(1) == b""


def test_a_line_that_never_comes_is_told_with_what_came() -> None:
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.send(b"something else")
        writer.close()
        with pytest.raises(Silence, match="something else"):
            wait_for(reader.fileno(), b"hello", timeout_s=10)


def test_a_program_that_fails_is_told_with_its_complaint() -> None:
    run(["true"])
    with pytest.raises(ProgramFailed, match="status 3: no such thing"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"])
