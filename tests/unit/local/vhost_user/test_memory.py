"""Guest memory: every address is in one region, or refused."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.local.vhost_user.memory import BadAddress, GuestMemory, map_memory_table
from pyrune.local.vhost_user.message import MEMORY_REGION, MEMORY_TABLE, Message, ProtocolError, Request
from tests.unit.local.front_end import (
    BUFFERS_GUEST,
    BUFFERS_USER,
    MIB,
    RINGS_GUEST,
    RINGS_SIZE,
    RINGS_USER,
    Memory,
)

SIZE = MIB


@pytest.fixture
def memory() -> Iterator[Memory]:
    shared = Memory(SIZE)
    yield shared
    shared.close()


def table(*regions: tuple[int, int, int, int], fds: list[int], count: int | None = None) -> Message:
    payload = MEMORY_TABLE.pack(len(regions) if count is None else count, 0)
    payload += b"".join(MEMORY_REGION.pack(*region) for region in regions)
    return Message(Request.SET_MEM_TABLE, 1, payload, fds)


def mapped(memory: Memory) -> GuestMemory:
    return map_memory_table(Message(Request.SET_MEM_TABLE, 1, memory.table(), [memory.fd, memory.fd]))


def test_both_addresses_lead_to_the_same_bytes(memory: Memory) -> None:
    guest = mapped(memory)
    guest.at_guest_address(BUFFERS_GUEST + 10, 5)[:] = b"hello"
    assert bytes(guest.at_user_address(BUFFERS_USER + 10, 5)) == b"hello"
    assert bytes(memory.at(BUFFERS_GUEST + 10, 5)) == b"hello"
    guest.at_user_address(RINGS_USER, 3)[:] = b"abc"
    assert bytes(guest.at_guest_address(RINGS_GUEST, 3)) == b"abc"


@given(
    address=st.integers(0, 2**64 - 1) | st.integers(BUFFERS_GUEST - 9, BUFFERS_GUEST + SIZE + 9),
    length=st.integers(0, 2**32),
)
def test_a_view_is_exactly_what_was_asked_for_or_nothing(address: int, length: int) -> None:
    shared = Memory(SIZE)
    guest = mapped(shared)
    fits = any(
        start <= address and address + length <= start + size
        for start, size in ((RINGS_GUEST, RINGS_SIZE), (BUFFERS_GUEST, SIZE))
    )
    if fits:
        assert len(guest.at_guest_address(address, length)) == length
    else:
        with pytest.raises(BadAddress):
            guest.at_guest_address(address, length)
    shared.close()


def test_a_range_across_two_regions_is_refused(memory: Memory) -> None:
    fds = [memory.fd, memory.fd]
    guest = map_memory_table(table((0, 4096, 0, 0), (4096, 4096, 4096, 4096), fds=fds))
    assert len(guest.at_guest_address(0, 4096)) == 4096
    with pytest.raises(BadAddress):
        guest.at_guest_address(4095, 2)
    with pytest.raises(BadAddress):
        guest.at_user_address(4095, 2)


def test_views_outlive_their_table(memory: Memory) -> None:
    guest = mapped(memory)
    view = guest.at_guest_address(BUFFERS_GUEST, 5)
    del guest
    memory.at(BUFFERS_GUEST, 5)[:] = b"alive"
    assert bytes(view) == b"alive"


def test_no_regions_are_no_memory() -> None:
    with pytest.raises(BadAddress):
        map_memory_table(table(fds=[])).at_guest_address(0, 1)


def test_descriptors_stay_with_the_message_and_mappings_go_with_their_table(memory: Memory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    message = table((0, 4096, 0, 0), fds=[memory.fd])
    guest = map_memory_table(message)
    assert message.fds == [memory.fd]
    del guest
    assert len(os.listdir("/proc/self/fd")) == before


END = RINGS_SIZE + SIZE


@pytest.mark.parametrize(
    ("region", "problem"),
    [
        ((0, 0, 0, 0), "ends at 0x0"),
        ((0, END + 1, 0, 0), "ends at 0x200001, its file at 0x200000"),
        ((0, END, 0, 1), "ends at 0x200001, its file at 0x200000"),
        ((0, 2**64 - 1, 0, 2**64 - 1), "its file at 0x200000"),
        ((2**64 - 4095, 4096, 0, 0), "ends beyond the address space"),
        ((0, 4096, 2**64 - 4095, 0), "ends beyond the address space"),
    ],
)
def test_a_region_that_its_file_does_not_hold_is_an_error(
    memory: Memory, region: tuple[int, int, int, int], problem: str
) -> None:
    with pytest.raises(ProtocolError, match=problem):
        map_memory_table(table(region, fds=[memory.fd]))


def test_a_region_at_the_very_top_is_allowed(memory: Memory) -> None:
    guest = map_memory_table(table((2**64 - 4096, 4096, 2**64 - 4096, 0), fds=[memory.fd]))
    assert len(guest.at_guest_address(2**64 - 1, 1)) == 1
    with pytest.raises(BadAddress):
        guest.at_guest_address(2**64 - 1, 2)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/"])
def test_only_files_are_mapped(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(ProtocolError, match="not shared from a file"):
        map_memory_table(table((0, 4096, 0, 0), fds=[fd]))
    os.close(fd)


def test_a_file_that_may_not_be_written_is_an_error() -> None:
    fd = os.open(__file__, os.O_RDONLY)
    with pytest.raises(ProtocolError, match="cannot be mapped"):
        map_memory_table(table((0, 16, 0, 0), fds=[fd]))
    os.close(fd)


@pytest.mark.parametrize("count", [0, 2, 0xFFFFFFFF])
def test_a_count_that_does_not_fit_the_message_is_an_error(memory: Memory, count: int) -> None:
    with pytest.raises(ProtocolError, match=f"SET_MEM_TABLE says {count} regions"):
        map_memory_table(table((0, 4096, 0, 0), fds=[memory.fd], count=count))


@pytest.mark.parametrize("fds", [0, 2])
def test_as_many_descriptors_as_regions_are_needed(memory: Memory, fds: int) -> None:
    with pytest.raises(ProtocolError, match=f"and {fds} descriptors"):
        map_memory_table(table((0, 4096, 0, 0), fds=[memory.fd] * fds))


@pytest.mark.parametrize("length", range(MEMORY_TABLE.size + MEMORY_REGION.size))
def test_a_table_cut_at_any_offset_is_an_error(memory: Memory, length: int) -> None:
    whole = table((0, 4096, 0, 0), fds=[memory.fd])
    with pytest.raises(ProtocolError):
        map_memory_table(Message(Request.SET_MEM_TABLE, 1, whole.payload[:length], [memory.fd]))
