"""A reactor that a test drives until something is so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyrune.reactor import Reactor

LIMIT_S = 30.0


@contextmanager
def new_reactor() -> Iterator[Reactor]:
    reactor = Reactor()
    try:
        yield reactor
    finally:
        reactor.close()


def run_until(reactor: Reactor, done: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Serve until `done()`; fails the test when that takes too long."""
    late = False

    def give_up() -> None:
        nonlocal late
        late = True
        reactor.stop()

    def look() -> None:
        if done():
            reactor.stop()
        elif not late:
            reactor.call_later(0.005, look)

    deadline = reactor.call_later(limit_s, give_up)
    reactor.call_soon(look)
    reactor.run()
    deadline.cancel()
    reactor._stopped = False
    assert not late, "it did not happen in time"


def run_for(reactor: Reactor, seconds: float) -> None:
    """Serve for a while, to see that something does not happen."""
    over = False

    def end() -> None:
        nonlocal over
        over = True

    reactor.call_later(seconds, end)
    run_until(reactor, lambda: over, seconds + LIMIT_S)
