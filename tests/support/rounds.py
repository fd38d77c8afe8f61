"""Running a reactor for as long as a test needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from pyrune.reactor import Reactor

_LOOK_S = 0.002
_TIMEOUT_S = 30.0


class _Enough(Exception):
    """Leaves the loop, which can then be run again."""


def run_until(reactor: Reactor, condition: Callable[[], bool]) -> None:
    """Serve until `condition` holds, and fail when that does not happen. The reactor may be run again."""
    expired = reactor.call_later(_TIMEOUT_S, lambda: pytest.fail("what is waited for does not happen"))

    def look() -> None:
        if condition():
            raise _Enough
        reactor.call_later(_LOOK_S, look)

    reactor.call_soon(look)
    with contextlib.suppress(_Enough):
        reactor.run()
    expired.cancel()
