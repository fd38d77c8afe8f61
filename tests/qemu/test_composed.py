"""Images that pyrune builds from container content, in a real kernel: files, links and process are there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.guest.build import OUTPUT
from tests.needs import missing
from tests.support.command import Pyrune
from tests.support.image_archives import File, docker_archive, hard_link, symlink, tar
from tests.support.images import kernel_directory

pytestmark = pytest.mark.timeout(180)

BUSYBOX = Path("/bin/busybox")
SCRIPT = (
    'cd /etc; echo "$0 $1"; echo $HOSTNAME $HOME; cat "odd name"; readlink mtab; stat -c "%h %U %a" linked; ls -1 /'
)
LINES = ["one two words", "enclave /root", "odd", "/proc/mounts", "2 someone 640"]
TOP = ["bin", "dev", "etc", "proc", "run", "sys", "tmp"]
PASSWD = b"root:x:0:0::/root:/bin/sh\nsomeone:x:1000:1000::/:/bin/sh\n"


@pytest.fixture
def layers() -> list[bytes]:
    kernel_directory(Architecture.X86_64)
    if not BUSYBOX.is_file():
        missing("guest", "busybox-static is not installed")
    if not (OUTPUT / "init-x86_64").is_file():
        missing("guest", "the guest's init is not built (python -m pyrune.guest.build)")
    applets = [symlink(f"bin/{name}", "busybox") for name in ("sh", "ls", "cat", "stat", "readlink")]
    lower = [File("bin/busybox", BUSYBOX.read_bytes(), mode=0o755), *applets, File("etc/passwd", PASSWD)]
    upper = [
        File("etc/odd name", b"odd\n"),
        File("etc/linked", b"x", mode=0o640, uid=1000, gid=1000),
        hard_link("etc/other", "etc/linked"),
    ]
    return [tar(*lower), tar(*upper)]


def boots(pyrune: Pyrune, image: Path, *content: str) -> list[str]:
    """What the application of an image with this content prints."""
    command = ("eif", "build", *content, "--output", str(image), "--", "/bin/sh", "-c", SCRIPT, "one", "two words")
    pyrune.ok(*command)
    return pyrune.ok("run", "--bundle", str(pyrune.bundle(image)), image.stem).splitlines()


def test_a_docker_archive_boots(pyrune: Pyrune, layers: list[bytes]) -> None:
    archive = docker_archive(pyrune.directory / "image.tar", layers, Cmd=["/nothing"])
    assert boots(pyrune, pyrune.directory / "archive.eif", "--docker-archive", str(archive)) == [*LINES, *TOP]


def test_a_root_file_system_boots(pyrune: Pyrune, layers: list[bytes]) -> None:
    root = pyrune.directory / "rootfs"
    root.mkdir()
    for layer in layers:
        subprocess.run(["tar", "-x", "-p", "-C", str(root)], input=layer, check=True, timeout=20)
    image = pyrune.directory / "rootfs.eif"
    assert boots(pyrune, image, "--rootfs", str(root), "--owner", "1000:1000") == [*LINES, *TOP]
