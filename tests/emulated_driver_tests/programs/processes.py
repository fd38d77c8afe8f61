"""Who may do what with an enclave."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

from tests.emulated_driver_tests.programs.client import HUGE, Enclave, attempt, complete, huge_map, in_child


def work_from_thread() -> object:
    enclave = Enclave()
    outcomes: list[int] = []
    memory = huge_map(HUGE)

    def work() -> None:
        outcomes.append(attempt(enclave.add_vcpu))
        outcomes.append(attempt(lambda: enclave.add_map(memory)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return outcomes


def work_from_child() -> object:
    enclave = Enclave()
    memory = huge_map(HUGE)
    return [
        in_child(lambda: attempt(enclave.add_vcpu)),
        in_child(lambda: attempt(lambda: enclave.add_map(memory))),
        in_child(lambda: attempt(enclave.load_info)),
    ]


def work_from_receiver() -> object:
    """A process that was there before the enclave, and got its descriptor over a socket."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        received = Enclave(descriptors[0])
        os.write(write_end, bytes([attempt(received.add_vcpu), attempt(received.load_info)]))
        os._exit(0)
    enclave = Enclave()
    socket.send_fds(ours, [b"x"], [enclave.fd])
    os.waitpid(child, 0)
    return list(os.read(read_end, 2))


def work_after_exec() -> object:
    """The same process, but not the same memory map."""
    enclave = Enclave()
    os.set_inheritable(enclave.fd, True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-2], "work_on_inherited", json.dumps([enclave.fd])])


def work_on_inherited(fd: int) -> object:
    inherited = Enclave(fd)
    return [attempt(inherited.add_vcpu), attempt(inherited.load_info)]


def start_from_child() -> object:
    enclave = complete()
    return [in_child(lambda: attempt(enclave.start)), attempt(enclave.start)]
