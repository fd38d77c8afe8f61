"""What the tests of the contract share: the programs side by side, and what they need of the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.oracle import Program, pyrune_program, runc_program
from tests.needs import missing
from tests.support.command import Pyrune, wait_until
from tests.support.images import Images


@pytest.fixture(scope="session")
def sleeping_image(images: Images) -> Path:
    """An enclave image that says `ready` and never ends."""
    if not shutil.which("qemu-system-x86_64"):
        missing("qemu", "qemu-system-x86_64 is not installed")
    return images.application("sleep")


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Program]:
    """The oracle, with a bundle of its own."""
    if not shutil.which("runc") and not shutil.which("runc", path="/usr/sbin"):
        missing("runc", "it is not installed")
    if not shutil.which("busybox"):
        missing("runc", "its containers need busybox-static, which is not installed")
    if os.geteuid() != 0:
        missing("root", "runc's containers need it")
    (tmp_path / "runc").mkdir()
    program = runc_program(tmp_path / "runc")
    yield program
    program.clean_up()


@pytest.fixture
def beside(tmp_path: Path, sleeping_image: Path) -> Iterator[Program]:
    """pyrune as runc's counterpart: it answers itself, since it knows of no runc."""
    directory = tmp_path / "pyrune"
    directory.mkdir()
    program = pyrune_program(directory, sleeping_image)
    yield program
    program.clean_up()
    wait_until(lambda: not Pyrune(directory).processes(), "processes of this test are left", timeout_s=10)


@pytest.fixture
def sleeper(pyrune: Pyrune, sleeping_image: Path) -> Path:
    """The bundle of an enclave that never ends."""
    return pyrune.bundle(sleeping_image)
