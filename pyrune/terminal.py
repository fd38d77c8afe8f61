"""Terminals: the pair that a container gets, its way to whoever attaches, and the relay of a foreground `run`.

The container's side is the slave; the master goes to the caller over --console-socket, in one message with exactly one
descriptor and a name, as runc sends it and containerd's shim and conmon expect it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable, Iterator

from pyrune.errors import UsageError
from pyrune.linux import write_some

_CHUNK_BYTES = 65536


def connect_console_socket(path: str) -> socket.socket:
    """The caller's socket that waits for the terminal. Raises UsageError when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(10)
        sock.connect(path)
        sock.settimeout(None)
    except OSError as exc:
        sock.close()
        # Python's own word for a path that is too long has no number.
        number = exc.errno or errno.ENAMETOOLONG
        raise UsageError(f"the console socket {path} does not accept a connection (error {number})") from exc
    return sock


def open_console(console_socket: socket.socket, rows: int = 0, columns: int = 0) -> int:
    """Make a terminal for the calling session and send its master over `console_socket`. Returns the slave.

    The caller must lead a session without a terminal: the slave becomes its controlling terminal, so that the keys for
    interrupt and quit raise signals. It ends lines as terminals want it (ONLCR), because a guest's console may not, and
    whoever holds the master has a raw terminal. What is typed has no reader that would want it echoed. The caller
    should not die of SIGHUP, which comes when the master is closed.

    Raises UsageError.
    """
    try:
        return _make_console(console_socket, rows, columns)
    except (OSError, termios.error) as exc:
        raise UsageError(f"the container's terminal cannot be made or handed over (error {exc.args[0]})") from exc


def _make_console(console_socket: socket.socket, rows: int, columns: int) -> int:
    master, slave = os.openpty()
    try:
        mode = termios.tcgetattr(slave)
        mode[1] |= termios.OPOST | termios.ONLCR
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(slave, termios.TCSANOW, mode)
        if rows and columns:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        socket.send_fds(console_socket, [b"/dev/pts/ptmx"], [master])
    except BaseException:
        os.close(slave)
        raise
    finally:
        os.close(master)
    return slave


def receive_master(console_socket: socket.socket) -> int:
    """The master that `open_console` sent, or -1 when the other side ended without sending it."""
    _, fds, _, _ = socket.recv_fds(console_socket, 4096, 1)
    # Python 3.11 ignores MSG_CMSG_CLOEXEC here.
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds[0] if fds else -1


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Have the terminal on `fd` pass every key on, and put it back; nothing happens when `fd` is no terminal."""
    if not os.isatty(fd):
        yield
        return
    saved = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        # A terminal that has been closed meanwhile needs nothing.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def copy_window_size(source_fd: int, master_fd: int) -> None:
    """Give the container's terminal the size of the caller's, if that is one."""
    with contextlib.suppress(OSError):
        size = fcntl.ioctl(source_fd, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master_fd, termios.TIOCSWINSZ, size)


def relay(master_fd: int, *, stdin_fd: int, stdout_fd: int, on_signal_fd: tuple[int, Callable[[], None]]) -> None:
    """Pass bytes between the caller's terminal and the container's until the container's side is closed.

    `on_signal_fd` is a descriptor to watch as well, and what to do when it is readable.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(master_fd, selectors.EVENT_READ)
        selector.register(on_signal_fd[0], selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            # A regular file or /dev/null cannot be watched, and would have nothing to say; nor has a closed input.
            selector.register(stdin_fd, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == on_signal_fd[0]:
                    on_signal_fd[1]()
                elif key.fd == stdin_fd:
                    if not _copy(stdin_fd, master_fd):
                        selector.unregister(stdin_fd)
                elif not _copy(master_fd, stdout_fd):
                    return


def _copy(source_fd: int, target_fd: int) -> bool:
    try:
        data = os.read(source_fd, _CHUNK_BYTES)
    except BlockingIOError:
        # Somebody else has set it non-blocking, and has read what was there.
        return True
    except OSError:
        # A master whose slaves are all closed gives EIO.
        return False
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[write_some(target_fd, view) :]
    return bool(data)


FORWARDED_SIGNALS = frozenset(
    number
    for number in signal.valid_signals()
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGURG, signal.SIGPIPE, signal.SIGWINCH)
    and number < signal.SIGRTMIN
    and number not in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT)
)
