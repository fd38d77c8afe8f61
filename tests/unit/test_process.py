"""How other programs are started: what they inherit, when they die, what is told of their end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.linux import wait_for_exit
from pyrune.process import MINIMAL_ENVIRONMENT, find_program, output_of, spawn_child
from tests.support import programs
from tests.support.command import is_alive, wait_until
from tests.support.programs import bury_the_dead, next_line, open_descriptors, running

SLEEP = [sys.executable, "-c", "print('up', flush=True); import signal; signal.pause()"]


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


@pytest.fixture
def output() -> Iterator[int]:
    """An anonymous file for what a program prints."""
    fd = os.memfd_create("output")
    yield fd
    os.close(fd)


def text_of(fd: int) -> str:
    return os.pread(fd, 65536, 0).decode()


def finished(argv: Sequence[str], output_fd: int, pass_fds: Sequence[int] = ()) -> tuple[int | None, str]:
    """The exit status and the output of a child that ends by itself."""
    child = spawn_child(argv, pass_fds=pass_fds, output_fd=output_fd)
    assert wait_for_exit(child.pidfd, programs.TIMEOUT_S)
    status = child.poll()
    assert child.close() == status
    return status, text_of(output_fd)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -15 $$", -15)])
def test_the_status_of_a_child_is_its_exit_status_or_its_signal(script: str, status: int, output: int) -> None:
    assert finished(shell(script), output)[0] == status


def test_a_child_has_no_input_and_both_outputs_are_one(output: int) -> None:
    assert finished(shell("echo out; echo err >&2; cat"), output) == (0, "out\nerr\n")


def test_a_child_gets_the_minimal_environment_and_stands_in_the_root_directory(output: int) -> None:
    environment = finished(["/usr/bin/env"], output)[1].splitlines()
    assert environment == [f"{name}={value}" for name, value in MINIMAL_ENVIRONMENT.items()]
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    assert finished(["/bin/pwd"], output)[1] == "/\n"


def test_a_child_has_only_the_descriptors_that_it_is_given(output: int) -> None:
    code = "import os; print(*os.listdir('/proc/self/fd'))"
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]
    given = os.memfd_create("given")
    try:
        for fd in others:
            os.set_inheritable(fd, True)
        status, listed = finished([sys.executable, "-c", code], output, [given])
        # 3 is that of the listing itself.
        assert (status, listed.split()) == (0, ["0", "1", "2", "3", str(given)])
    finally:
        for fd in (*others, given):
            os.close(fd)


def test_a_child_is_in_a_session_of_its_own(output: int) -> None:
    pid, session = finished([sys.executable, "-c", "import os; print(os.getpid(), os.getsid(0))"], output)[1].split()
    assert pid == session


def test_a_program_that_does_not_exist_is_an_error_that_names_it(output: int) -> None:
    before = open_descriptors()
    with pytest.raises(BackendError, match=r"/no/such/program does not start \(error 2\); see that it is installed"):
        spawn_child(["/no/such/program"], output_fd=output)
    assert open_descriptors() == before


def test_a_child_that_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch, output: int, tmp_path: Path) -> None:
    def fail(_pid: int) -> int:
        raise OSError(24, "too many open files")

    bury_the_dead()
    monkeypatch.setattr(os, "pidfd_open", fail)
    before = open_descriptors()
    with pytest.raises(BackendError, match=r"sh does not start \(error 24\)"):
        spawn_child(shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"), output_fd=output)
    assert open_descriptors() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_closing_a_child_ends_and_reaps_it_once(output: int) -> None:
    before = open_descriptors()
    child = spawn_child(SLEEP, output_fd=output)
    assert child.poll() is None
    assert child.close() == -signal.SIGKILL
    assert child.close() == -signal.SIGKILL
    child.kill()
    assert not is_alive(child.pid)
    assert open_descriptors() == before


def test_closing_without_patience_may_be_repeated(output: int) -> None:
    child = spawn_child(SLEEP, output_fd=output)
    child.close(timeout_s=0)
    wait_until(lambda: child.close(timeout_s=0) == -signal.SIGKILL, "the child does not end")


SPAWN = """
import os, signal, sys
from pyrune.linux import wait_for_exit
from pyrune.process import spawn_child
def spawn(*argv):
    return spawn_child(argv, output_fd=1)
"""


def test_a_child_does_not_outlive_its_killed_parent() -> None:
    code = SPAWN + "print(spawn(sys.executable, '-c', 'import signal; signal.pause()').pid, flush=True); signal.pause()"
    with running(code) as parent:
        child = int(next_line(parent))
        assert is_alive(child)
        parent.kill()
        wait_until(lambda: not is_alive(child), "the child outlives its parent")


IGNORE = """
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD])
"""
SIGNAL_STATE = ("/bin/grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
CLEAN = ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_a_child_ignores_and_blocks_nothing_whatever_its_parent_does() -> None:
    code = IGNORE + SPAWN + f"wait_for_exit(spawn{SIGNAL_STATE!r}.pidfd, 20)"
    assert programs.output_of(code).split() == CLEAN


def test_the_status_of_a_child_is_known_where_its_death_is_ignored() -> None:
    code = IGNORE + SPAWN + "child = spawn('/bin/sh', '-c', 'exit 7'); wait_for_exit(child.pidfd, 20); "
    assert programs.output_of(code + "print(child.poll())") == "7\n"


DETACH = """
import os, signal, sys
from pyrune.process import adopt_orphans, spawn_detached
"""
REPORT = """
import json, os, sys
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
report = dict(pid=os.getpid(), parent=os.getppid(), session=os.getsid(0), cwd=os.getcwd(), given=int(sys.argv[1]))
report |= dict(fds=[fd for fd in range(1024) if is_open(fd)], environment=dict(os.environ))
print(json.dumps(report), flush=True)
"""
AWAIT_REPORT = f"""
adopt_orphans()
given = os.dup(0)
spawn_detached([sys.executable, "-I", "-c", {REPORT!r}, str(given)], keep_fds=[given])
pid, status = os.wait()
print(os.getpid(), os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass
class Report:
    """What a detached program says of itself, and the pid of who started it."""

    starter: int
    pid: int
    parent: int
    session: int
    cwd: str
    given: int
    fds: list[int]
    environment: dict[str, str]


def detached_report(before: str = "") -> Report:
    said, awaited = programs.output_of(DETACH + before + AWAIT_REPORT).splitlines()
    starter, status = awaited.split()
    assert status == "0"
    return Report(starter=int(starter), **json.loads(said))


def test_a_detached_program_belongs_to_the_subreaper_and_leads_its_own_session() -> None:
    report = detached_report()
    assert report.parent == report.starter != report.pid
    assert report.session == report.pid, "a terminal needs a session leader"


def test_an_orphan_belongs_to_the_subreaper_even_where_deaths_are_ignored() -> None:
    report = detached_report(IGNORE)
    assert report.parent == report.starter


def test_a_detached_program_keeps_nothing_but_what_it_is_given() -> None:
    report = detached_report("""
for fd in [os.open("/dev/null", os.O_RDONLY) for _ in range(100)]:
    os.set_inheritable(fd, True)
os.environ["SECRET"] = "x"
""")
    assert report.fds == [0, 1, 2, report.given]
    # The interpreter itself may set LC_CTYPE.
    assert {name: value for name, value in report.environment.items() if name != "LC_CTYPE"} == MINIMAL_ENVIRONMENT
    assert report.cwd == "/", "it would keep the caller's file system busy"


def test_a_detached_program_ignores_and_blocks_nothing_whatever_its_starter_does() -> None:
    code = IGNORE + DETACH + f"adopt_orphans(); spawn_detached({SIGNAL_STATE!r}, keep_fds=[]); os.wait()"
    assert programs.output_of(code).split() == CLEAN


def test_a_detached_program_that_does_not_exist_shows_by_its_silence() -> None:
    code = """
read_end, write_end = os.pipe()
spawn_detached(["/no/such/program"], keep_fds=[write_end])
os.close(write_end)
print(os.read(read_end, 10))
"""
    assert programs.output_of(DETACH + code) == "b''\n"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the programs `tool` and `sh`, in which the test stands."""
    for name in ("tool", "sh"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_programs_are_found_on_the_path_first(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(places))
    assert find_program("tool") == str(places / "tool")
    assert find_program("sh") == str(places / "sh")
    assert find_program("env") == "/usr/bin/env"
    assert find_program("no-such-tool") is None


@pytest.mark.parametrize("path", ["", None])
def test_without_a_path_programs_are_found_in_the_usual_places(
    path: str | None, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PATH") if path is None else monkeypatch.setenv("PATH", path)
    assert find_program("sh") in ("/usr/bin/sh", "/bin/sh")
    assert find_program("tool") is None


@pytest.mark.parametrize("path", [".", "", ":", "::/no/where", "./", "../x:."])
def test_the_current_directory_is_no_place_for_programs(
    path: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path)
    assert find_program("tool") is None
    assert find_program("sh") in ("/usr/bin/sh", "/bin/sh")


def test_the_output_of_a_short_program_is_both_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    status, text = output_of(shell("echo out; echo err >&2; echo $SECRET; exit 3"), timeout_s=20)
    assert (status, text) == (3, b"out\nerr\n\n")


def test_a_short_program_that_is_not_short_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"ran longer than 0\.1 s"):
        output_of(SLEEP, timeout_s=0.1)
    with pytest.raises(FileNotFoundError):
        output_of(["/no/such/program"], timeout_s=20)


def test_a_program_that_replaces_this_one_has_the_usual_signals_and_the_same_environment() -> None:
    code = f"""
import os
from pyrune.process import replace_self
os.environ["KEPT"] = "yes"
replace_self("/bin/sh", ["sh", "-c", 'echo $KEPT; exec "$@"', *{("sh", *SIGNAL_STATE)!r}])
"""
    assert programs.output_of(code).split() == ["yes", *CLEAN]
