"""The conversation with QEMU, from the first question to the end; what breaks it, and what is left then."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from pyrune.local.vhost_user.message import (
    CONFIG,
    HEADER,
    U64,
    VRING_ADDRESSES,
    VRING_STATE,
    ProtocolError,
    Request,
)
from pyrune.local.vhost_user.session import FEATURES, PROTOCOL_FEATURES, VRING_NOFD_MASK, Session
from pyrune.local.vhost_user.virtqueue import BrokenRing, Virtqueue
from tests.unit.local.front_end import BUFFERS_GUEST, MIB, TIMEOUT_S, DriverQueue, FrontEnd, Memory, Piece


class Echo:
    """A device of one queue that gives every chain back, with the chain's length as what was written."""

    config = b"configur"
    queue_count = 1

    def __init__(self) -> None:
        self.resets = 0

    def serve(self, queues: list[Virtqueue]) -> bool:
        (queue,) = queues
        for _ in range(queue.pending()):
            head, buffers = queue.peek(0, writable=False)
            queue.complete(head, sum(map(len, buffers)))
        queue.publish()
        return False

    def reset(self) -> None:
        self.resets += 1


class Served:
    """A session in a thread, a front end for it, and how the session ended."""

    def __init__(self, memory: Memory) -> None:
        ours, theirs = socket.socketpair()
        self.device = Echo()
        self.said: list[str] = []
        self.ended: object = None
        self.memory = memory
        self.driver = DriverQueue(self.memory, 0, 16)
        self.front_end = FrontEnd(ours, self.memory, [self.driver])
        self._theirs = theirs
        self.session = Session(theirs, self.device, self.said.append)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                self.session.serve()
                select.select([self.session], [], [], TIMEOUT_S)
                if not self.session.dispatch():
                    self.session.finish()
                    self.ended = "closed"
                    return
        except ProtocolError as exc:
            self.ended = str(exc)
        finally:
            self.session.close()
            self._theirs.close()

    def end(self) -> object:
        """Wait until the session has ended; how."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        return self.ended

    def close(self) -> None:
        self.front_end.close()
        self.end()
        self.driver.close()

    def round_trip(self) -> None:
        self.driver.add([Piece(BUFFERS_GUEST, 5), Piece(BUFFERS_GUEST, 6)])
        self.driver.kick()
        while not (done := self.driver.completed()):
            assert self.driver.wait()
        assert [written for _, written in done] == [11]


@pytest.fixture
def memory() -> Iterator[Memory]:
    shared = Memory(MIB)
    yield shared
    shared.close()


@pytest.fixture
def served(memory: Memory) -> Iterator[Served]:
    side = Served(memory)
    yield side
    side.close()


def test_a_ring_works_from_its_start_to_its_stop_and_again(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.round_trip()
    served.round_trip()
    assert served.front_end.stop_ring(0) == 2
    assert served.device.resets == 1
    served.front_end.send(Request.SET_VRING_BASE, VRING_STATE.pack(0, 2))
    served.front_end.send(Request.SET_VRING_KICK, U64.pack(0), [served.driver.kick_fd])
    served.round_trip()
    assert served.said == []


def test_what_was_on_the_ring_before_it_started_needs_no_kick(served: Served) -> None:
    served.front_end.negotiate()
    served.driver.add([Piece(BUFFERS_GUEST, 5)])
    served.front_end.start_rings()
    assert served.driver.used_index[1] == 1


@pytest.mark.parametrize("way", ["stop", "disable", "close"])
def test_what_was_on_the_ring_before_it_stopped_still_counts(served: Served, way: str) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.round_trip()
    served.driver.add([Piece(BUFFERS_GUEST, 5)])
    if way == "stop":
        assert served.front_end.stop_ring(0) == 2
    elif way == "disable":
        served.front_end.order(Request.SET_VRING_ENABLE, VRING_STATE.pack(0, 0))
    else:
        served.front_end.close()
        served.end()
    assert served.driver.used_index[1] == 2


def test_a_disabled_ring_rests(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.front_end.order(Request.SET_VRING_ENABLE, VRING_STATE.pack(0, 0))
    served.driver.add([Piece(BUFFERS_GUEST, 5)])
    served.driver.kick()
    served.front_end.ask_u64(Request.GET_FEATURES)
    assert (served.driver.used_index[1], served.device.resets) == (0, 1)
    served.front_end.order(Request.SET_VRING_ENABLE, VRING_STATE.pack(0, 1))
    served.front_end.ask_u64(Request.GET_FEATURES)
    assert served.driver.used_index[1] == 1


def test_without_protocol_features_a_started_ring_is_enabled(served: Served) -> None:
    served.front_end.send(Request.SET_FEATURES, U64.pack(1 << 32))
    served.front_end.share_memory()
    served.front_end.start_ring(0)
    served.round_trip()


def test_bits_that_a_guest_chose_of_qemus_own_features_do_not_matter(served: Served) -> None:
    served.front_end.send(Request.SET_FEATURES, U64.pack(FEATURES | 1 << 27 | 1 << 40))
    assert served.front_end.ask_u64(Request.GET_FEATURES) == FEATURES


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_the_configuration_can_be_read_in_parts(served: Served, offset: int) -> None:
    part = Echo.config[offset:]
    answer = served.front_end.ask(Request.GET_CONFIG, CONFIG.pack(offset, len(part), 0) + bytes(len(part)))
    assert answer == CONFIG.pack(offset, len(part), 0) + part


@pytest.mark.parametrize(("offset", "size"), [(0, 9), (8, 1), (4, 5), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_configuration_beyond_the_end_is_refused_by_an_empty_answer(served: Served, offset: int, size: int) -> None:
    assert served.front_end.ask(Request.GET_CONFIG, CONFIG.pack(offset, size, 0) + bytes(64)) == b""


def test_what_needs_an_answer_gets_one(served: Served) -> None:
    assert served.front_end.order(Request.SET_OWNER) == 0
    assert served.front_end.order(Request.RESET_OWNER) == 0
    assert served.front_end.order(Request.SET_FEATURES, U64.pack(FEATURES)) == 0


@pytest.mark.parametrize("request_number", [Request.SET_CONFIG, 6, 7, 19, 20, 21, 22, 28, 34, 39, 0, 999, 0xFFFFFFFF])
def test_a_request_we_do_not_support_is_refused_and_life_goes_on(served: Served, request_number: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert served.front_end.order(request_number, bytes(16), [0, 1]) == 1
    served.front_end.send(request_number, bytes(16), [0])
    assert served.front_end.ask_u64(Request.GET_FEATURES) == FEATURES
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(served.said) == 2
    assert served.said[0].endswith("is not supported and was ignored")


def test_a_ring_without_interrupts_or_error_notifier_works(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.front_end.send(Request.SET_VRING_CALL, U64.pack(VRING_NOFD_MASK))
    served.front_end.send(Request.SET_VRING_ERR, U64.pack(VRING_NOFD_MASK))
    served.driver.add([Piece(BUFFERS_GUEST, 5)])
    served.driver.kick()
    while served.driver.used_index[1] != 1:
        served.front_end.ask_u64(Request.GET_FEATURES)


def test_an_interrupt_that_came_while_there_was_no_notifier_is_made_up_for(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.front_end.send(Request.SET_VRING_CALL, U64.pack(VRING_NOFD_MASK))
    served.front_end.ask_u64(Request.GET_FEATURES)
    served.driver.wait(0)
    served.front_end.send(Request.SET_VRING_CALL, U64.pack(0), [served.driver.call_fd])
    assert served.driver.wait()


def test_memory_may_be_replaced_while_the_ring_runs(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.round_trip()
    served.front_end.share_memory()
    served.round_trip()


def test_a_ring_that_is_no_more_in_memory_is_broken_until_it_starts_again(served: Served) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    assert served.front_end.order(Request.SET_MEM_TABLE, bytes(8)) == 0
    assert select.select([served.driver.error_fd], [], [], TIMEOUT_S)[0]
    assert served.device.resets == 1
    assert len(served.said) == 1
    assert served.said[0].startswith("the guest has broken its rings: a ring cannot be reached")
    served.front_end.stop_ring(0)
    served.front_end.share_memory()
    served.front_end.start_ring(0)
    served.round_trip()


def test_a_device_that_finds_its_ring_broken_waits_for_another_start(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.round_trip()
    served.driver.available[1] = 1000
    served.driver.kick()
    assert select.select([served.driver.error_fd], [], [], TIMEOUT_S)[0]
    assert served.front_end.stop_ring(0) == 1
    assert served.said == ["the guest has broken its rings: the driver's index is 999 ahead in a ring of 16"]


MALFORMED: dict[str, tuple[int, bytes, int, str]] = {
    "features of four bytes": (Request.SET_FEATURES, bytes(4), 0, "SET_FEATURES came with 4 bytes instead of 8"),
    "unoffered protocol feature": (
        *(Request.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL_FEATURES | 1 << 10), 0),
        "QEMU chose protocol features 0x609 out of 0x209",
    ),
    "ring number": (Request.SET_VRING_NUM, VRING_STATE.pack(1, 16), 0, "QEMU speaks of ring 1, but there are only 1"),
    "large ring number": (
        *(Request.GET_VRING_BASE, VRING_STATE.pack(2**32 - 1, 0), 0),
        "QEMU speaks of ring 4294967295, but there are only 1",
    ),
    "kick of another ring": (Request.SET_VRING_KICK, U64.pack(7), 1, "QEMU speaks of ring 7, but there are only 1"),
    "kick without a descriptor": (
        *(Request.SET_VRING_KICK, U64.pack(VRING_NOFD_MASK), 0),
        "ring 0 was started without a descriptor for its kicks",
    ),
    "kick whose descriptor is missing": (
        *(Request.SET_VRING_KICK, U64.pack(0), 0),
        "SET_VRING_KICK came with 0 descriptors instead of 1",
    ),
    "kick with two": (Request.SET_VRING_KICK, U64.pack(0), 2, "SET_VRING_KICK came with 2 descriptors instead of 1"),
    "kick before anything else": (
        *(Request.SET_VRING_KICK, U64.pack(0), 1),
        "ring 0 was started before it had a size and addresses",
    ),
    "addresses of another length": (
        *(Request.SET_VRING_ADDR, bytes(VRING_ADDRESSES.size + 1), 0),
        "SET_VRING_ADDR came with 41 bytes instead of 40",
    ),
    "configuration of no length": (Request.GET_CONFIG, b"", 0, "GET_CONFIG came with 0 bytes"),
    "memory of no length": (Request.SET_MEM_TABLE, b"", 0, "SET_MEM_TABLE came with 0 bytes"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_ends_the_device_with_one_line_and_no_descriptor_left(memory: Memory, name: str) -> None:
    request, payload, fds, problem = MALFORMED[name]
    before = len(os.listdir("/proc/self/fd"))
    served = Served(memory)
    served.front_end.send(request, payload, [served.driver.kick_fd] * fds)
    assert served.end() == f"vhost-user: {problem}"
    served.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("request_number", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_a_notifier_must_be_an_eventfd(served: Served, request_number: int) -> None:
    served.front_end.send(request_number, U64.pack(0), [served.memory.fd])
    assert served.end() == "vhost-user: a ring's notifier is not an eventfd"


def test_a_header_cut_short_ends_the_device(served: Served) -> None:
    served.front_end.sock.sendall(HEADER.pack(1, 1, 0)[:7])
    served.front_end.close()
    assert served.end() == "vhost-user: the socket was closed in the middle of a header"


def test_the_end_of_qemu_is_the_end_and_leaves_no_descriptor_open(memory: Memory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    served = Served(memory)
    served.front_end.negotiate()
    served.front_end.start_rings()
    served.front_end.start_rings()
    served.round_trip()
    served.front_end.close()
    assert served.end() == "closed"
    served.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broken_ring_is_an_error_of_ours_in_one_line() -> None:
    assert str(BrokenRing("a ring is not aligned")) == "a ring is not aligned"
