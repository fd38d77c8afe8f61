"""The unix sockets in the enclave's directory: `vsock`, where host programs call; `vsock_<port>`, where they listen.

The directory is known by a descriptor only. Names go through /proc/self/fd, so a path of any length will do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from pyrune.errors import BackendError
from pyrune.linux import bind_unix

LISTENER_NAME = "vsock"
# As many as may wait for their handshake to be looked at.
_BACKLOG = 1024


class HostSockets:
    """The directory behind `directory_fd`, which stays the caller's."""

    def __init__(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd

    def listen(self) -> socket.socket:
        """The socket for host programs, non-blocking. One that a killed device left behind is replaced.

        Raises BackendError.
        """
        try:
            self._remove(LISTENER_NAME)
            listener = bind_unix(self._directory_fd, LISTENER_NAME, backlog=_BACKLOG)
        except OSError as exc:
            name = errno.errorcode.get(exc.errno or 0, "an error")
            raise BackendError(
                f"cannot listen on {LISTENER_NAME} in the enclave's directory ({name})",
                remedy="see that the directory is writable and /proc is mounted",
            ) from exc
        listener.setblocking(False)
        return listener

    def dial(self, port: int) -> socket.socket:
        """A non-blocking socket to the program that serves the parent's `port`.

        Raises BlockingIOError while too many wait there already, another OSError when nobody is there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{self._directory_fd}/{LISTENER_NAME}_{port}")
        except OSError:
            sock.close()
            raise
        return sock

    def remove_listener(self) -> None:
        """Remove the name that `listen` made. The directory may be gone already, with all that was in it."""
        with contextlib.suppress(OSError):
            self._remove(LISTENER_NAME)

    def _remove(self, name: str) -> None:
        """Remove a socket, and only a socket."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(name, dir_fd=self._directory_fd, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=self._directory_fd)
