"""Enclave images for tests: a distribution's kernel, pyrune's own init, and guest_program.c in one of its modes.

Everything is built once for a test session, in a temporary directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from pyrune.eif.builder import build
from pyrune.eif.format import Architecture
from pyrune.guest import build as guest_build
from tests.needs import missing

SOURCE = Path(__file__).with_name("guest_program.c")
CMDLINE = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=k"
PROGRAM = "/guest_program"

# Builds an image whose application runs the program in the mode that the arguments say.
ImageBuilder = Callable[..., Path]


def kernel_directory(architecture: Architecture) -> Path:
    """What scripts/fetch-kernel left in its cache for this architecture."""
    base = Path("/var/cache") if os.geteuid() == 0 else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "pyrune" / "kernels" / architecture.value
    if not (directory / "vmlinuz").is_file():
        missing("kernel", f"scripts/fetch-kernel --arch {architecture.value} has not been run")
    return directory


class Images:
    """Builds images in `directory`, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def application(
        self, *arguments: str, architecture: Architecture = Architecture.X86_64, cmdline: str = CMDLINE
    ) -> Path:
        """An image with pyrune's init, whose application is the test program with these arguments."""
        name = "-".join([architecture.value, *arguments])
        image = self._directory / f"{name}.eif"
        if not image.exists():
            bootstrap, application = self._directory / f"{name}.boot", self._directory / f"{name}.app"
            self._lay_out_bootstrap(bootstrap, architecture)
            (application / "rootfs").mkdir(parents=True)
            shutil.copy(self._program(architecture), application / f"rootfs{PROGRAM}")
            (application / "cmd").write_text("".join(f"{line}\n" for line in [PROGRAM, *arguments]))
            (application / "env").write_text("PATH=/\n")
            self._build(image, architecture, cmdline, [bootstrap, application])
        return image

    def bare(self, *arguments: str, cmdline: str = CMDLINE) -> Path:
        """An x86_64 image whose init is the test program itself: it says nothing over vsock, ever."""
        name = "-".join(["bare", *arguments, *cmdline.split()])
        image = self._directory / f"{name}.eif"
        if not image.exists():
            root = self._directory / f"{name}.root"
            (root / "dev").mkdir(parents=True)
            shutil.copy(self._program(Architecture.X86_64), root / "init")
            self._build(image, Architecture.X86_64, f"{cmdline} -- {' '.join(arguments)}", [root])
        return image

    def _program(self, architecture: Architecture) -> Path:
        output = self._directory / f"guest_program-{architecture.value}"
        if not output.exists():
            if not guest_build.compiler_is_installed():
                missing("guest", "the compiler for enclave programs is not installed (pip install 'pyrune[guest]')")
            guest_build.compile_static([SOURCE], guest_build.Architecture(architecture.value), output)
        return output

    @staticmethod
    def _lay_out_bootstrap(directory: Path, architecture: Architecture) -> None:
        kernel = kernel_directory(architecture)
        init = guest_build.OUTPUT / f"init-{architecture.value}"
        if not init.is_file():
            missing("guest", "the guest's init is not built (python -m pyrune.guest.build)")
        (directory / "dev").mkdir(parents=True)
        shutil.copy(init, directory / "init")
        (directory / "init").chmod(0o755)
        shutil.copytree(kernel / "modules", directory / "modules")
        shutil.copy(kernel / "modules.load", directory / "modules.load")

    @staticmethod
    def _build(image: Path, architecture: Architecture, cmdline: str, ramdisks: Sequence[Path]) -> None:
        kernel = kernel_directory(architecture) / "vmlinuz"
        build(image, arch=architecture, kernel=kernel, cmdline=cmdline, ramdisks=ramdisks)
