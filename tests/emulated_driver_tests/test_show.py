"""What scripts/hello --nitro-emulated shows, with an image of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.process import find_program
from tests.emulated_driver.machine import CHECKOUT
from tests.needs import missing
from tests.support.command import COMMAND
from tests.support.images import Images


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_calls_pages_and_compared_bytes_are_shown_and_then_what_the_container_said(
    images: Images, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        missing("root", "the emulated driver looks at page frames, which only root may")
    if find_program("qemu-system-x86_64") is None:
        missing("qemu", "qemu-system-x86_64 is not installed")
    image = images.application("print", "3", architecture=Architecture.X86_64)
    _write_bundle(tmp_path, image)
    done = subprocess.run(
        [sys.executable, "-m", "tests.emulated_driver.show", str(tmp_path), str(image), str(COMMAND)],
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        timeout=200,
        check=False,
    )
    if "gives no huge pages" in done.stderr:
        missing("hugepages", done.stderr.strip())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert f"{image.stat().st_size} bytes compared with the file, all equal; pages moved: 0" in done.stderr
    pages = [line.rsplit(": ", 1) for line in done.stderr.splitlines() if "HugePages_Free" in line]
    before, during, after = (int(number) for _, number in pages)
    assert (before - during, after) == (128, before)
    shown = [line.split("(")[0].strip() for line in done.stderr.splitlines() if line.startswith("    ioctl")]
    assert shown[0] == "ioctl NE_CREATE_VM"
    assert shown[-1] == "ioctl NE_START_ENCLAVE"


def _write_bundle(directory: Path, image: Path) -> None:
    config = {
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "env": []},
        "root": {"path": "rootfs"},
        "annotations": {
            "enclave.type": "AwsNitroEnclaves",
            "enclave.runtime.args": f"image={image} memory=256 vcpus=2 debug=true",
        },
    }
    (directory / "rootfs").mkdir()
    (directory / "config.json").write_text(json.dumps(config))
