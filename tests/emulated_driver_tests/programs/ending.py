"""Exit and close."""

from __future__ import annotations

import os
import select
import socket
import time

from tests.emulated_driver_tests.programs.client import Enclave, attempt, complete


def poll_an_exit() -> object:
    """Before, and then again and again after the exit, with and without asking for events."""
    enclave = complete()
    enclave.start()
    wanted = select.POLLIN | select.POLLOUT | select.POLLPRI
    return [enclave.poll(), enclave.poll(10.0), enclave.poll(0, wanted), enclave.poll()]


def close_last_of_copies() -> object:
    """Whether a core is taken (257) while copies of the descriptor are closed one after the other."""
    other = Enclave()
    enclave = Enclave()
    enclave.add_vcpu(1)
    copy = os.dup(enclave.fd)
    ours, theirs = socket.socketpair()
    socket.send_fds(ours, [b"x"], [enclave.fd])
    outcomes = []

    def look() -> None:
        outcomes.append(attempt(lambda: other.add_vcpu(1)))

    enclave.close()
    look()
    os.close(copy)
    look()
    # One is still under way in the socket.
    theirs.close()
    ours.close()
    look()
    return outcomes


def run_until_killed() -> object:
    """Starts an enclave and says so by its heartbeat listener being there; never returns."""
    enclave = complete()
    enclave.start()
    time.sleep(60)
    return None


def leave_to_child() -> object:
    """The owner ends, a child of its own keeps the descriptor for as long as its standard input is open."""
    enclave = complete()
    enclave.start()
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
        os._exit(0)
    return os.getpid()
