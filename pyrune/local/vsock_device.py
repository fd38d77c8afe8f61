"""The program that is an enclave's virtio socket device: `python -I -m pyrune.local.vsock_device`, one per enclave.

    --vhost-fd N      the unix socket to QEMU, vhost-user
    --dir-fd M        the enclave's directory, for the unix sockets of host programs
    --guest-cid C     the guest's address
    --parent-pid P    the process without which this one has no reason to live; 0 for none

It is a process of its own because it is the one that a guest's bytes reach: it holds nothing but the guest's memory and
the streams, and it may die without taking anything with it. It ends with status 0 on SIGTERM, and when QEMU closes the
socket and host programs have taken, within LINGER_S, what the guest said last; and with 1 and one line when QEMU breaks
the protocol. Its unix socket is then removed. What it has to say goes to standard error, which is the monitor's log; a
guest can make it say only so much.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from pyrune import linux
from pyrune.errors import BackendError, PyruneError
from pyrune.local.vhost_user.session import Session
from pyrune.local.virtio_vsock.device import VsockDevice
from pyrune.local.virtio_vsock.host_sockets import HostSockets
from pyrune.local.virtio_vsock.muxer import MAX_CONNECTIONS, Muxer

COMM = "pyrune-vsock"
# Descriptors that are not streams: standard ones, QEMU's, epoll instances, eventfds, memory; and some to spare.
_OTHER_FDS = 64
_MAX_WARNINGS = 100
# How long host programs may take, after QEMU's end, to read what waits for them.
LINGER_S = 2.0


class Arguments(NamedTuple):
    """See the module."""

    vhost_fd: int
    dir_fd: int
    guest_cid: int
    parent_pid: int


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Only the monitor calls this program, so there is no help and no choice. Raises BackendError."""
    names = [f"--{field.replace('_', '-')}" for field in Arguments._fields]
    given = dict(zip(argv[::2], argv[1::2], strict=False))
    if len(argv) != 2 * len(names) or set(given) != set(names) or not all(map(str.isdecimal, given.values())):
        raise BackendError(f"the vsock device takes {' N '.join(names)} N")
    return Arguments(*(int(given[name]) for name in names))


class Warnings:
    """Writes lines to standard error, and stops doing so before a guest can fill a disk."""

    def __init__(self) -> None:
        self._left = _MAX_WARNINGS

    def __call__(self, text: str) -> None:
        if self._left > 0:
            self._left -= 1
            say(text if self._left else f"{text}; nothing more will be said about what the guest does")


def say(text: str) -> None:
    # One write per line, so lines of several processes do not mix. A log that nobody takes is no reason to end.
    with suppress(OSError):
        os.write(2, f"{COMM}: {text}\n".encode())


def main(argv: Sequence[str]) -> int:
    try:
        arguments = parse_arguments(argv)
        confine(arguments)
        serve(arguments)
    except PyruneError as exc:
        say(str(exc))
        return 1
    return 0


def confine(arguments: Arguments) -> None:
    """Give up all that the device does not need."""
    linux.die_with_parent(arguments.parent_pid)
    linux.set_comm(COMM)
    linux.no_new_privileges()
    linux.forbid_tracing()
    linux.close_other_fds((arguments.vhost_fd, arguments.dir_fd))
    # The terminal's interrupt is for the monitor to think about.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def allow_connections() -> int:
    """Raise the limit on open descriptors as far as needed and allowed; how many streams it lets us have."""
    wanted = MAX_CONNECTIONS + _OTHER_FDS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - _OTHER_FDS))


def serve(arguments: Arguments) -> None:
    """Be the device until QEMU closes the socket or SIGTERM comes. Raises BackendError."""
    warn = Warnings()
    with ExitStack() as stack:
        terminated = stack.enter_context(_Terminated())
        sock = stack.enter_context(_unix_stream(arguments.vhost_fd))
        muxer = Muxer(arguments.guest_cid, HostSockets(arguments.dir_fd), max_connections=allow_connections())
        stack.callback(muxer.close)
        session = Session(sock, VsockDevice(arguments.guest_cid, muxer, warn), warn)
        stack.callback(session.close)
        run(session, muxer, terminated.fd)


def run(session: Session, muxer: Muxer, terminated_fd: int) -> None:
    """The event loop. Each round first moves what can be moved, and then sleeps only if that was everything."""
    poll = select.poll()
    for source in (session, muxer, terminated_fd):
        poll.register(source, select.POLLIN)
    while True:
        busy = session.serve()
        timeout_s = 0.0 if busy else muxer.timeout_s()
        ready = {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
        if terminated_fd in ready:
            return
        if session.fileno() in ready and not session.dispatch():
            session.finish()
            linger(muxer, terminated_fd)
            return
        muxer.dispatch()


def linger(muxer: Muxer, terminated_fd: int) -> None:
    """The guest is gone; give host programs a moment to take what it still said."""
    muxer.reset()
    poll = select.poll()
    for source in (muxer, terminated_fd):
        poll.register(source, select.POLLIN)
    deadline = time.monotonic() + LINGER_S
    while muxer.has_streams and (left_s := deadline - time.monotonic()) > 0:
        if terminated_fd in {fd for fd, _ in poll.poll(left_s * 1000)}:
            return
        muxer.dispatch()


class _Terminated:
    """An eventfd that SIGTERM makes readable, for as long as it is entered."""

    def __enter__(self) -> _Terminated:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        signal.signal(signal.SIGTERM, lambda *_: os.eventfd_write(self.fd, 1))
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(self.fd)


def _unix_stream(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise BackendError(f"descriptor {fd} is no socket to QEMU") from exc
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise BackendError(f"descriptor {fd} is not a unix stream socket")
    return sock


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
