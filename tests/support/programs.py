"""Small real programs: Python in a process of its own, which a test watches, talks to and kills at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
TIMEOUT_S = 30


@contextmanager
def running(
    code: str,
    *arguments: str,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """`code` as a process with pipes for standard input and output, killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        start_new_session=new_session,
        env=None if environment is None else dict(environment),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def output_of(code: str, *arguments: str) -> str:
    """What `code` prints, run to its end as a process, which must succeed."""
    with running(code, *arguments) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output
    return output


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line of a running program's output; the test's own timeout limits the wait."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the program ended without a word"
    return line.rstrip("\n")


def open_descriptors(pid: int | str = "self") -> dict[int, str]:
    """The open descriptors of a process and what they are; without the one that looks."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return found


def bury_the_dead() -> None:
    """Reap what other tests may have left to this process: for tests that wait for whoever ends next."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
