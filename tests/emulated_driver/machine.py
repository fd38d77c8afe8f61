"""A machine with the emulated driver, as a test uses it: commands that all meet the same driver, and what it saw."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from pyrune.linux import become_subreaper, descendants, read_stat
from tests.emulated_driver import control
from tests.emulated_driver.__main__ import launcher
from tests.emulated_driver.cpu_pool import parse_cpu_list
from tests.emulated_driver.scenario import Scenario

CHECKOUT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 50.0
HUGE: Final = 2 << 20
GIGANTIC: Final = 1 << 30
_POOLS: Final = Path("/sys/kernel/mm/hugepages")

Entry = dict[str, object]
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class EnclaveView:
    """An open enclave, as the driver knows it."""

    number: int
    state: str
    cid: int
    debug: bool
    vcpus: list[int]
    cpus: list[int]
    memory_bytes: int


def free_huge_pages(size: int = HUGE) -> int:
    """How many huge pages of a size, on all nodes together, are neither used nor promised."""
    # What is promised can be below zero for a moment, which the file shows as a number of 64 bits.
    reserved = _pages(size, "resv_hugepages")
    return _pages(size, "free_hugepages") - (reserved - (1 << 64) if reserved >> 63 else reserved)


def _pages(size: int, name: str) -> int:
    return int((_POOLS / f"hugepages-{size >> 10}kB" / name).read_text())


@contextlib.contextmanager
def huge_pages(count: int, gigantic: int = 0) -> Iterator[None]:
    """At least `count` free huge pages of 2 MiB and `gigantic` of 1 GiB while it lasts, if the machine can have them.

    The pools are the whole machine's: who else asks for pages this way waits.
    """
    with open(Path(tempfile.gettempdir()) / "pyrune-huge-pages.lock", "w") as lock, contextlib.ExitStack() as undo:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for size, wanted in ((GIGANTIC, gigantic), (HUGE, count)):
            if wanted:
                number = _POOLS / f"hugepages-{size >> 10}kB" / "nr_hugepages"
                before = number.read_text()
                undo.callback(number.write_text, before)
                number.write_text(str(int(before) + max(0, wanted - free_huge_pages(size))))
        yield


@dataclass(slots=True)
class NitroMachine:
    """Made by the fixture `nitro_machine`. The directory holds the log, the control socket and what commands print."""

    directory: Path
    scenario: Scenario
    # By size; empty where the test has asked for none: then others may change their number.
    huge_pages_before: Mapping[int, int]
    _supervisor: subprocess.Popen[bytes] | None = None
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _before: frozenset[int] = frozenset()

    @property
    def log_path(self) -> Path:
        return self.directory / "driver.log"

    @property
    def control_path(self) -> Path:
        return self.directory / "driver"

    @property
    def prefix(self) -> list[str]:
        """What comes before a command that is to run on this machine."""
        return launcher(self.control_path)

    def start_up(self) -> None:
        """Start the driver. From here on this process is the parent of all orphans, so that none gets lost."""
        become_subreaper()
        self._before = frozenset(descendants(os.getpid()))
        (self.directory / "scenario.json").write_text(self.scenario.to_json())
        argv = [sys.executable, "-m", "tests.emulated_driver", "--serve"]
        argv += ["--scenario", str(self.directory / "scenario.json")]
        argv += ["--log", str(self.log_path), "--control", str(self.control_path)]
        with (self.directory / "driver.stderr").open("wb") as complaints:
            self._supervisor = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, cwd=CHECKOUT
            )
        assert self._supervisor.stdout is not None
        with self._supervisor.stdout as ready:
            assert ready.readline() == b"ready\n", self.complaints

    def start(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command; its outputs go to files of the machine's directory, so that nothing waits for them."""
        number = len(self._started)
        with (self.directory / f"{number}.out").open("wb") as out, (self.directory / f"{number}.err").open("wb") as err:
            popen = subprocess.Popen(
                [*self.prefix, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
            )
        self._started.append(popen)
        return popen

    def finish(self, popen: subprocess.Popen[bytes], timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Wait for a command, which is killed when it takes too long."""
        number = self._started.index(popen)
        try:
            status = popen.wait(timeout_s)
        finally:
            popen.kill()
        texts = [(self.directory / f"{number}.{name}").read_text(errors="replace") for name in ("out", "err")]
        return subprocess.CompletedProcess(popen.args, status, *texts)

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return self.finish(self.start(argv, environment), timeout_s)

    # --- what the driver says --------------------------------------------------------------------------------------

    def control(self, verb: str, **arguments: object) -> Entry:
        """Ask the driver; see control.py. Raises ValueError with its reason when it refuses."""
        reply = control.ask(self.control_path, verb, arguments)
        if "error" in reply:
            raise ValueError(str(reply["error"]))
        return reply

    @property
    def log(self) -> list[Entry]:
        """All that happened so far, in order."""
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def calls(self, *names: str) -> list[str]:
        """The names of the calls so far, in order; only those of `names` if there are any."""
        return [str(entry["call"]) for entry in self.log if "call" in entry and (not names or entry["call"] in names)]

    def events(self, name: str) -> list[Entry]:
        return [entry for entry in self.log if entry.get("event") == name]

    def wait_for_event(self, name: str, count: int = 1, timeout_s: float = 20.0) -> Entry:
        """Wait until there are `count` events of that name; returns the last of them."""

        def find() -> Entry | None:
            found = self.events(name)
            return found[count - 1] if len(found) >= count else None

        return self._wait(find, f"no {name}", timeout_s)

    def wait_for_call(self, name: str, count: int = 1) -> None:
        """Wait until so many calls of that name are over."""
        self._wait(lambda: len(self.calls(name)) >= count or None, f"no {name}")

    def wait_for_held(self, call: str) -> int:
        """Wait until a fault holds such a call; returns the process that made it."""

        def find() -> int | None:
            held = self.control("state")["held"]
            assert isinstance(held, list)
            return next((int(pid) for name, pid in held if name == call), None)

        return self._wait(find, f"no {call} stands still")

    def wait_for_enclaves(self, count: int) -> None:
        """Wait until so many enclaves are open."""
        self._wait(lambda: len(self.enclaves) == count or None, f"there are not {count} enclaves")

    def _wait(self, find: Callable[[], _Found | None], complaint: str, timeout_s: float = 20.0) -> _Found:
        deadline = time.monotonic() + timeout_s
        while (found := find()) is None:
            assert time.monotonic() < deadline, f"{complaint}: {self.log_path.read_text()}"
            time.sleep(0.02)
        return found

    @property
    def enclaves(self) -> list[EnclaveView]:
        """Those that are open."""
        found = self.control("state")["enclaves"]
        assert isinstance(found, list)
        return [EnclaveView(**entry) for entry in found]

    @property
    def programs(self) -> list[int]:
        """The processes that run on this machine, those whose parents have ended too."""
        supervisor = self._supervisor.pid if self._supervisor is not None else 0
        others = {*self._before, supervisor, *descendants(supervisor)}
        return [pid for pid in descendants(os.getpid()) if pid not in others]

    @property
    def complaints(self) -> str:
        """What the supervisor itself had to say: nothing, if all is well."""
        return (self.directory / "driver.stderr").read_text()

    def leaks(self) -> list[str]:
        """What is not as it was: sentences, none if all has been given back."""
        found = [f"{enclave} is open" for enclave in self.enclaves]
        free = self.control("state")["free_cpus"]
        if free != parse_cpu_list(self.scenario.pool):
            found.append(f"only the CPUs {free} are free")
        for size, before in self.huge_pages_before.items():
            if (pages := free_huge_pages(size)) != before:
                found.append(f"{pages} huge pages of {size >> 20} MiB are free, not {before}")
        return found

    def close(self) -> None:
        """End whatever still runs here, and then the driver. AssertionError if something does not end."""
        if self._supervisor is None or self._supervisor.returncode is not None:
            return
        try:
            self._end_programs()
        finally:
            self._supervisor.terminate()
            try:
                self._supervisor.wait(10)
            finally:
                self._supervisor.kill()
                self._supervisor.wait()
                self._reap()
                become_subreaper(False)
        assert self.complaints == ""

    def _end_programs(self) -> None:
        deadline = time.monotonic() + 10
        # A child may be made while its parent is being killed; the filters tell when none is left.
        while self.programs or self.control("state")["filters"]:
            assert time.monotonic() < deadline, f"processes stay under the driver: {self.programs}"
            for pid in self.programs:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._reap()
            time.sleep(0.02)
        for popen in self._started:
            popen.wait(10)

    def _reap(self) -> None:
        """Bury the dead that this process was left with."""
        for popen in self._started:
            popen.poll()
        known = {popen.pid for popen in self._started} | self._before
        for stat in Path("/proc").glob("[0-9]*/stat"):
            pid = int(stat.parent.name)
            found = read_stat(pid)
            if found is not None and found.parent_pid == os.getpid() and found.state == "Z" and pid not in known:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
