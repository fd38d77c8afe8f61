"""Seeing a panic in a console's bytes, however they are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.monitor.kernel_panic import PanicWatch

# Lines of Linux 6.1 and 6.12, with and without CONFIG_PRINTK_TIME and CONFIG_PRINTK_CALLER.
REASON = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
BEGINNINGS = [
    "",
    "[    1.234567] ",
    "[12345.000001] ",
    "[    1.234567][    T1] ",
    "<0>[    1.234567] ",
]
END = "---[ end " + REASON + " ]---"


def watched(*chunks: bytes) -> PanicWatch:
    watch = PanicWatch()
    for chunk in chunks:
        watch.feed(chunk)
    return watch


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_panic_is_seen_at_its_first_line_and_over_at_its_last(beginning: str) -> None:
    first = f"before\r\n{beginning}{REASON}\r\n".encode()
    watch = watched(first)
    assert (watch.reason, watch.over) == (REASON, False)
    watch.feed(f"{beginning}CPU: 0 PID: 1\r\n{beginning}{END}\r\n".encode())
    assert (watch.reason, watch.over) == (REASON, True)


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_cut_anywhere_it_is_seen_all_the_same(beginning: str) -> None:
    text = f"before\r\n{beginning}{REASON}\r\n{beginning}{END}\r\n".encode()
    for cut in range(len(text)):
        watch = watched(text[:cut], text[cut:])
        assert (watch.reason, watch.over) == (REASON, True)
    watch = watched(*(bytes([byte]) for byte in text))
    assert (watch.reason, watch.over) == (REASON, True)


@pytest.mark.parametrize(
    "text",
    [
        "a program says: Kernel panic - not syncing: no\n",
        "Kernel panic\n",
        "kernel panic - not syncing: x\n",
        f"{REASON}",
        f"{END}\n",
    ],
)
def test_other_lines_are_no_panic(text: str) -> None:
    watch = watched(text.encode())
    assert (watch.reason, watch.over) == ("", False)


def test_the_first_panic_is_the_reason() -> None:
    assert watched(b"Kernel panic - not syncing: 1\nKernel panic - not syncing: 2\n").reason.endswith("1")


def test_what_a_guest_puts_into_the_line_is_escaped_and_short() -> None:
    reason = watched(b"Kernel panic - not syncing: \x1b[2J\x00\xff" + b"x" * 100_000 + b"\n").reason
    assert reason.startswith("Kernel panic - not syncing: \\x1b[2J\\x00\ufffdxxx")
    assert reason.isprintable()
    assert len(reason) < 2000


def test_a_line_without_end_costs_no_memory() -> None:
    watch = watched(*[b"x" * 65536] * 100)
    assert len(watch._partial) <= 1024
    watch.feed(b"\nKernel panic - not syncing: y\n")
    assert watch.reason.endswith("y")


@given(st.lists(st.binary()))
def test_no_bytes_disturb_it(chunks: list[bytes]) -> None:
    whole = watched(b"".join(chunks))
    assert (whole.reason, whole.over) == ("", False)
    assert watched(*chunks).reason == ""
