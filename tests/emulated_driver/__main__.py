"""python -m tests.emulated_driver --scenario FILE --log FILE [--control SOCKET] [--serve | -- COMMAND ARGUMENT...]

With a command: becomes that command, under the driver, so its exit status is the command's. The driver lives on as
long as anything that the command started. With --serve: the driver alone, until it is told to stop or gets SIGTERM;
commands are put under it with launch.py. A line `ready` on standard output says that its control socket is there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.emulated_driver.scenario import Scenario
from tests.emulated_driver.supervisor import Supervisor

LAUNCHER = Path(__file__).with_name("launch.py")


def launcher(control: Path) -> list[str]:
    """What to put before a command so that it runs under the driver that listens at `control`."""
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(control)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.emulated_driver")
    parser.add_argument("--scenario", type=Path, help="a JSON file; see scenario.py")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--control", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if options.serve == bool(options.command):
        parser.error("either --serve or a command")
    scenario = Scenario.load(options.scenario) if options.scenario else Scenario()
    own_directory = None
    control = options.control
    if control is None:
        own_directory = Path(tempfile.mkdtemp(prefix="emulated-driver-"))
        control = own_directory / "control"
    if options.serve:
        _serve(scenario, options.log, control, linger=True)
    else:
        _serve_in_background(scenario, options.log, control, own_directory)
        argv = [*launcher(control), *options.command]
        os.execv(argv[0], argv)


def _serve(scenario: Scenario, log: Path, control: Path, *, linger: bool) -> None:
    supervisor = Supervisor(scenario, log, control, linger=linger)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    print("ready", flush=True)
    supervisor.run()


def _serve_in_background(scenario: Scenario, log: Path, control: Path, own_directory: Path | None) -> None:
    """As nobody's child, so that the command does not meet a child that it does not know."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            os.dup2(write_end, 1)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.closerange(3, 1 << 16)
            _serve(scenario, log, control, linger=False)
            if own_directory is not None:
                own_directory.rmdir()
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as ready:
        if ready.readline() != b"ready\n":
            sys.exit("the emulated driver does not start")


if __name__ == "__main__":
    main()
