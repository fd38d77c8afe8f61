"""Memory barriers, so that a guest on another CPU sees our stores to a ring in the order in which we made them.

x86 keeps stores in order and loads in order; only a store followed by a load of something else may be swapped, and any
locked instruction prevents that, such as the one in taking a free lock. Other processors may swap more, and taking a
lock is not enough there; the kernel's membarrier(2) executes a full barrier on the calling CPU.

Sources: VIRTIO 1.2, 2.7.7 and 2.7.13 (where barriers belong); Linux' Documentation/memory-barriers.txt and
kernel/sched/membarrier.c.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

# linux/membarrier.h. This command runs a full barrier here, and interrupts only processes that registered for it.
MEMBARRIER_CMD_GLOBAL_EXPEDITED = 1 << 1
# asm-generic/unistd.h, as on every architecture newer than x86.
_NR_MEMBARRIER = 283

_lock = threading.Lock()


def _take_lock() -> None:
    with _lock:
        pass


def _nothing() -> None:
    pass


def _choose() -> tuple[Callable[[], None], Callable[[], None]]:
    if os.uname().machine in ("x86_64", "i686"):
        return _take_lock, _nothing

    from ctypes import CDLL

    syscall = CDLL(None).syscall

    def membarrier() -> None:
        syscall(_NR_MEMBARRIER, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0)

    return membarrier, membarrier


# full_barrier: nothing moves across it. order_barrier: stores stay behind stores, loads behind loads.
full_barrier, order_barrier = _choose()
