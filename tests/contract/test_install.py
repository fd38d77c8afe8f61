"""scripts/install: pyrune where every user, sudo and dockerd find it; and gone again without a trace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import missing
from tests.support.images import Images

INSTALL = Path(__file__).parents[2] / "scripts" / "install"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# What sudo and dockerd leave of an environment is not more.
BARE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, timeout=240, check=False)
    if "fetching and installing pyrune failed" in done.stderr:
        missing("network", "pip cannot fetch what pyrune needs")
    return done


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A prefix with pyrune in it, and something that was there before."""
    directory = tmp_path_factory.mktemp("install") / "prefix"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "other").write_text("not ours\n")
    done = install("--prefix", str(directory))
    assert done.returncode == 0, done.stderr
    yield directory
    install("--prefix", str(directory), "--remove")


def test_it_runs_deaf_to_python_variables_and_to_the_current_directory(prefix: Path, tmp_path: Path) -> None:
    for name in ("click", "pyrune", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the caller')\n")
    hostile = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "json.py")}
    done = subprocess.run(
        [prefix / "bin" / "pyrune", "--version"],
        cwd=tmp_path,
        env=BARE_ENVIRONMENT | hostile,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith("pyrune version ")


def test_the_code_is_compiled_and_only_its_owner_may_change_it(prefix: Path) -> None:
    package = next((prefix / "lib" / "pyrune").glob("*/lib/python3*/site-packages/pyrune"))
    assert list(package.glob("__pycache__/lifecycle.*.pyc"))
    assert not [path for path in prefix.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]


def test_it_does_not_need_the_checkout(prefix: Path) -> None:
    checkout = str(INSTALL.parents[1])
    site_packages = next((prefix / "lib" / "pyrune").glob("*/lib/python3*/site-packages"))
    assert not [path for path in site_packages.glob("*.pth") if checkout in path.read_text()]
    assert (site_packages / "pyrune" / "__main__.py").is_file()


def test_an_enclave_runs_from_it_with_next_to_no_environment(prefix: Path, images: Images, tmp_path: Path) -> None:
    image = images.application("print", "1")
    (tmp_path / "rootfs").mkdir()
    command = [str(prefix / "bin" / "pyrune"), "--root", str(tmp_path / "root")]
    options = ["spec", "--enclave", "--image", str(image), "--memory", "256", "--vcpus", "1"]
    subprocess.run([*command, *options], cwd=tmp_path, env=BARE_ENVIRONMENT, timeout=30, check=True)
    done = subprocess.run(
        [*command, "--backend", "local", "run", "hello-nitro-enclave-container"],
        cwd=tmp_path,
        env=BARE_ENVIRONMENT,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"\n") == 1


def test_installing_again_replaces_and_removing_leaves_what_was_there_before(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "other").write_text("not ours\n")
    before = listing(tmp_path)
    for number in ("1", "2"):
        assert install("--prefix", str(prefix)).returncode == 0
        assert [path.name for path in (prefix / "lib" / "pyrune").iterdir() if path.is_dir()] == [number]
    assert install("--prefix", str(prefix), "--remove").returncode == 0
    assert listing(tmp_path) == before


@pytest.mark.parametrize("options", [[], ["--remove"]])
def test_a_command_of_the_same_name_that_is_not_ours_is_left_alone(tmp_path: Path, options: list[str]) -> None:
    other = tmp_path / "bin" / "pyrune"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    done = install("--prefix", str(tmp_path), *options)
    assert done.returncode == 1
    assert f"{other} is not one that this script wrote" in done.stderr
    assert listing(tmp_path) == ["bin", "bin/pyrune"]


@pytest.mark.parametrize("prefix_text", ["relative", "/with space", "/with'quote", "/with\nline"])
def test_a_prefix_that_a_first_line_cannot_hold_is_refused(prefix_text: str) -> None:
    done = install("--prefix", prefix_text)
    assert done.returncode == 1
    assert "--prefix must be an absolute path" in done.stderr


def test_removing_what_is_not_installed_says_so(tmp_path: Path) -> None:
    done = install("--prefix", str(tmp_path), "--remove")
    assert done.returncode == 1
    assert f"nothing is installed in {tmp_path}" in done.stderr
