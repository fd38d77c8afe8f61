"""One ring, from both sides."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.local.vhost_user.memory import GuestMemory, map_memory_table
from pyrune.local.vhost_user.message import Message, Request
from pyrune.local.vhost_user.virtqueue import (
    DESCRIPTOR,
    MAX_CHAIN,
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_USED_F_NO_NOTIFY,
    BadChain,
    BrokenRing,
    RingAddresses,
    Virtqueue,
)
from tests.unit.local.front_end import BUFFERS_GUEST, MIB, RINGS_SIZE, RINGS_USER, DriverQueue, Memory, Piece

SIZE = 8


class Ring:
    """Both sides of a ring of SIZE descriptors, in one process."""

    def __init__(self, size: int = SIZE) -> None:
        self.memory = Memory(MIB)
        self.driver = DriverQueue(self.memory, 0, size)
        self.mapped = mapped(self.memory)
        self.interrupts = 0

    def queue(self, next_available: int = 0) -> Virtqueue:
        addresses = RingAddresses(*self.driver.addresses())
        return Virtqueue(self.mapped, self.driver.size, addresses, next_available, self.interrupt)

    def interrupt(self) -> None:
        self.interrupts += 1

    def close(self) -> None:
        self.driver.close()
        self.memory.close()


def mapped(memory: Memory) -> GuestMemory:
    return map_memory_table(Message(Request.SET_MEM_TABLE, 1, memory.table(), [memory.fd, memory.fd]))


@pytest.fixture
def ring() -> Iterator[Ring]:
    both = Ring()
    yield both
    both.close()


def test_the_ring_is_laid_out_as_virtio_says(ring: Ring) -> None:
    queue = ring.queue()
    # A chain of 3 -> 5: 16 bytes to read at ...0100, 32 bytes to read at ...0200 (VIRTIO 1.2, 2.7.5 and 2.7.6).
    ring.memory.at(3 * 16, 16)[:] = bytes.fromhex("0001004000000000 10000000 0100 0500".replace(" ", ""))
    ring.memory.at(5 * 16, 16)[:] = bytes.fromhex("0002004000000000 20000000 0000 0000".replace(" ", ""))
    ring.memory.at(0x8000, 6)[:] = bytes.fromhex("0000 0100 0300".replace(" ", ""))
    assert queue.pending() == 1
    head, buffers = queue.peek(0, writable=False)
    assert (head, [len(buffer) for buffer in buffers]) == (3, [16, 32])
    ring.memory.at(BUFFERS_GUEST + 0x200, 2)[:] = b"ok"
    assert bytes(buffers[1][:2]) == b"ok"
    queue.complete(head, 7)
    queue.publish()
    # 2.7.8: flags, idx, then id and len.
    assert bytes(ring.memory.at(0xC000, 12)) == bytes.fromhex("0000 0100 03000000 07000000".replace(" ", ""))
    assert ring.interrupts == 1


def test_chains_come_and_go_for_more_than_an_index_can_count(ring: Ring) -> None:
    queue = ring.queue()
    for number in range(66_000):
        ring.driver.add([Piece(BUFFERS_GUEST + number, 1)])
        assert queue.pending() == 1
        queue.complete(queue.peek(0, writable=False).head, number)
        queue.publish()
        ((_, written),) = ring.driver.completed()
        assert written == number


def test_chains_can_be_seen_ahead_and_are_completed_in_order(ring: Ring) -> None:
    queue = ring.queue()
    heads = [ring.driver.add([Piece(BUFFERS_GUEST + 64 * n, 64, True)]) for n in range(4)]
    assert queue.pending() == 4
    assert [queue.peek(n, writable=True).head for n in range(4)] == heads
    queue.complete(heads[0], 1)
    assert queue.pending() == 3
    assert queue.peek(0, writable=True).head == heads[1]


def test_nothing_is_shown_before_it_is_published_and_nothing_twice(ring: Ring) -> None:
    queue = ring.queue()
    queue.publish()
    assert ring.interrupts == 0
    for _ in range(3):
        ring.driver.add([Piece(BUFFERS_GUEST, 1)])
    for _ in range(3):
        queue.complete(queue.peek(0, writable=False).head, 0)
    assert ring.driver.completed() == []
    queue.publish()
    queue.publish()
    assert len(ring.driver.completed()) == 3
    assert ring.interrupts == 1


def test_a_driver_that_wants_no_interrupts_gets_none(ring: Ring) -> None:
    queue = ring.queue()
    ring.driver.available[0] = VRING_AVAIL_F_NO_INTERRUPT
    ring.driver.add([Piece(BUFFERS_GUEST, 1)])
    queue.complete(queue.peek(0, writable=False).head, 0)
    queue.publish()
    assert len(ring.driver.completed()) == 1
    assert ring.interrupts == 0


def test_kicks_are_suppressed_and_asked_for_by_a_flag(ring: Ring) -> None:
    queue = ring.queue()
    assert ring.driver.used_index[0] == 0
    queue.suppress_kicks()
    assert ring.driver.used_index[0] == VRING_USED_F_NO_NOTIFY
    queue.ask_for_kicks()
    assert ring.driver.used_index[0] == 0


def test_a_ring_that_goes_on_keeps_its_places(ring: Ring) -> None:
    first = ring.queue()
    for _ in range(3):
        ring.driver.add([Piece(BUFFERS_GUEST, 1)])
        first.complete(first.peek(0, writable=False).head, 0)
    first.suppress_kicks()
    first.publish()
    assert len(ring.driver.completed()) == 3
    second = ring.queue(first.next_available)
    second.ask_for_kicks()
    assert ring.driver.used_index[0] == 0
    ring.driver.add([Piece(BUFFERS_GUEST, 1)])
    assert second.pending() == 1
    second.complete(second.peek(0, writable=False).head, 9)
    second.publish()
    assert [written for _, written in ring.driver.completed()] == [9]


@pytest.mark.parametrize("ahead", [SIZE + 1, 100, 0x8000, 0xFFFF])
@pytest.mark.parametrize("start", [0, 5, 0xFFFF])
def test_an_index_further_ahead_than_the_ring_is_long_breaks_the_ring(ring: Ring, ahead: int, start: int) -> None:
    queue = ring.queue(start)
    ring.driver.available[1] = (start + SIZE) & 0xFFFF
    assert queue.pending() == SIZE
    ring.driver.available[1] = (start + ahead) & 0xFFFF
    with pytest.raises(BrokenRing, match=f"the driver's index is {ahead} ahead in a ring of 8"):
        queue.pending()


@pytest.mark.parametrize("size", [0, 3, 6, 1000, 2048, 2**32 - 1])
def test_a_ring_of_another_size_than_a_power_of_two_is_refused(size: int) -> None:
    memory = Memory(MIB)
    with pytest.raises(BrokenRing, match=f"a ring of {size} descriptors is not a power of two up to 1024"):
        Virtqueue(mapped(memory), size, RingAddresses(RINGS_USER, RINGS_USER, RINGS_USER), 0, lambda: None)
    memory.close()


@pytest.mark.parametrize("size", [1, 1024])
def test_the_smallest_and_the_largest_ring_work(size: int) -> None:
    ring = Ring(size)
    queue = ring.queue()
    for _ in range(size):
        ring.driver.add([Piece(BUFFERS_GUEST, 1)])
    assert queue.pending() == size
    assert len({queue.peek(offset, writable=False).head for offset in range(size)}) == size
    ring.close()


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (RINGS_USER + 1, "not aligned"),
        (0, "cannot be reached"),
        (RINGS_USER + RINGS_SIZE - 16, "cannot be reached"),
        (2**64 - 16, "cannot be reached"),
    ],
)
def test_a_ring_at_an_impossible_place_is_refused(ring: Ring, part: int, address: int, problem: str) -> None:
    addresses = list(ring.driver.addresses())
    addresses[part] = address
    with pytest.raises(BrokenRing, match=problem):
        Virtqueue(ring.mapped, SIZE, RingAddresses(*addresses), 0, lambda: None)


def test_a_ring_is_found_again_in_a_new_memory_table(ring: Ring) -> None:
    queue = ring.queue()
    other = Memory(MIB)
    queue.place(mapped(other), RingAddresses(*ring.driver.addresses()))
    other.at(0x8000, 4)[:] = bytes.fromhex("00000100")
    assert queue.pending() == 1
    other.close()


def test_a_chain_as_long_as_allowed_is_walked_and_a_longer_one_is_not() -> None:
    ring = Ring(1024)
    queue = ring.queue()
    ring.driver.add([Piece(BUFFERS_GUEST, 1)] * MAX_CHAIN)
    ring.driver.add([Piece(BUFFERS_GUEST, 1)] * (MAX_CHAIN + 1))
    assert len(queue.peek(0, writable=False).buffers) == MAX_CHAIN
    with pytest.raises(BadChain, match="too long, or a loop"):
        queue.peek(1, writable=False)
    ring.close()


def test_a_ring_shorter_than_the_longest_chain_limits_it_too(ring: Ring) -> None:
    queue = ring.queue()
    for index in range(SIZE):
        ring.driver.describe(index, Piece(BUFFERS_GUEST, 1), (index + 1) % SIZE)
    ring.driver.offer(0)
    with pytest.raises(BadChain, match="too long, or a loop"):
        queue.peek(0, writable=False)


descriptors = st.builds(
    DESCRIPTOR.pack,
    st.integers(0, 2**64 - 1) | st.integers(BUFFERS_GUEST - 2, BUFFERS_GUEST + MIB),
    st.integers(0, 2**32 - 1) | st.integers(0, 4096),
    st.integers(0, 7) | st.integers(0, 2**16 - 1),
    st.integers(0, SIZE) | st.integers(0, 2**16 - 1),
)


@settings(max_examples=300)
@given(
    table=st.lists(descriptors, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.integers(0, SIZE) | st.integers(0, 2**16 - 1), min_size=SIZE, max_size=SIZE),
    index=st.integers(0, SIZE + 1) | st.integers(0, 2**16 - 1),
    writable=st.booleans(),
)
def test_whatever_a_driver_writes_a_chain_is_good_or_bad_and_never_more_than_the_guests_memory(
    table: list[bytes], heads: list[int], index: int, writable: bool
) -> None:
    ring = Ring()
    queue = ring.queue()
    ring.driver.descriptors[:] = b"".join(table)
    for slot, head in enumerate(heads):
        ring.driver.available[2 + slot] = head
    ring.driver.available[1] = index
    try:
        waiting = queue.pending()
    except BrokenRing:
        assert index > SIZE
        return
    finally:
        ring.close()
    returned = 0
    for _ in range(waiting):
        try:
            head, buffers = queue.peek(0, writable=writable)
        except BadChain as exc:
            head, buffers = exc.head, []
        assert all(len(buffer) <= MIB for buffer in buffers)
        returned += head < SIZE
        queue.complete(head, 0)
    queue.publish()
    assert queue.pending() == 0
    assert ring.driver.used_index[1] == returned
