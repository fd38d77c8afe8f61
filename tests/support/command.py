"""The installed command as a user has it, with a root of its own for each test, and nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryFile

from pyrune.linux import read_stat

COMMAND = Path(sys.executable).with_name("pyrune")
TIMEOUT_S = 120.0


class Pyrune:
    """Calls pyrune on containers below `root`. `environment` is all that the command gets."""

    def __init__(self, directory: Path, *, backend: str = "local") -> None:
        self.directory = directory
        self.root = directory / "root"
        self.global_options = ["--root", str(self.root), "--backend", backend]
        self.environment: Mapping[str, str] = {"PATH": os.environ["PATH"]}

    def argv(self, *arguments: str) -> list[str]:
        return [str(COMMAND), *self.global_options, *arguments]

    def __call__(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run to the end; both outputs are text.

        The outputs are files, not pipes: what a `create` starts keeps them open, and a pipe would be waited for. They
        are new ones for each call, or what it starts would write into those of the next.
        """
        with TemporaryFile(dir=self.directory) as out, TemporaryFile(dir=self.directory) as err:
            done = subprocess.run(
                self.argv(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                timeout=timeout_s,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            texts = [file.read().decode(errors="replace") for file in (out, err)]
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def ok(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> str:
        """As a call, but it must succeed. Returns its standard output."""
        done = self(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def bundle(self, image: Path | str, memory: str = "256", vcpus: str = "1", **annotations: str) -> Path:
        """A bundle that asks for this image; further annotations as enclave_boot_timeout="5"."""
        path = self.directory / f"bundle-{len(list(self.directory.glob('bundle-*')))}"
        (path / "rootfs").mkdir(parents=True)
        self.ok("spec", "--enclave", "--image", str(image), "--memory", memory, "--vcpus", vcpus, "--bundle", str(path))
        if annotations:
            config = json.loads((path / "config.json").read_text())
            config["annotations"] |= {key.replace("_", "."): value for key, value in annotations.items()}
            (path / "config.json").write_text(json.dumps(config))
        return path

    def status(self, container_id: str) -> str:
        return str(json.loads(self.ok("state", container_id))["status"])

    def pids(self, container_id: str) -> dict[str, int]:
        """The container's processes on this machine, by what they are: monitor, vsock, qemu."""
        found = {}
        for pid in json.loads(self.ok("ps", "--format", "json", container_id)):
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
            found[{"pyrune-monitor": "monitor", "pyrune-vsock": "vsock"}.get(comm, "qemu")] = int(pid)
        return found

    def file(self, container_id: str, name: str) -> str:
        """A file in the container's directory, as text; empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / container_id / name).read_text(errors="replace")
        return ""

    def clean_up(self) -> None:
        """Delete every container, and see that no process is left that knows this root."""
        for container in sorted(self.root.glob("*")):
            self("delete", "--force", container.name)
        wait_until(lambda: not self.processes(), "processes of this test are left", timeout_s=10)

    def processes(self) -> list[str]:
        """The command lines of live processes that hold something below this test's directory, or name it."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid() and self._concerns(process):
                with contextlib.suppress(OSError):
                    found.append(f"{process.name} " + (process / "cmdline").read_text().replace("\0", " "))
        return found

    def _concerns(self, process: Path) -> bool:
        place = str(self.directory)
        with contextlib.suppress(OSError):
            if place in (process / "cmdline").read_text():
                return True
            return any(place in os.readlink(fd) for fd in (process / "fd").iterdir())
        return False


def is_alive(pid: int) -> bool:
    """Whether there is such a process. One that only waits to be reaped is none: who reaps orphans takes its time."""
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for something that will be so; AssertionError with `what` when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
