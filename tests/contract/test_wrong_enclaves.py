"""Bundles of enclaves with something wrong: one line that names it, and nothing left; never a text that misleads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from pyrune.eif.reader import EifImage
from pyrune.errors import EifError
from tests.support.command import Pyrune

pytestmark = pytest.mark.timeout(120)

# By these Docker and Podman decide that the command is missing in the container or may not run (exit 126, 127).
MISLEADING = ("no such file or directory", "not found", "permission denied", "is a directory", "not a directory")


def _fails(pyrune: Pyrune, bundle: Path, text: str, *, verb: str = "create") -> CompletedProcess[str]:
    """The call fails with one line that holds `text`, in the log and on standard error, and leaves nothing."""
    log = pyrune.directory / "log.json"
    log.unlink(missing_ok=True)
    done = pyrune("--log", str(log), "--log-format", "json", verb, "--bundle", str(bundle), "one")
    assert text in done.stderr
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert json.loads(log.read_text())["msg"] + "\n" == done.stderr
    assert not pyrune.root.exists() or list(pyrune.root.iterdir()) == []
    assert pyrune.processes() == []
    return done


def _change(bundle: Path, path: str, value: Any) -> None:
    """Set one property of config.json; None removes it."""
    config = json.loads((bundle / "config.json").read_text())
    *parents, last = path.split("/")
    place = config
    for name in parents:
        place = place.setdefault(name, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("memory=256", "names no enclave image"),
        ("image={image} memory=0", "memory=0 is not from 1"),
        ("image={image} memory=-1", "memory=-1 is not a whole number"),
        ("image={image} memory=1.5G", "memory=1.5G is not a whole number"),
        ("image={image} memory=16", "its image needs at least"),
        ("image={image} memory=900T", "memory"),
        ("image={image} vcpus=0", "vcpus=0 is not from 1"),
        ("image={image} vcpus=999", "999 vCPUs"),
        ("image={image} vcpus=two", "vcpus=two is not a plain decimal number"),
        ("image={image} cid=3", "cid=3 is not from 4"),
        ("image={image} debug=yes", "debug=yes is neither true nor false"),
        ("image={image} memory=1G memory=2G", "memory= is given twice"),
        ("image={image},colour=blue", "the key 'colour' is unknown"),
        ("image={image} memory=", "memory= has no value"),
        ("image={image} --now", "'--now' is not of the form key=value"),
        ("image=", "image= has no value"),
        ("image=hello.eif", "is not an absolute path"),
        ("image=/nonexistent/hello.eif", "/nonexistent/hello.eif"),
        ("image=/etc", "/etc"),
        ("image=/dev/null", "/dev/null"),
        ("image=/dev/zero", "/dev/zero"),
        ("image=/etc/passwd", "/etc/passwd"),
        ("image=/proc/version", "/proc/version"),
    ],
)
def test_arguments(pyrune: Pyrune, sleeper: Path, sleeping_image: Path, args: str, text: str) -> None:
    _change(sleeper, "annotations/enclave.runtime.args", args.replace("{image}", str(sleeping_image)))
    for verb in ("create", "run"):
        done = _fails(pyrune, sleeper, text, verb=verb)
        assert not any(word in done.stderr for word in MISLEADING)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("annotations/enclave.type", "AWSNitroEnclaves", "is no type of enclave that pyrune runs"),
        ("annotations/enclave.type", 3, "annotations"),
        ("annotations/enclave.boot.timeout", "soon", "is not a number of seconds"),
        ("annotations/enclave.attestation.ra_type", "epid", "is about SGX"),
        ("annotations/enclave.state.pcr0", "00", "not one to set"),
        ("process/env", ["ENCLAVE_RUNTIME_ARGS=image=/other.eif"], "differs from the annotation"),
        ("process/env", ["ENCLAVE_TYPE="], "differs from the annotation"),
        ("process/args", [], "args must not be empty"),
        ("process/cwd", "tmp", "Cwd must be an absolute path"),
        ("process/cwd", "", "Cwd property must not be empty"),
        ("process/terminal", "yes", "process.terminal"),
        ("process", None, "process property must not be empty"),
        ("root", None, "root must be specified"),
        ("root/path", "nowhere", "invalid rootfs"),
        ("linux/namespaces", [{"type": "pid"}, {"type": "pid"}], "duplicated ns pid"),
        ("linux/namespaces", [{"type": "kind"}], "linux.namespaces[0].type"),
        ("hostname", 7, "hostname"),
    ],
)
def test_properties(pyrune: Pyrune, sleeper: Path, path: str, value: object, text: str) -> None:
    _change(sleeper, path, value)
    done = _fails(pyrune, sleeper, text)
    assert not any(word in done.stderr for word in MISLEADING)


def test_a_config_that_was_cut_short(pyrune: Pyrune, sleeper: Path) -> None:
    whole = (sleeper / "config.json").read_bytes()
    for length in range(0, len(whole), len(whole) // 8):
        (sleeper / "config.json").write_bytes(whole[:length])
        done = _fails(pyrune, sleeper, "config.json: " + ("not JSON" if length else "the file is empty"))
        assert not any(word in done.stderr for word in MISLEADING)


@pytest.fixture
def with_image(pyrune: Pyrune, sleeper: Path, tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes `sleeper` a bundle whose image has the given bytes."""
    image = tmp_path / "other.eif"
    _change(sleeper, "annotations/enclave.runtime.args", f"image={image} memory=256 vcpus=1")

    def write(content: bytes) -> Path:
        image.write_bytes(content)
        return sleeper

    return write


def test_an_image_that_was_cut_short(pyrune: Pyrune, sleeping_image: Path, with_image: Callable[[bytes], Path]) -> None:
    whole = sleeping_image.read_bytes()
    for length in (0, 1, 4096, 8192, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        done = _fails(pyrune, with_image(whole[:length]), "other.eif")
        assert not any(word in done.stderr for word in MISLEADING)


def test_an_image_with_one_wrong_byte(
    pyrune: Pyrune, sleeping_image: Path, with_image: Callable[[bytes], Path]
) -> None:
    whole = bytearray(sleeping_image.read_bytes())
    whole[len(whole) // 2] ^= 1
    _fails(pyrune, with_image(bytes(whole)), "other.eif")


def test_an_image_of_aws_cut_at_every_4_kib_is_never_accepted(vectors: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut.eif"
    copy.write_bytes((vectors / "eif" / "aws-hello-aarch64.eif").read_bytes())
    for length in range((copy.stat().st_size - 1) & ~4095, -1, -4096):
        os.truncate(copy, length)
        with pytest.raises(EifError, match=re.escape("cut.eif")), EifImage.open(str(copy)) as image:
            image.require_bootable()


def test_a_terminal_and_a_console_socket_belong_together(pyrune: Pyrune, sleeper: Path, tmp_path: Path) -> None:
    _change(sleeper, "process/terminal", True)
    _fails(pyrune, sleeper, "cannot allocate tty if pyrune will detach without setting console socket")
    done = pyrune("run", "--detach", "--bundle", str(sleeper), "one")
    assert "cannot allocate tty if pyrune will detach without setting console socket" in done.stderr
    done = pyrune("run", "--console-socket", str(tmp_path / "s"), "--bundle", str(sleeper), "one")
    assert "cannot use console socket if pyrune will not detach or allocate tty" in done.stderr
    done = pyrune("create", "--console-socket", str(tmp_path / "s"), "--bundle", str(sleeper), "one")
    assert "the console socket" in done.stderr
    assert not any(word in done.stderr for word in MISLEADING)


@pytest.mark.parametrize("backend", ["auto", "nitro", "cloud", ""])
def test_a_back_end_that_is_not_there(pyrune: Pyrune, sleeper: Path, backend: str) -> None:
    pyrune.global_options = ["--root", str(pyrune.root), "--backend", backend]
    if Path("/dev/nitro_enclaves").exists():
        pytest.skip("this machine has Nitro Enclaves")
    done = _fails(pyrune, sleeper, "backend" if backend in ("cloud", "") else "Nitro")
    assert not any(word in done.stderr for word in MISLEADING)
    if backend == "auto":
        assert "--backend local, or PYRUNE_BACKEND=local" in done.stderr


def test_the_variable_chooses_the_back_end_and_the_option_overrides_it(pyrune: Pyrune, sleeper: Path) -> None:
    pyrune.environment = {**pyrune.environment, "PYRUNE_BACKEND": "nitro"}
    pyrune.ok("create", "--bundle", str(sleeper), "by-option")
    pyrune.ok("delete", "by-option")
    pyrune.global_options = ["--root", str(pyrune.root)]
    _fails(pyrune, sleeper, "Nitro")
    pyrune.environment = {**pyrune.environment, "PYRUNE_BACKEND": "local"}
    pyrune.ok("create", "--bundle", str(sleeper), "by-variable")
    # A wrong variable matters to who creates, and to nobody who cleans up.
    pyrune.environment = {**pyrune.environment, "PYRUNE_BACKEND": "nonsense"}
    pyrune.ok("delete", "by-variable")
    _fails(pyrune, sleeper, 'unknown backend "nonsense"')


def test_no_value_of_the_environment_is_in_an_error(pyrune: Pyrune, sleeper: Path) -> None:
    for variable in ("ENCLAVE_TYPE", "ENCLAVE_RUNTIME_ARGS", "ENCLAVE_RUNTIME_LOGLEVEL", "ENCLAVE_RA_TYPE"):
        _change(sleeper, "process/env", [f"{variable}=hunter2", "PASSWORD=hunter2"])
        done = pyrune("--debug", "create", "--bundle", str(sleeper), "one")
        assert "hunter2" not in done.stderr + done.stdout
        pyrune("delete", "--force", "one")


def test_a_name_that_is_an_attack_on_a_terminal_is_escaped(pyrune: Pyrune, sleeper: Path) -> None:
    _change(sleeper, "annotations/enclave.runtime.args", "image=/i \x1b[31mred=\x1b]0;title\x07")
    done = pyrune("create", "--bundle", str(sleeper), "one")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr
