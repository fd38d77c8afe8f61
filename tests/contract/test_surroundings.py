"""Odd places and poor environments: closed descriptors, no environment, long and strange paths, other users."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.needs import missing
from tests.support.command import COMMAND, Pyrune, wait_until

pytestmark = pytest.mark.timeout(120)


def _through_shell(pyrune: Pyrune, redirections: str, *words: str) -> int:
    """The exit status of a call whose descriptors a shell has redirected."""
    argv = ["sh", "-c", f'exec "$@" {redirections}', "sh", *pyrune.argv(*words)]
    return subprocess.run(argv, env=pyrune.environment, timeout=60, check=False).returncode


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "3</dev/null 2>&- <&-"])
def test_a_life_with_standard_descriptors_closed(pyrune: Pyrune, sleeper: Path, redirections: str) -> None:
    log = pyrune.directory / "log"
    for words in (["create", "--bundle", str(sleeper), "one"], ["state", "one"], ["kill", "one"], ["list"]):
        assert _through_shell(pyrune, redirections, "--log", str(log), *words) == 0
    # What was written to the log was not taken for an output, or the other way round.
    assert log.read_text() == ""
    wait_until(lambda: pyrune.status("one") == "stopped", "the container does not stop")
    assert _through_shell(pyrune, redirections, "start", "one") == 1
    assert _through_shell(pyrune, redirections, "delete", "one") == 0


def test_an_enclave_runs_with_all_standard_descriptors_closed(pyrune: Pyrune, sleeper: Path) -> None:
    assert _through_shell(pyrune, "<&- >&- 2>&-", "run", "--detach", "--bundle", str(sleeper), "one") == 0
    assert _through_shell(pyrune, "<&- >&- 2>&-", "delete", "--force", "one") == 0


def test_an_output_that_takes_no_more_is_an_error(pyrune: Pyrune) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >/dev/full', "sh", *pyrune.argv("list")],
        env=pyrune.environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "standard output takes no more" in done.stderr


def test_a_reader_that_has_gone_is_an_error_like_any_other(pyrune: Pyrune) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            pyrune.argv("list"),
            env=pyrune.environment,
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_log_that_cannot_be_written_is_an_error(pyrune: Pyrune) -> None:
    done = pyrune("--log", "/nonexistent/log", "list")
    assert done.returncode == 1
    assert "the log file /nonexistent/log cannot be written" in done.stderr


def test_a_life_without_an_environment(pyrune: Pyrune, sleeper: Path) -> None:
    pyrune.environment = {}
    pyrune.ok("run", "--detach", "--bundle", str(sleeper), "one")
    assert pyrune.status("one") == "running"
    pyrune.ok("delete", "--force", "one")


def test_a_life_with_a_hostile_environment(pyrune: Pyrune, sleeper: Path) -> None:
    """What Docker passes on is whatever dockerd was started with."""
    pyrune.environment = {
        "PATH": "/nonexistent",
        "LANG": "xx_XX.nonsense",
        "LC_ALL": "C",
        "COLUMNS": "7",
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "ascii",
        "PYTHONWARNINGS": "error",
        "PYTHONDEVMODE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYRUNE_ROOT": "/nonexistent",
        "PYRUNE_DEBUG": "true",
    }
    name = pyrune.directory / "bündel"
    shutil.copytree(sleeper, name)
    pyrune.ok("create", "--bundle", str(name), "one")
    done = pyrune("state", "one")
    assert done.stderr == ""
    assert json.loads(done.stdout)["bundle"] == str(name)
    pyrune.ok("list")
    pyrune.ok("delete", "one")


@pytest.mark.parametrize("name", ["with space", "ü\u2028", "--backend", "quote'\"$(id)", "new\nline", "a" * 200])
def test_bundles_in_strange_places(pyrune: Pyrune, sleeper: Path, name: str) -> None:
    place = pyrune.directory / name
    sleeper.rename(place)
    pyrune.ok("create", "--bundle", str(place), "one")
    assert json.loads(pyrune.ok("state", "one"))["bundle"] == str(place)
    assert json.loads(pyrune.ok("list", "--format", "json"))[0]["rootfs"] == str(place / "rootfs")
    pyrune.ok("delete", "one")


def _in_directory(pyrune: Pyrune, directory: Path, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A call from another working directory. Nothing it starts may keep its outputs."""
    with (pyrune.directory / "output").open("w+") as output:
        done = subprocess.run(
            argv, cwd=directory, env=pyrune.environment, stdout=output, stderr=output, timeout=60, check=False
        )
        output.seek(0)
        return subprocess.CompletedProcess(argv, done.returncode, output.read(), "")


@pytest.mark.parametrize("bundle", [None, ".", "../here", "./../here/", "link"])
def test_paths_are_relative_to_the_callers_directory(pyrune: Pyrune, sleeper: Path, bundle: str | None) -> None:
    here = pyrune.directory / "here"
    sleeper.rename(here)
    (here / "link").symlink_to(here)
    option = [] if bundle is None else ["--bundle", bundle]
    argv = [str(COMMAND), "--root", "../root", "--backend", "local", "--log", "log", "create", "--pid-file", "pid"]
    done = _in_directory(pyrune, here, [*argv, *option, "one"])
    assert (done.returncode, done.stdout) == (0, "")
    state = json.loads(pyrune.ok("state", "one"))
    assert (state["bundle"], state["rootfs"]) == (str(here), str(here / "rootfs"))
    assert (here / "pid").read_text() == str(state["pid"])
    assert (here / "log").read_text() == ""


def test_a_whole_life_below_a_root_of_200_characters(pyrune: Pyrune, sleeper: Path) -> None:
    """The path of a unix socket has 107 bytes at most."""
    pyrune.root = pyrune.directory / ("r" * 100) / ("s" * 100)
    pyrune.global_options[1] = str(pyrune.root)
    pyrune.ok("create", "--bundle", str(sleeper), "o" * 100)
    pyrune.ok("start", "o" * 100)
    pyrune.ok("kill", "o" * 100)
    wait_until(lambda: pyrune.status("o" * 100) == "stopped", "the container does not stop")
    pyrune.ok("delete", "o" * 100)
    assert list(pyrune.root.iterdir()) == []


def test_a_root_that_cannot_be_is_an_error(pyrune: Pyrune, sleeper: Path) -> None:
    for root in ("/proc/nope", "/dev/null", "/etc/passwd/below"):
        pyrune.global_options[1] = root
        done = pyrune("create", "--bundle", str(sleeper), "one")
        assert done.returncode == 1
        assert f"state directory {root} cannot be made" in done.stderr
        assert pyrune("state", "one").returncode == 1
        assert pyrune.ok("list", "-q") == ""
    pyrune.global_options[1] = str(pyrune.root)


def test_the_default_root_of_root_is_below_run(pyrune: Pyrune, sleeper: Path) -> None:
    if os.geteuid() != 0:
        missing("root", "it is about root's default")
    name = f"test-{os.getpid()}"
    pyrune.environment = {**pyrune.environment, "XDG_RUNTIME_DIR": str(pyrune.directory)}
    pyrune.global_options = ["--backend", "local"]
    pyrune.ok("create", "--bundle", str(sleeper), name)
    try:
        assert Path("/run/pyrune", name, "enclave.json").is_file()
    finally:
        pyrune.ok("delete", "--force", name)
    assert not Path("/run/pyrune", name).exists()


@pytest.fixture
def nobody(pyrune: Pyrune, sleeper: Path, sleeping_image: Path) -> Iterator[Path]:
    """A directory of the user nobody with a bundle of an enclave in it; `pyrune` is called as that user."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        missing("root", "becoming another user needs it, and setpriv")
    uid = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        home = Path(name)
        shutil.copytree(sleeper, home / "bundle")
        shutil.copy(sleeping_image, home / "image.eif")
        config = json.loads((home / "bundle" / "config.json").read_text())
        config["annotations"]["enclave.runtime.args"] = f"image={home}/image.eif memory=256 vcpus=1"
        (home / "bundle" / "config.json").write_text(json.dumps(config))
        for path in [home, *home.rglob("*")]:
            os.chown(path, uid, -1)
        as_nobody = ["setpriv", "--reuid", str(uid), "--clear-groups", str(COMMAND)]
        if subprocess.run([*as_nobody, "--version"], capture_output=True, timeout=60, check=False).returncode:
            missing("open checkout", "the command is in a directory that is not open to other users")
        pyrune.argv = lambda *words: [*as_nobody, "--backend", "local", *words]  # type: ignore[method-assign]
        pyrune.environment = {**pyrune.environment, "XDG_RUNTIME_DIR": str(home)}
        yield home
        pyrune("delete", "--force", "one")


def test_another_user_has_a_root_of_its_own(pyrune: Pyrune, nobody: Path) -> None:
    pyrune.ok("run", "--detach", "--bundle", str(nobody / "bundle"), "one")
    assert (nobody / "pyrune" / "one").is_dir()
    assert (nobody / "pyrune").stat().st_mode & 0o777 == 0o700
    assert pyrune.ok("list").split()[-1] == "nobody"
    pyrune.ok("delete", "--force", "one")


def test_another_user_without_a_runtime_directory_is_told_what_to_do(pyrune: Pyrune, nobody: Path) -> None:
    pyrune.environment = {"PATH": os.environ["PATH"]}
    done = pyrune("create", "--bundle", str(nobody / "bundle"), "one")
    assert done.returncode == 1
    assert "state directory /run/pyrune cannot be" in done.stderr
    assert "give another one with --root" in done.stderr


def test_a_bundle_that_is_not_readable(pyrune: Pyrune, nobody: Path) -> None:
    (nobody / "bundle" / "config.json").chmod(0)
    done = pyrune("create", "--bundle", str(nobody / "bundle"), "one")
    assert done.returncode == 1
    assert f"{nobody}/bundle/config.json: cannot be read (EACCES); look at its permissions" in done.stderr
    (nobody / "bundle" / "config.json").chmod(0o600)
    (nobody / "image.eif").chmod(0)
    done = pyrune("create", "--bundle", str(nobody / "bundle"), "one")
    assert done.returncode == 1
    assert f"{nobody}/image.eif" in done.stderr
    assert "permission denied" not in done.stderr


@pytest.mark.parametrize("wait_ms", [40, 80, 120, 160, 200, 240, 280, 320, 400])
def test_a_create_that_is_killed_leaves_the_truth(pyrune: Pyrune, sleeper: Path, wait_ms: int) -> None:
    process = subprocess.Popen(
        pyrune.argv("create", "--bundle", str(sleeper), "one"), env=pyrune.environment, start_new_session=True
    )
    try:
        process.wait(timeout=wait_ms / 1000)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

    def settled() -> bool:
        done = pyrune("state", "one")
        return done.returncode == 1 or json.loads(done.stdout)["status"] in ("created", "stopped")

    wait_until(settled, "the status does not become final", timeout_s=20)
    pyrune.ok("list")
    pyrune.ok("delete", "--force", "one")
    wait_until(lambda: pyrune.processes() == [], "a process is left", timeout_s=20)
    pyrune.ok("create", "--bundle", str(sleeper), "one")
    assert pyrune.status("one") == "created"
    pyrune.ok("delete", "one")
    assert list(pyrune.root.iterdir()) == []


@pytest.mark.parametrize("wait_ms", [70, 300])
def test_a_start_that_is_killed_leaves_the_truth(pyrune: Pyrune, sleeper: Path, wait_ms: int) -> None:
    pyrune.ok("create", "--bundle", str(sleeper), "one")
    process = subprocess.Popen(pyrune.argv("start", "one"), env=pyrune.environment)
    try:
        process.wait(timeout=wait_ms / 1000)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    before = pyrune.status("one")
    assert before in ("created", "running")
    if before == "created":
        # Its boot may be under way: then it goes on, and starting it again is no boot of its own.
        done = pyrune("start", "one")
        assert done.returncode == 0 or "already running" in done.stderr
    wait_until(lambda: pyrune.status("one") == "running", "the enclave does not boot")
    pyrune.ok("delete", "--force", "one")
