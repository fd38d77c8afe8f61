"""Calls that meet faults."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from tests.emulated_driver_tests.programs.client import CREATE_VM, DEVICE, Enclave, attempt


def add_vcpu_under_signals() -> object:
    """A call that takes its time while signals rain, with a handler that asks for no restart."""
    caught = []
    signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    enclave = Enclave()
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    vcpu = enclave.add_vcpu()
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [vcpu, bool(caught)]


def create_when_table_is_full() -> object:
    """EMFILE, and no enclave left behind."""
    import resource

    device = os.open(DEVICE, os.O_RDONLY)
    with contextlib.ExitStack() as undo:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        with contextlib.suppress(OSError):
            while True:
                undo.callback(os.close, os.dup(device))
        return attempt(lambda: fcntl.ioctl(device, CREATE_VM, bytearray(8)))
