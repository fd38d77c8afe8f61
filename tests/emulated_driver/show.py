"""python -m tests.emulated_driver.show BUNDLE IMAGE PYRUNE: a bundle's life on an emulated Nitro parent, to be seen.

Runs `PYRUNE create`, `start` and `delete` on a machine whose driver is emulated and whose enclaves boot, in a local
virtual machine, the image found in their memory. What happens goes to standard error, what the container said to
standard output. The bundle asks for debug mode, else the container says nothing. Source of scripts/hello
--nitro-emulated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.emulated_driver.journal import error_number
from tests.emulated_driver.machine import HUGE, Entry, NitroMachine, free_huge_pages, huge_pages
from tests.emulated_driver.scenario import Behaviour, Boot, Scenario

_CONTAINER: Final = "hello-nitro-enclave-container"
_PATIENCE_S: Final = 180.0
_ERROR_NAMES: Final = {"EINPROGRESS": "under way"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulated_driver.show")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("pyrune", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("This needs root: the emulated driver compares page frames, as the driver would see them.")
    needed = -(-_memory_mib(options.bundle) // (HUGE >> 20))
    with huge_pages(needed), tempfile.TemporaryDirectory(prefix="emulated-nitro-") as directory:
        free = free_huge_pages()
        if free < needed:
            sys.exit(f"This machine gives no huge pages: {free} of 2 MiB are free, and the enclave needs {needed}.")
        scenario = Scenario(image=str(options.image), enclaves=(Behaviour(boot=Boot.LOCAL),))
        machine = NitroMachine(Path(directory), scenario, {HUGE: free})
        machine.start_up()
        try:
            _show(machine, options.bundle, str(options.pyrune))
        finally:
            machine.close()


def _memory_mib(bundle: Path) -> int:
    arguments = json.loads((bundle / "config.json").read_text())["annotations"]["enclave.runtime.args"]
    return int(dict(item.split("=", 1) for item in arguments.split())["memory"])


def _show(machine: NitroMachine, bundle: Path, pyrune: str) -> None:
    transcript = _Transcript(machine)
    command = [pyrune, "--root", str(machine.directory / "root")]
    _say_pages("before")
    create = machine.start([*command, "create", "--bundle", str(bundle), _CONTAINER])
    _require(machine, create, "create")
    transcript.show("pyrune create")
    _say_pages("while the enclave has them")
    _require(machine, machine.start([*command, "start", _CONTAINER]), "start")
    transcript.show("pyrune start")
    _await_end(machine, [*command, "state", _CONTAINER])
    _require(machine, machine.start([*command, "delete", _CONTAINER]), "delete")
    transcript.show("the end, and pyrune delete")
    _say_pages("after")
    if leaks := machine.leaks():
        sys.exit("Not given back: " + "; ".join(leaks))
    said = (machine.directory / "0.out").read_text(errors="replace")
    _say("\nWhat the container said, booted from that memory:")
    sys.stdout.write(said)
    sys.stdout.flush()


def _require(machine: NitroMachine, popen: subprocess.Popen[bytes], verb: str) -> None:
    done = machine.finish(popen, _PATIENCE_S)
    if done.returncode:
        sys.exit(f"pyrune {verb} ended with status {done.returncode}: {done.stderr}")


def _await_end(machine: NitroMachine, state: list[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while json.loads(machine.run(state).stdout)["status"] != "stopped":
        if time.monotonic() > deadline:
            sys.exit("The container does not end.")
        time.sleep(0.2)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_pages(when: str) -> None:
    _say(f"    HugePages_Free {when}: {free_huge_pages()}")


class _Transcript:
    """The driver's log, as far as it has not been shown yet."""

    def __init__(self, machine: NitroMachine) -> None:
        self._machine = machine
        self._shown = 0

    def show(self, title: str) -> None:
        _say(f"\n{title}")
        entries = self._machine.log
        for entry in entries[self._shown :]:
            if line := _describe(entry):
                _say(f"    {line}")
        self._shown = len(entries)


def _describe(entry: Entry) -> str:
    """A line for a reader; empty for what would only distract."""
    match entry.get("call") or entry["event"]:
        case "image":
            verdict = "all equal" if entry["good"] else f"different from byte {entry['difference']} on"
            compared = f"{entry['compared_bytes']} bytes compared with the file, {verdict}"
            return f"the image in the enclave's memory: {compared}; pages moved: {entry['moved_pages']}"
        case "heartbeat":
            answer = "answered" if entry["answered"] else "not answered"
            return f"CID {entry['cid']} says on port 9000 that it is up: {answer}"
        case "machine":
            return f"the local virtual machine {entry['note']}"
        case "exit":
            return f"the enclave has ended ({entry['reason']})"
        case "closed":
            return f"its last descriptor is closed; CPUs {entry['cpus']} are back in the pool"
        case name:
            return _describe_call(str(name), entry)


def _describe_call(name: str, entry: Entry) -> str:
    arguments = entry.get("arguments", {})
    assert isinstance(arguments, Mapping)
    given = ", ".join(f"{key}={_number(key, value)}" for key, value in arguments.items())
    what = f"ioctl {name}" if name.startswith("NE_") else name
    outcome = ""
    if "error" in entry:
        error = entry["error"]
        assert isinstance(error, str | int)
        outcome = f": {_ERROR_NAMES.get(str(error), f'{error} ({error_number(error)})')}"
    for key in ("vcpu_id", "memory_offset", "pages", "enclave_cid"):
        if key in entry:
            outcome += f" -> {key} {entry[key]}"
    return f"{what}({given}){outcome}"


def _number(key: str, value: object) -> str:
    return hex(int(str(value))) if key == "userspace_addr" else str(value)


if __name__ == "__main__":
    main()
