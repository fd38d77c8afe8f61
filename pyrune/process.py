"""The one door to other programs: nothing else in pyrune imports subprocess, forks or execs.

A program gets exactly the descriptors and the environment that its caller names. What is started as a child dies with
the process that started it; what is started detached belongs to whoever reaps orphans there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import NoReturn

from pyrune.errors import BackendError
from pyrune.linux import become_subreaper, close_other_fds, default_signals, die_with_parent, wait_for_exit

# What a program finds where the caller of pyrune set no PATH at all (CRI-O and Podman set next to nothing).
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Programs that pyrune starts need a search path and nothing of the caller's environment.
MINIMAL_ENVIRONMENT: Mapping[str, str] = {"PATH": DEFAULT_PATH, "LC_ALL": "C.UTF-8"}


def find_program(name: str) -> str | None:
    """The absolute path of a program, on PATH if there is one, then in the usual places.

    What PATH names relative to the current directory does not count: that is often a bundle, which may be anyone's.
    """
    absolute = [place for place in os.environ.get("PATH", "").split(":") if place.startswith("/")]
    return shutil.which(name, path=":".join(absolute)) or shutil.which(name, path=DEFAULT_PATH)


class Child:
    """A running child. It is killed when its parent ends, however that ends. `pidfd` turns readable when it exits."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.pidfd = os.pidfd_open(popen.pid)

    def poll(self) -> int | None:
        """The exit status, negative for a signal as subprocess has it; None while it runs."""
        return self._popen.poll()

    def kill(self) -> None:
        """SIGKILL, unless it has been reaped."""
        self._popen.kill()

    def close(self, timeout_s: float = 5.0) -> int | None:
        """Kill the child if it still runs, reap it and close `pidfd`. Returns as `poll` does; may be called again."""
        self._popen.kill()
        if self.pidfd >= 0:
            if wait_for_exit(self.pidfd, timeout_s):
                self._popen.wait()
            os.close(self.pidfd)
            self.pidfd = -1
        return self._popen.poll()


def spawn_child(argv: Sequence[str], *, pass_fds: Sequence[int] = (), output_fd: int) -> Child:
    """Start `argv` with no standard input, both outputs on `output_fd`, and `pass_fds` under the same numbers.

    Raises BackendError when the program does not start.
    """
    _expect_children()
    parent = os.getpid()

    def prepare() -> None:
        # The parent-death signal must be set before the program runs: it may be killed in its first instant.
        die_with_parent(parent)
        default_signals()

    try:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            pass_fds=pass_fds,
            env=MINIMAL_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            preexec_fn=prepare,
        )
        try:
            return Child(popen)
        except OSError:
            popen.kill()
            popen.wait()
            raise
    except OSError as exc:
        raise BackendError(f"{argv[0]} does not start (error {exc.errno})", remedy="see that it is installed") from exc
    except subprocess.SubprocessError as exc:
        raise BackendError(f"{argv[0]} does not start: the kernel refuses to end it with its parent") from exc


def spawn_detached(argv: Sequence[str], *, keep_fds: Sequence[int]) -> None:
    """Start `argv` in a session of its own as nobody's child: it is reparented to the nearest subreaper.

    It keeps descriptors 0 to 2 and `keep_fds`, and MINIMAL_ENVIRONMENT. Returns at once; a program that does not start
    shows only by what it does not send. It stands in the root directory. To be called while there is one thread.
    Raises OSError when not even a fork is possible.
    """
    _expect_children()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        if os.fork() == 0:
            # The new process itself leads the session: else it could not take a terminal.
            os.setsid()
            os.chdir("/")
            close_other_fds(keep_fds)
            for fd in keep_fds:
                os.set_inheritable(fd, True)
            default_signals()
            os.execve(argv[0], list(argv), dict(MINIMAL_ENVIRONMENT))
    finally:
        os._exit(127)


def adopt_orphans() -> None:
    """Make the calling process the reaper of what `spawn_detached` starts from here on."""
    _expect_children()
    become_subreaper()


def _expect_children() -> None:
    # Whoever started this process may have had it ignore SIGCHLD, and then there would be no exit status to wait for.
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def replace_self(path: str, argv: Sequence[str]) -> NoReturn:
    """Become another program, with this process's environment and descriptors. Raises OSError when it cannot."""
    # Python ignores these from its start on, and what is ignored stays so in the new program and all it starts.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execv(path, list(argv))


def output_of(argv: Sequence[str], *, timeout_s: float) -> tuple[int, bytes]:
    """Run a short program: its exit status and what it wrote to both outputs together. Raises OSError, TimeoutError."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=MINIMAL_ENVIRONMENT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError(f"{argv[0]} ran longer than {timeout_s} s") from exc
    return done.returncode, done.stdout
