"""The few Linux calls that Python's library lacks, one function each.

Not here: anything that knows what an enclave or a container is. Sources: prctl(2), proc(5), pidfd_open(2),
signal(7), unix(7) and the kernel's include/uapi/linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl option {option}: {os.strerror(number)}")


def die_with_parent(expected_parent_pid: int) -> None:
    """Have the kernel send SIGKILL to the calling process when the thread that started it ends.

    The setting survives execve of an ordinary program. A parent that died before the call is noticed by comparing
    the parent's pid, unless `expected_parent_pid` is 0.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if expected_parent_pid and os.getppid() != expected_parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def become_subreaper(on: bool = True) -> None:
    """Make orphaned descendants children of the calling process, so that it can wait for them."""
    _prctl(PR_SET_CHILD_SUBREAPER, int(on))


def no_new_privileges() -> None:
    """Bar the calling process and all it starts from gaining privileges by execve. It cannot be undone."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def forbid_tracing() -> None:
    """Keep other processes of the same user from reading the calling process's memory; execve undoes it."""
    _prctl(PR_SET_DUMPABLE, 0)


def default_signals() -> None:
    """Ignore and block nothing any more: unlike handlers, both outlive execve. For the main thread only."""
    for number in signal.valid_signals():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def set_comm(name: str) -> None:
    """Name the calling thread in /proc/self/comm; the kernel keeps the first 15 bytes."""
    Path("/proc/self/comm").write_bytes(name.encode()[:15])


def close_other_fds(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    kept = sorted({fd for fd in keep if fd > 2})
    lowest = 3
    for fd in kept:
        os.closerange(lowest, fd)
        lowest = fd + 1
    # The limit on open files may be 2^30: close_range(2), which closerange uses, does not care.
    os.closerange(lowest, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for another with the same pid, before or after a reboot."""

    pid: int
    start_time_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a live process. Raises ProcessLookupError where there is none (a zombie is none)."""
        stat = read_stat(pid)
        if stat is None or stat.is_over:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, stat.start_time_ticks, boot_id())

    def is_alive(self) -> bool:
        """Whether that very process still runs. A zombie does not."""
        stat = read_stat(self.pid)
        return (
            stat is not None
            and not stat.is_over
            and stat.start_time_ticks == self.start_time_ticks
            and self.boot_id == boot_id()
        )

    def open_pidfd(self) -> int | None:
        """A pidfd of that very process, which the caller closes; None when it runs no longer."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # The pid cannot change hands while the pidfd is open, so what is compared now stays true.
        if self.is_alive():
            return fd
        os.close(fd)
        return None


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What is used of /proc/PID/stat, see proc(5): `state` is one letter, times are clock ticks since boot."""

    state: str
    parent_pid: int
    start_time_ticks: int
    threads: int = 1

    @property
    def is_over(self) -> bool:
        """Whether nothing of the process runs. One that is killed shows as a zombie while a call into the kernel keeps
        another of its threads; until then it holds what it has open."""
        return self.state in "ZX" and self.threads <= 1


def read_stat(pid: int) -> ProcessStat | None:
    """/proc/PID/stat, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name, in parentheses, may itself hold spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]), int(fields[17]))


def boot_id() -> str:
    """The kernel's random name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def descendants(pid: int) -> list[int]:
    """The pids of all live descendants of `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))) is not None and not stat.is_over:
            children.setdefault(stat.parent_pid, []).append(int(entry))
    found = sorted(children.get(pid, ()))
    for child in found:
        found.extend(sorted(children.get(child, ())))
    return found


def wait_for_exit(pidfd: int, timeout_s: float | None) -> bool:
    """Wait until the process behind `pidfd` has ended; False when `timeout_s` passed first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0, int(timeout_s * 1000))))


def write_some(fd: int, data: memoryview | bytes) -> int:
    """write(2), which waits for room even where somebody else has set the shared descriptor non-blocking."""
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


_SIGNALS = {name: int(number) for name, number in signal.Signals.__members__.items()}
_SIGNALS |= {"SIGIOT": 6, "SIGCLD": 17, "SIGSTKFLT": 16}


def parse_signal(text: str) -> int | None:
    """A signal's number from `9`, `KILL`, `SIGKILL`, `RTMIN+3` in any case, or None when it is no signal."""
    if re.fullmatch(r"[0-9]{1,3}", text):
        return int(text) if int(text) <= signal.NSIG - 1 else None
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if found := re.fullmatch(r"SIGRT(MIN|MAX)(?:([+-])([0-9]{1,2}))?", name):
        base = int(signal.SIGRTMIN) if found[1] == "MIN" else int(signal.SIGRTMAX)
        number = base + int(f"{found[2] or '+'}{found[3] or 0}")
        return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else None
    return _SIGNALS.get(name)


def bind_unix(directory_fd: int, name: str, *, backlog: int = 128) -> socket.socket:
    """A listening stream socket at `name` inside a directory, mode 0600.

    It goes through /proc/self/fd, so the directory's path may be longer than the 107 bytes of unix(7), and a directory
    that is moved meanwhile does not matter.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # fchmod before bind decides the mode of the file, with no moment in between where others may connect.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(f"/proc/self/fd/{directory_fd}/{name}")
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_unix(directory_fd: int, name: str, timeout_s: float | None) -> socket.socket:
    """A stream socket connected to `name` inside a directory; its timeout stays. Raises OSError, TimeoutError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A socket with a timeout of Python's would not wait for a listener that is busy, but fail with EAGAIN.
        _set_send_timeout(sock, timeout_s)
        sock.connect(f"/proc/self/fd/{directory_fd}/{name}")
        _set_send_timeout(sock, None)
        sock.settimeout(timeout_s)
    except BlockingIOError as exc:
        sock.close()
        raise TimeoutError(exc.errno, f"{name} accepted no connection in time") from exc
    except BaseException:
        sock.close()
        raise
    return sock


def _set_send_timeout(sock: socket.socket, timeout_s: float | None) -> None:
    microseconds = 0 if timeout_s is None else max(1, int(timeout_s * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(microseconds, 1_000_000)))
