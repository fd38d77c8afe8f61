"""Which machine it was: without that, no number means anything."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Row, Table
from pyrune import __version__
from pyrune.eif.format import Architecture
from pyrune.local.machine import Accelerator, kvm_works, program_name


def describe_host(load_before: float) -> Table:
    """Table of facts. `load_before` is the load average from before the first measurement."""
    load_now = os.getloadavg()[0]
    rows: list[Row] = [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{processor(_read('/proc/cpuinfo'))}, {os.cpu_count()} cores"),
        ("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"),
        ("system", f"{_system_name()}, Linux {platform.release()}"),
        ("Python", platform.python_version()),
        ("pyrune", f"{__version__}{_commit()}"),
        *((program_name(architecture), _qemu(architecture)) for architecture in Architecture),
        ("load average", f"{load_before:.1f} before, {load_now:.1f} after: of one minute, what is measured included"),
    ]
    return Table("The machine", ("", ""), rows)


def processor(cpuinfo: str) -> str:
    """The model, as /proc/cpuinfo of x86 names it."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _qemu(architecture: Architecture) -> str:
    program = shutil.which(program_name(architecture))
    if program is None:
        return "not installed"
    first_line = _output(program, "--version").partition("\n")[0]
    accelerator = Accelerator.KVM if kvm_works(architecture) else Accelerator.TCG
    return f"{first_line.removeprefix('QEMU emulator version ')}, {accelerator}"


def _system_name() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release"), re.MULTILINE)
    return found[1] if found else "unknown"


def _commit() -> str:
    if shutil.which("git") is None:
        return ""
    commit = _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD").strip()
    return f", commit {commit}" if commit else ""


def _output(*argv: str) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False
    )
    return done.stdout.decode(errors="replace")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
