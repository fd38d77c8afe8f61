"""The fake QEMU, put where the local back end finds the real one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pyrune.local import virtual_machine

FAKE = Path(__file__).with_name("fake_qemu.py")
# What QEMU says and does when the guest powers itself off.
POWEROFF = 'event {"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}} | exit 0'


class FakeQemu:
    """See fake_qemu.py."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "qemu-system-x86_64"
        self.program.write_text(f"#!{sys.executable} -I\n{FAKE.read_text()}")
        self.program.chmod(0o755)

    def script(self, *runs: str) -> None:
        """What it does in its first run, its second, ..."""
        (self.directory / "script").write_text("\n".join(runs) + "\n")

    @property
    def arguments(self) -> list[str]:
        """Those of the latest run."""
        return list(json.loads((self.directory / "arguments").read_text()))


@pytest.fixture
def fake_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    (tmp_path / "bin").mkdir()
    fake = FakeQemu(tmp_path / "bin")
    monkeypatch.setattr(virtual_machine, "find_program", lambda _name: str(fake.program))
    return fake
