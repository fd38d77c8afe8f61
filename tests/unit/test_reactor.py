"""The event loop: in which order it calls back, and what it does not call."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pyrune.reactor import READ, WRITE, Reactor
from tests.support.programs import open_descriptors
from tests.support.rounds import run_until


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_timers_are_called_in_the_order_in_which_they_are_due(reactor: Reactor) -> None:
    called: list[str] = []
    reactor.call_later(0.02, reactor.stop)
    reactor.call_later(0.01, lambda: called.append("third"))
    reactor.call_later(0, lambda: called.append("first"))
    reactor.call_later(0, lambda: called.append("second"))
    reactor.run()
    assert called == ["first", "second", "third"]


def test_a_cancelled_timer_is_not_called_even_by_one_that_is_due_at_the_same_time(reactor: Reactor) -> None:
    called: list[str] = []

    def cancel() -> None:
        victim.cancel()
        victim.cancel()

    reactor.call_later(0, cancel)
    victim = reactor.call_later(0, lambda: called.append("victim"))
    reactor.call_later(0.005, reactor.stop)
    reactor.run()
    assert called == []


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    for _ in range(10_000):
        reactor.call_later(1000, lambda: None).cancel()
    assert len(reactor._timers) < 1000


def test_a_timer_may_set_another(reactor: Reactor) -> None:
    left = 5

    def again() -> None:
        nonlocal left
        left -= 1
        if left:
            reactor.call_later(0, again)
        else:
            reactor.stop()

    reactor.call_later(0, again)
    reactor.run()
    assert left == 0


def test_a_descriptor_is_called_for_while_it_is_ready(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    received = bytearray()

    def receive() -> None:
        received.extend(left.recv(1))
        if received == b"abc":
            reactor.stop()

    reactor.watch(left.fileno(), READ, receive)
    right.sendall(b"abc")
    reactor.run()
    assert received == b"abc"


@pytest.mark.parametrize("events", [READ, WRITE])
def test_a_hang_up_is_both_readable_and_writable(
    events: int, reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    reactor.watch(pair[0].fileno(), events, reactor.stop)
    pair[1].close()
    reactor.run()


def test_the_latest_watch_counts(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    def wrong() -> None:
        raise AssertionError

    reactor.watch(pair[0].fileno(), READ, wrong)
    reactor.watch(pair[0].fileno(), WRITE, reactor.stop)
    pair[1].sendall(b"x")
    reactor.run()


def test_what_is_unwatched_during_a_round_is_not_called_in_it(reactor: Reactor) -> None:
    ready = [os.eventfd(1) for _ in range(4)]
    called: list[int] = []

    def one(fd: int) -> Callable[[], None]:
        def call() -> None:
            called.append(fd)
            for other in ready:
                reactor.unwatch(other)

        return call

    for fd in ready:
        reactor.watch(fd, READ, one(fd))
    reactor.call_later(0.01, reactor.stop)
    reactor.run()
    assert len(called) == 1
    for fd in ready:
        os.close(fd)


def test_a_descriptor_that_changes_hands_during_a_round_calls_nobody_wrongly(reactor: Reactor) -> None:
    ready = [os.eventfd(1), os.eventfd(1)]
    fresh: list[int] = []
    wrongly: list[int] = []

    def replace(mine: int, other: int) -> Callable[[], None]:
        def call() -> None:
            os.eventfd_read(mine)
            reactor.unwatch(mine)
            reactor.unwatch(other)
            os.close(other)
            fresh.append(os.eventfd(0))
            assert fresh == [other], "the number is not used again"
            reactor.watch(other, READ, lambda: wrongly.append(other))

        return call

    reactor.watch(ready[0], READ, replace(ready[0], ready[1]))
    reactor.watch(ready[1], READ, replace(ready[1], ready[0]))
    reactor.call_later(0.01, reactor.stop)
    reactor.run()
    assert wrongly == []
    assert len(fresh) == 1
    for fd in ready:
        os.close(fd)


def test_unwatching_what_is_not_watched_does_not_matter(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket]
) -> None:
    reactor.unwatch(pair[0].fileno())
    reactor.unwatch(-1)
    reactor.watch(pair[0].fileno(), READ, lambda: None)
    fd = pair[0].fileno()
    pair[0].close()
    reactor.unwatch(fd)
    reactor.unwatch(fd)


def test_calls_that_make_new_calls_starve_nobody(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    rounds = 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        reactor.call_soon(again)

    again()
    timers: list[bool] = []
    reactor.call_later(0.005, lambda: timers.append(True))

    def stop_after_the_timer() -> None:
        if timers:
            reactor.stop()

    reactor.watch(pair[0].fileno(), READ, stop_after_the_timer)
    pair[1].sendall(b"x")
    reactor.run()
    assert rounds > 1


def test_calls_from_threads_all_arrive_in_each_threads_order(reactor: Reactor) -> None:
    arrived: list[tuple[int, int]] = []

    def send(thread: int) -> None:
        for number in range(2000):
            reactor.call_soon(lambda number=number: arrived.append((thread, number)))  # type: ignore[misc]

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    run_until(reactor, lambda: len(arrived) == 8000)
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [n for thread_number, n in arrived if thread_number == number] == list(range(2000))


def test_a_call_from_a_thread_wakes_a_loop_that_has_nothing_to_wait_for(reactor: Reactor) -> None:
    threading.Timer(0.02, lambda: reactor.call_soon(reactor.stop)).start()
    reactor.run()


def test_the_result_of_work_in_a_thread_is_called_in_the_loop(reactor: Reactor) -> None:
    threads: list[int] = []

    def finish() -> None:
        threads.append(threading.get_ident())
        reactor.stop()

    def work() -> Callable[[], None]:
        threads.append(threading.get_ident())
        return finish

    reactor.in_thread(work)
    reactor.run()
    worker, here = threads
    assert worker != here == threading.get_ident()


@pytest.fixture
def signals() -> Iterator[list[int]]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    yield []
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_signals_are_called_for_in_the_order_of_their_arrival(reactor: Reactor, signals: list[int]) -> None:
    reactor.catch_signals([signal.SIGUSR1, signal.SIGUSR2], signals.append)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
        signal.raise_signal(number)
    assert signals == []
    run_until(reactor, lambda: len(signals) == 3)
    assert signals == [signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1]


def test_a_signal_wakes_the_loop_whichever_thread_the_kernel_gives_it_to(reactor: Reactor, signals: list[int]) -> None:
    def note(number: int) -> None:
        signals.append(number)
        reactor.stop()

    reactor.catch_signals([signal.SIGUSR1], note)
    reactor.call_later(0.02, threading.Thread(target=lambda: _raise_here_later(signal.SIGUSR1)).start)
    reactor.run()
    assert signals == [signal.SIGUSR1]


def _raise_here_later(number: signal.Signals) -> None:
    # By then the loop's thread sleeps in the kernel, which does not wake it for a signal of another thread.
    threading.Event().wait(0.1)
    signal.pthread_kill(threading.get_ident(), number)


def test_an_exception_of_a_callback_leaves_the_loop(reactor: Reactor) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    reactor.call_soon(fail)
    with pytest.raises(ZeroDivisionError):
        reactor.run()


def test_a_loop_that_was_stopped_before_it_runs_returns_at_once(reactor: Reactor) -> None:
    reactor.stop()
    reactor.run()


def test_closing_gives_back_its_own_descriptors_and_no_others(pair: tuple[socket.socket, socket.socket]) -> None:
    before = open_descriptors()
    reactor = Reactor()
    reactor.watch(pair[0].fileno(), READ, lambda: None)
    reactor.close()
    assert open_descriptors() == before


def test_a_call_after_closing_touches_no_descriptor(signals: list[int]) -> None:
    reactor = Reactor()
    reactor.catch_signals([signal.SIGUSR1], signals.append)
    reactor.close()
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    try:
        reactor.call_soon(lambda: None)
        signal.raise_signal(signal.SIGUSR1)
        reactor.stop()
        with pytest.raises(BlockingIOError):
            os.read(read_end, 1)
    finally:
        os.close(read_end)
        os.close(write_end)
