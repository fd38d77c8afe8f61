"""What every part works with: a directory that goes away, the installed command, images, and how often to measure."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.repetition import duration_s
from pyrune.eif.format import Architecture
from pyrune.guest import build as guest_build
from pyrune.linux import wait_for_exit
from tests.support.command import Pyrune
from tests.support.images import Images

STREAMS_SOURCE = Path(__file__).with_name("streams.c")
PROGRAM_TIMEOUT_S = 60.0


class Unavailable(Exception):
    """What a part measures is not on this machine; the text says what is missing."""


class BenchmarkImages(Images):
    """Images whose application is streams.c instead of the tests' program."""

    def _program(self, architecture: Architecture) -> Path:
        output = self._directory / f"streams-{architecture.value}"
        if not output.exists():
            compile_streams(architecture, output)
        return output


@dataclass(frozen=True, slots=True)
class Workshop:
    """`turns` is how many pairs to measure, at most. Containers live below `pyrune.root`."""

    directory: Path
    pyrune: Pyrune
    turns: int

    def image(self, *arguments: str) -> Path:
        """An x86_64 image that runs the tests' program. Raises Unavailable."""
        return self._built(Images(self._subdirectory("images")), *arguments)

    def streams_image(self, *arguments: str) -> Path:
        """An x86_64 image that runs streams.c. Raises Unavailable."""
        return self._built(BenchmarkImages(self._subdirectory("streams-images")), *arguments)

    def aws_image(self) -> Path:
        """AWS's hello, which the tests' vectors hold. Raises Unavailable."""
        image = Path(os.environ.get("PYRUNE_TEST_VECTORS") or "/nonexistent") / "eif" / "aws-hello-aarch64.eif"
        if not image.is_file():
            raise Unavailable("PYRUNE_TEST_VECTORS names no directory with eif/aws-hello-aarch64.eif")
        return image

    def _built(self, images: Images, *arguments: str) -> Path:
        need("qemu-system-x86_64")
        with _what_tests_skip():
            return images.application(*arguments)

    def _subdirectory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(exist_ok=True)
        return path


@contextmanager
def workshop(turns: int) -> Iterator[Workshop]:
    """A workshop that leaves nothing behind: no container, no process, no file."""
    with tempfile.TemporaryDirectory(prefix="pyrune-benchmarks-") as place:
        directory = Path(place)
        pyrune = Pyrune(directory)
        try:
            yield Workshop(directory, pyrune, turns)
        finally:
            pyrune.clean_up()


def need(program: str) -> str:
    """The path of a program. Raises Unavailable."""
    path = shutil.which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path


def compile_streams(architecture: Architecture, output: Path) -> None:
    """streams.c as a static program. Raises Unavailable without the compiler."""
    if not guest_build.compiler_is_installed():
        raise Unavailable("the compiler for enclave programs is not installed (pip install 'pyrune[guest]')")
    guest_build.compile_static([STREAMS_SOURCE], guest_build.Architecture(architecture.value), output)


class ProgramFailed(Exception):
    """A program that is measured has not done what it was to do; the text says what it said."""


def run(argv: Sequence[str]) -> None:
    """Run a program to its end, its output dropped. Raises ProgramFailed.

    It is waited for by its pidfd: subprocess, given a limit, looks only every 50 ms whether the program has ended. Its
    complaints go to a file, not a pipe, which what a `create` starts would keep open.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints)
        pidfd = os.pidfd_open(process.pid)
        try:
            in_time = wait_for_exit(pidfd, PROGRAM_TIMEOUT_S)
        finally:
            os.close(pidfd)
            if process.poll() is None:
                process.kill()
            status = process.wait()
        if status or not in_time:
            complaints.seek(0)
            said = complaints.read(4096).decode(errors="replace").strip()
            raise ProgramFailed(f"{argv} ended with status {status}: {said}")


def running_time_s(*argv: str) -> Callable[[], float]:
    """A measurement: how long this program takes from its start to its end."""
    return lambda: duration_s(lambda: run(argv))


@contextmanager
def _what_tests_skip() -> Iterator[None]:
    try:
        yield
    except pytest.skip.Exception as exc:
        raise Unavailable(str(exc)) from exc
