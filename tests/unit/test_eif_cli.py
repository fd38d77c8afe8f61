from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pyrune.eif_cli import eif
from pyrune.errors import EifError
from tests.unit.eif.kernels import bzimage
from tests.unit.eif.signing import lasting_signer, signer
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


@pytest.fixture
def built(parts: Path) -> Path:
    """A directory with an image, `image.eif`, and `crt` and `key` to sign it with."""
    someone = lasting_signer()
    (parts / "crt").write_bytes(someone.pem)
    (parts / "key").write_bytes(someone.key_pem)
    words = ("build", "--kernel", parts / "kernel", "--cmdline", "panic=1", "--ramdisk", parts / "tree")
    assert run(*words, "--output", parts / "image.eif").exit_code == 0
    return parts


def test_an_image_is_signed_in_its_place_or_in_another(built: Path) -> None:
    words = ("sign", built / "image.eif", "--signing-certificate", built / "crt", "--private-key", built / "key")
    result = run(*words, "--output", built / "signed.eif")
    assert json.loads(run("describe", built / "image.eif").stdout)["IsSigned"] is False
    assert run(*words).stdout == result.stdout
    assert (built / "image.eif").read_bytes() == (built / "signed.eif").read_bytes()
    described = json.loads(run("describe", built / "image.eif").stdout)
    assert (described["IsSigned"], described["SignatureCheck"], described["CheckCRC"]) == (True, True, True)
    assert json.loads(result.stdout) == {"Measurements": described["Measurements"]}


def test_build_signs_as_sign_does(built: Path) -> None:
    signing = ("--signing-certificate", built / "crt", "--private-key", built / "key")
    words = ("build", "--kernel", built / "kernel", "--cmdline", "panic=1", "--ramdisk", built / "tree")
    run(*words, "--name", "image", "--output", built / "at-once.eif", *signing)
    run("sign", built / "image.eif", *signing)
    assert (built / "at-once.eif").read_bytes() == (built / "image.eif").read_bytes()


def test_a_key_may_be_elsewhere(built: Path) -> None:
    words = ("sign", built / "image.eif", "--signing-certificate", built / "crt")
    printed = json.loads(run(*words, "--print-payload", "--output", built / "payload").stdout)
    payload = (built / "payload").read_bytes()
    assert base64.b64decode(printed["ToBeSigned"]["Base64"]) == bytes.fromhex(printed["ToBeSigned"]["Hex"]) == payload
    assert json.loads(run(*words, "--print-payload").stdout) == printed
    assert json.loads(run("describe", built / "image.eif").stdout)["IsSigned"] is False
    key = load_pem_private_key((built / "key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (built / "signature").write_bytes(key.sign(payload, ec.ECDSA(hashes.SHA384())))
    assert run(*words, "--signature", built / "signature").exit_code == 0
    assert json.loads(run("describe", built / "image.eif").stdout)["SignatureCheck"] is True


@pytest.mark.parametrize(
    "options",
    [
        ["sign", "image.eif", "--signing-certificate", "crt"],
        ["sign", "image.eif", "--signing-certificate", "crt", "--private-key", "key", "--print-payload"],
        ["sign", "image.eif", "--signing-certificate", "crt", "--private-key", "key", "--signature", "key"],
        ["sign", "image.eif", "--private-key", "key"],
        [
            *("build", "--kernel", "kernel", "--cmdline", "a", "--ramdisk", "tree"),
            "--output",
            "x",
            "--private-key",
            "y",
        ],
    ],
)
def test_options_of_signing_that_do_not_fit_are_refused(
    built: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.chdir(built)
    assert run(*options).exit_code == 2


def test_verify_prints_a_line_for_each_check_and_fails_with_status_1(built: Path) -> None:
    measurements = json.loads(run("describe", built / "image.eif").stdout)["Measurements"]
    good = run("verify", built / "image.eif", "--pcr0", measurements["PCR0"].upper())
    assert good.exit_code == 0
    assert [line.split()[0] for line in good.stdout.splitlines()] == ["ok", "ok", "ok", "absent", "ok"]
    bad = run("verify", built / "image.eif", "--pcr1", "0" * 96, "--json")
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["Passed"] is False


@pytest.mark.parametrize("value", ["", "0" * 95, "0" * 97, "x" * 96])
def test_an_expected_pcr_must_be_one(built: Path, value: str) -> None:
    assert run("verify", built / "image.eif", "--pcr0", value).exit_code == 2


def test_diff_tells_what_moves_a_measurement_and_fails_with_status_1(built: Path) -> None:
    (built / "tree" / "env").write_text("TOKEN=secret\n")
    words = ("build", "--kernel", built / "kernel", "--cmdline", "panic=1", "--ramdisk", built / "ramdisk")
    run(*words, "--ramdisk", built / "tree", "--output", built / "one.eif")
    (built / "tree" / "env").write_text("TOKEN=SECRET\n")
    run(*words, "--ramdisk", built / "tree", "--output", built / "other.eif")
    same = run("diff", built / "one.eif", built / "one.eif")
    assert (same.exit_code, same.stdout) == (0, "the measurements are the same\n")
    result = run("diff", built / "one.eif", built / "other.eif")
    assert result.exit_code == 1
    assert "ramdisk 1: env: variable TOKEN: differs (PCR0, PCR2)" in result.stdout.splitlines()
    assert "secret" not in result.stdout.lower()
    shown = run("diff", "--show-values", "--json", built / "one.eif", built / "other.eif")
    assert {"A": "secret", "B": "SECRET"}.items() <= json.loads(shown.stdout)["Differences"][-1].items()


def test_build_from_a_root_file_system_says_which_kernel_and_how_much_memory(parts: Path) -> None:
    (parts / "init").write_bytes(b"init")
    (parts / "module.ko").write_bytes(b"module")
    result = run(
        *("build", "--rootfs", parts / "tree", "--owner", "0:0", "--kernel", parts / "kernel"),
        *("--init", parts / "init", "--module", parts / "module.ko", "--output", parts / "image.eif"),
        *("--", "/bin/app", "--output", "an argument"),
    )
    assert result.exit_code == 0, result.output
    described = json.loads(run("describe", parts / "image.eif").stdout)
    assert described["Measurements"] == json.loads(result.stdout)["Measurements"]
    assert described["Metadata"]["BootKernel"]["Origin"] == "given"
    assert f"SHA-256 {described['Metadata']['BootKernel']['SHA256']}" in result.stderr
    assert "memory: 1 MiB" in result.stderr
    assert b"/bin/app\n--output\nan argument\n" in (parts / "image.eif").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--rootfs", "tree", "--bundle", "tree"],
        ["--rootfs", "tree", "--ramdisk", "tree", "--kernel", "kernel", "--cmdline", "x"],
        ["--ramdisk", "tree", "--kernel", "kernel"],
        ["--ramdisk", "tree", "--cmdline", "x"],
        ["--ramdisk", "tree", "--kernel", "kernel", "--cmdline", "x", "--init", "ramdisk"],
        ["--ramdisk", "tree", "--kernel", "kernel", "--cmdline", "x", "--", "argument"],
    ],
)
def test_build_takes_one_kind_of_content(options: list[str], parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parts)
    assert run("build", "--output", "image.eif", *options).exit_code == 2
    assert not (parts / "image.eif").exists()
