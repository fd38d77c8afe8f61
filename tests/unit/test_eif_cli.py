from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyrune.eif_cli import eif
from pyrune.errors import EifError
from tests.unit.eif.kernels import bzimage
from tests.unit.eif.signing import signer
from tests.unit.eif.test_measure import pcr


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(eif, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    (tmp_path / "kernel").write_bytes(bzimage())
    (tmp_path / "ramdisk").write_bytes(b"ramdisk")
    (tmp_path / "tree").mkdir()
    (tmp_path / "metadata.json").write_text('{"Owner": "me"}')
    return tmp_path


def test_what_build_prints_describe_prints_too(parts: Path) -> None:
    result = run(
        *("build", "--kernel", parts / "kernel", "--cmdline", "console=ttyS0"),
        *("--ramdisk", parts / "ramdisk", "--ramdisk", parts / "tree", "--output", parts / "image.eif"),
        *("--arch", "aarch64", "--name", "hello", "--version", "3", "--metadata", parts / "metadata.json"),
    )
    assert result.exit_code == 0
    measurements = json.loads(result.stdout)
    assert list(measurements) == ["Measurements"]
    described = json.loads(run("describe", parts / "image.eif").stdout)
    assert described["Measurements"] == measurements["Measurements"]
    assert described["CheckCRC"] is True
    assert (described["ImageName"], described["ImageVersion"]) == ("hello", "3")
    assert described["Metadata"]["Owner"] == "me"


def test_the_real_image_is_described(vectors: Path) -> None:
    described = json.loads(run("describe", vectors / "eif" / "aws-hello-aarch64.eif").stdout)
    assert described["CheckCRC"] is True
    assert described["Measurements"]["PCR1"].startswith("3b4a7e1b5f13c5a1")
    assert "Ambiguities" not in described


def test_errors_go_up_to_the_error_boundary(parts: Path) -> None:
    result = run("describe", parts / "nothing.eif")
    assert isinstance(result.exception, EifError)
    assert result.stdout == ""


def test_pcr_measures_a_file_or_a_certificate(parts: Path) -> None:
    someone = signer()
    (parts / "certificate.pem").write_bytes(someone.pem)
    assert json.loads(run("pcr", "--input", parts / "ramdisk").stdout) == {"PCR": pcr(b"ramdisk")}
    found = json.loads(run("pcr", "--signing-certificate", parts / "certificate.pem").stdout)
    assert found == {"PCR8": pcr(someone.der)}


def test_pcr_needs_one_of_its_options(parts: Path) -> None:
    assert run("pcr").exit_code == 2
    assert run("pcr", "--input", parts / "kernel", "--signing-certificate", parts / "kernel").exit_code == 2


@pytest.mark.parametrize("option", ["--input", "--signing-certificate"])
def test_pcr_of_nothing_is_one_clear_error(parts: Path, option: str) -> None:
    assert "nothing is there" in str(run("pcr", option, parts / "nothing").exception)


def test_a_certificate_that_is_none_is_refused(parts: Path) -> None:
    assert "no readable certificate" in str(run("pcr", "--signing-certificate", parts / "kernel").exception)
