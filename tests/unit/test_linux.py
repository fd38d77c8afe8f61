"""The Linux calls, made for real."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrune.linux import (
    ProcessIdentity,
    bind_unix,
    boot_id,
    connect_unix,
    descendants,
    parse_signal,
    read_stat,
    wait_for_exit,
)
from tests.support.command import is_alive, wait_until
from tests.support.programs import next_line, output_of, running

SLEEP = "print(flush=True); import signal; signal.pause()"


def test_a_process_dies_with_its_parent() -> None:
    code = """if True:
        import os, signal
        from pyrune.linux import die_with_parent
        parent = os.getpid()
        if (pid := os.fork()) == 0:
            die_with_parent(parent)
            print(os.getpid(), flush=True)
        signal.pause()
        """
    with running(code) as parent:
        child = int(next_line(parent))
        assert is_alive(child)
        parent.kill()
        wait_until(lambda: not is_alive(child), "the child outlives its parent")


def test_a_process_whose_parent_has_died_before_dies_at_once() -> None:
    code = """if True:
        import os
        from pyrune.linux import die_with_parent
        if (pid := os.fork()) == 0:
            die_with_parent(os.getpid())
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    assert int(output_of(code)) == -signal.SIGKILL


def test_a_subreaper_is_the_parent_of_orphans_until_it_no_longer_is() -> None:
    code = """if True:
        import os, sys
        from pyrune.linux import become_subreaper
        def parent_of_an_orphan():
            read_end, write_end = os.pipe()
            if (child := os.fork()) == 0:
                middle = os.getpid()
                if os.fork() == 0:
                    while os.getppid() == middle:
                        pass
                    os.write(write_end, str(os.getppid()).encode())
                os._exit(0)
            os.waitpid(child, 0)
            return int(os.read(read_end, 100))
        become_subreaper()
        assert parent_of_an_orphan() == os.getpid()
        become_subreaper(False)
        assert parent_of_an_orphan() != os.getpid()
        """
    output_of(code)


def test_privileges_and_tracing_are_given_up() -> None:
    code = """if True:
        import re
        from pyrune.linux import forbid_tracing, no_new_privileges, set_comm
        import ctypes
        no_new_privileges()
        forbid_tracing()
        set_comm("a-name-of-more-than-15-bytes")
        print(open("/proc/self/comm").read().strip())
        print(re.search(r"NoNewPrivs:\\t(.)", open("/proc/self/status").read())[1])
        print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
        """
    assert output_of(code).split() == ["a-name-of-more-", "1", "0"]


def test_only_the_kept_descriptors_stay_open() -> None:
    code = """if True:
        import os
        from pyrune.linux import close_other_fds
        for _ in range(300):
            os.open("/dev/null", os.O_RDONLY)
        close_other_fds([200, 7, 1, 7])
        open_now = []
        for fd in range(1024):
            try:
                os.fstat(fd)
            except OSError:
                continue
            open_now.append(fd)
        print(*open_now)
        """
    assert output_of(code).split() == ["0", "1", "2", "7", "200"]


def test_the_identity_of_a_process_ends_with_it() -> None:
    with running(SLEEP) as process:
        next_line(process)
        identity = ProcessIdentity.of(process.pid)
        assert identity.is_alive()
        pidfd = identity.open_pidfd()
        assert pidfd is not None
        assert not wait_for_exit(pidfd, 0.01)
        process.kill()
        assert wait_for_exit(pidfd, None)
        os.close(pidfd)
        # Not waited for yet, it is a zombie: its pid is taken, but it runs no longer.
        stat_of_zombie = read_stat(process.pid)
        assert stat_of_zombie is not None
        assert stat_of_zombie.state == "Z"
        assert not identity.is_alive()
        assert identity.open_pidfd() is None
        with pytest.raises(ProcessLookupError):
            ProcessIdentity.of(process.pid)
    assert read_stat(process.pid) is None
    assert identity.open_pidfd() is None


def test_a_process_lives_until_its_last_thread_has_ended() -> None:
    # What a killed process looks like while a call into the kernel holds one of its threads: its first thread is a
    # zombie. Here that thread ends by itself, by exit(2), which the C library hides.
    code = """if True:
        import ctypes, os, threading, time
        threading.Thread(target=lambda: (time.sleep(0.2), print("go", flush=True), time.sleep(60))).start()
        number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
        ctypes.CDLL(None).syscall(number, 0)
        """
    with running(code) as process:
        next_line(process)
        stat = read_stat(process.pid)
        assert stat is not None
        assert (stat.state, stat.threads) == ("Z", 2)
        identity = ProcessIdentity.of(process.pid)
        assert identity.is_alive()
        pidfd = identity.open_pidfd()
        assert pidfd is not None
        process.kill()
        assert wait_for_exit(pidfd, None)
        os.close(pidfd)
        assert not identity.is_alive()


def test_another_process_with_the_same_pid_is_another() -> None:
    me = ProcessIdentity.of(os.getpid())
    before = ProcessIdentity(me.pid, me.start_time_ticks - 1, me.boot_id)
    before_the_reboot = ProcessIdentity(me.pid, me.start_time_ticks, "another boot")
    for other in (before, before_the_reboot):
        assert not other.is_alive()
        assert other.open_pidfd() is None


def test_a_name_with_parentheses_and_spaces_does_not_confuse() -> None:
    code = "from pyrune.linux import set_comm; set_comm(') R 1 (x) S'); " + SLEEP
    with running(code) as process:
        next_line(process)
        found = read_stat(process.pid)
        assert found is not None
        assert found.parent_pid == os.getpid()


def test_descendants_are_named_after_their_parents() -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"
    with running(code) as process:
        next_line(process)
        next_line(process)
        found = descendants(os.getpid())
        assert found.index(process.pid) < found.index(*descendants(process.pid))
        (grandchild,) = descendants(process.pid)
        os.kill(grandchild, signal.SIGKILL)


def test_the_boot_id_stays_the_same() -> None:
    assert boot_id() == boot_id() != ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigkill", 9), ("kill", 9), ("0", 0), ("64", 64), ("015", 15)),
        *(("SIGRTMIN", 34), ("RTMIN+3", 37), ("rtmax-1", 63), ("SIGIOT", 6), ("CLD", 17), ("POLL", 29)),
        *(("65", None), ("999", None), ("-9", None), ("+9", None), ("", None), ("SIG", None), ("SIGSIGKILL", None)),
        *(("RTMIN-1", None), ("RTMAX+1", None), ("RTMIN+99", None), ("9 ", None), ("٩", None), ("KILL\n", None)),
    ],
)
def test_a_signal_has_a_number_and_many_spellings(text: str, number: int | None) -> None:
    assert parse_signal(text) == number


@pytest.fixture
def directory_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_unix_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path, directory_fd: int) -> None:
    previous = os.umask(0)
    try:
        bind_unix(directory_fd, "open").close()
        os.umask(0o077)
        bind_unix(directory_fd, "closed").close()
    finally:
        os.umask(previous)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("open", "closed")] == [0o600, 0o600]


def test_a_unix_socket_works_where_paths_are_too_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    fd = os.open(deep, os.O_RDONLY | os.O_DIRECTORY)
    with bind_unix(fd, "socket") as listener, connect_unix(fd, "socket", 5) as caller:
        accepted, _ = listener.accept()
        with accepted:
            caller.sendall(b"x")
            assert accepted.recv(10) == b"x"
    os.close(fd)


@pytest.mark.parametrize("make", ["bind", "connect"])
def test_a_socket_that_fails_is_closed(make: str, tmp_path: Path, directory_fd: int) -> None:
    (tmp_path / "taken").touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        bind_unix(directory_fd, "taken") if make == "bind" else connect_unix(directory_fd, "taken", 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_whoever_connects_waits_while_the_listener_is_busy(tmp_path: Path, directory_fd: int) -> None:
    with bind_unix(directory_fd, "busy", backlog=0) as listener:
        first = connect_unix(directory_fd, "busy", 5)
        code = """if True:
            import os, sys
            from pyrune.linux import connect_unix
            fd = os.open(sys.argv[1], os.O_RDONLY)
            print("calls", flush=True)
            connect_unix(fd, "busy", 20)
            print("connected", flush=True)
            """
        with running(code, str(tmp_path)) as caller:
            assert next_line(caller) == "calls"
            wait_until(lambda: _waits(caller), "the caller does not wait")
            listener.accept()[0].close()
            assert next_line(caller) == "connected"
        first.close()


def _waits(process: subprocess.Popen[str]) -> bool:
    """Asleep, or at its end."""
    found = read_stat(process.pid)
    return found is None or found.state in "SZ"


def test_whoever_connects_gives_up_in_time(directory_fd: int) -> None:
    with bind_unix(directory_fd, "busy", backlog=0), connect_unix(directory_fd, "busy", 5):
        with pytest.raises(TimeoutError):
            connect_unix(directory_fd, "busy", 0.05)
        with pytest.raises(FileNotFoundError):
            connect_unix(directory_fd, "nothing", 0.05)
