"""Becomes a program under the emulated driver's filter: launch.py CONTROL_SOCKET PROGRAM [ARGUMENT...]

It is run by path, isolated and without site, so it imports nothing of the project. What it starts inherits the filter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys

_SET_MODE_FILTER = 1
_NEW_LISTENER = 8
_WAIT_KILLABLE_RECV = 32
_NO_NEW_PRIVS = 38
_SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _install(instructions: bytes) -> int:
    """Install the filter; returns its listener. Raises OSError."""
    program = _Program(len(instructions) // 8, instructions)
    number = ctypes.c_long(_SECCOMP_NUMBERS[os.uname().machine])
    # Without the second flag (before Linux 5.19) any signal would restart a call, and double it.
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    while True:
        listener = int(_libc.syscall(number, _SET_MODE_FILTER, flags, ctypes.byref(program)))
        if listener >= 0:
            return listener
        failure = ctypes.get_errno()
        if failure == errno.EINVAL and flags & _WAIT_KILLABLE_RECV:
            flags = _NEW_LISTENER
        elif failure != errno.EACCES or _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(failure, os.strerror(failure))


def main(control: str, program: list[str]) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(control)
    sock.sendall(b'{"do": "join"}\n')
    # From the filter on, no call that it intercepts may come before the supervisor has the listener.
    listener = _install(sock.recv(65536))
    socket.send_fds(sock, [b"\0"], [listener])
    os.close(listener)
    if sock.recv(1) != b"\0":
        raise ConnectionResetError("the emulated driver does not answer")
    sock.close()
    # Python ignores these two for itself, and the program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    # As it was given: Python itself adds to its environment in the C locale.
    with open("/proc/self/environ", "rb") as file:
        given = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    os.execvpe(program[0], program, given)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except OSError as exc:
        os.write(2, f"the program does not start under the emulated driver: {exc}\n".encode())
        os._exit(127)
