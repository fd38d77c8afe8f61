"""The guest's init in real kernels: what an application finds, how it may end, and what is said of a broken image.

Images without a modules list or an application are not what pyrune builds; these tests lay them out by hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrune.eif.builder import build
from pyrune.eif.format import Architecture
from pyrune.guest.build import OUTPUT, compile_static, compiler_is_installed
from tests.needs import missing
from tests.support.command import Pyrune
from tests.support.images import CMDLINE, kernel_directory

PROBE = Path(__file__).with_name("probe.c")
pytestmark = pytest.mark.timeout(180)

Change = Callable[[Path, Path], None]


class Guest:
    """Builds and runs images of the probe, in one architecture."""

    def __init__(self, pyrune: Pyrune, directory: Path, architecture: Architecture) -> None:
        self._pyrune = pyrune
        self._directory = directory
        self._architecture = architecture

    def run(self, *arguments: str, change: Change = lambda _bootstrap, _application: None) -> tuple[int, list[str]]:
        """Boot the probe with these arguments, `change` having had its way with the laid-out ramdisks.

        Returns the container's exit status and what it printed.
        """
        bootstrap, application = self._directory / "bootstrap", self._directory / "application"
        self._lay_out(bootstrap, application, arguments)
        change(bootstrap, application)
        image = self._directory / "probe.eif"
        kernel = kernel_directory(self._architecture) / "vmlinuz"
        build(image, arch=self._architecture, kernel=kernel, cmdline=CMDLINE, ramdisks=[bootstrap, application])
        done = self._pyrune("run", "--bundle", str(self._pyrune.bundle(image)), "probe")
        return done.returncode, done.stdout.splitlines()

    def _lay_out(self, bootstrap: Path, application: Path, arguments: tuple[str, ...]) -> None:
        kernel = kernel_directory(self._architecture)
        (bootstrap / "dev").mkdir(parents=True)
        shutil.copy(OUTPUT / f"init-{self._architecture.value}", bootstrap / "init")
        shutil.copytree(kernel / "modules", bootstrap / "modules")
        shutil.copy(kernel / "modules.load", bootstrap)
        (application / "rootfs" / "bin").mkdir(parents=True)
        compile_static([PROBE], self._architecture, application / "rootfs" / "bin" / "probe")
        (application / "cmd").write_text("".join(f"{line}\n" for line in ("probe", *arguments)))
        (application / "env").write_text("PATH=/nothing:/bin\nGREETING=two words\n")


@pytest.fixture
def guest(request: pytest.FixtureRequest, pyrune: Pyrune, tmp_path: Path) -> Guest:
    if not compiler_is_installed():
        missing("guest", "the Python package ziglang is not installed")
    architecture = getattr(request, "param", Architecture.X86_64)
    if not (OUTPUT / f"init-{architecture.value}").is_file():
        missing("guest", "the guest's init is not built (python -m pyrune.guest.build)")
    return Guest(pyrune, tmp_path, architecture)


@pytest.mark.parametrize("guest", list(Architecture), indirect=True)
def test_the_application_finds_a_linux_system(guest: Guest) -> None:
    status, lines = guest.run("facts", "two words", "")
    assert status == 0
    assert lines[:9] == [
        *("argument=probe", "argument=facts", "argument=two words", "argument="),
        *("variable=PATH=/nothing:/bin", "variable=GREETING=two words"),
        *("parent=1", "leader=yes", "directory=/"),
    ]
    assert "lo=up" in lines
    assert "orphan=reaped" in lines
    mounts = {line.removeprefix("mount=") for line in lines if line.startswith("mount=")}
    assert mounts >= {
        *("/proc proc", "/sys sysfs", "/dev devtmpfs", "/dev/pts devpts"),
        *("/dev/shm tmpfs", "/tmp tmpfs", "/run tmpfs"),
    }
    assert [line for line in lines if line.startswith("fd=")] == [f"fd={fd} /dev/console" for fd in range(3)]


def test_the_last_of_many_lines_gets_out_before_the_enclave_ends(guest: Guest) -> None:
    _, lines = guest.run("lines", "20000")
    assert lines == [f"line {number} of 20000" for number in range(1, 20001)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("exit", "3"), "pyrune-init: the application ended with status 3"),
        (("signal", "9"), "pyrune-init: the application was ended by signal 9 (Killed)"),
    ],
)
def test_an_end_that_is_no_success_is_said(guest: Guest, arguments: tuple[str, ...], said: str) -> None:
    assert guest.run(*arguments)[1] == [said]


def test_a_program_that_is_not_there_is_said(guest: Guest) -> None:
    def rename(_bootstrap: Path, application: Path) -> None:
        (application / "rootfs" / "bin" / "probe").rename(application / "rootfs" / "bin" / "other")

    assert guest.run(change=rename)[1] == [
        "pyrune-init: cannot run probe: No such file or directory",
        "pyrune-init: the application ended with status 127",
    ]


def remove_command(_bootstrap: Path, application: Path) -> None:
    (application / "cmd").unlink()


def empty_command(_bootstrap: Path, application: Path) -> None:
    (application / "cmd").write_text("")


def remove_root(_bootstrap: Path, application: Path) -> None:
    shutil.rmtree(application / "rootfs")


def remove_modules(bootstrap: Path, _application: Path) -> None:
    (bootstrap / "modules.load").unlink()


def list_a_missing_module(bootstrap: Path, _application: Path) -> None:
    (bootstrap / "modules.load").write_text("/modules/nowhere.ko\n")


def list_what_is_no_module(bootstrap: Path, _application: Path) -> None:
    (bootstrap / "modules.load").write_text("/init\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (remove_command, "the image names no program: /cmd is missing or empty"),
        (empty_command, "the image names no program: /cmd is missing or empty"),
        (remove_root, "the image has no usable root file system in /rootfs: No such file or directory"),
        (remove_modules, "the kernel offers no vsock (are its modules in the image?): Address family not supported"),
        (list_a_missing_module, "cannot open the kernel module /modules/nowhere.ko: No such file or directory"),
        (list_what_is_no_module, "cannot load the kernel module /init: Exec format error"),
    ],
)
def test_a_broken_image_ends_with_one_line_that_says_why(guest: Guest, change: Change, said: str) -> None:
    status, lines = guest.run("exit", "0", change=change)
    assert lines[0].startswith(f"pyrune-init: {said}")
    # Before /proc is there, the kernel cannot be kept from announcing its restart.
    assert all("reboot: Restarting system" in line for line in lines[1:])
    assert status == 1
