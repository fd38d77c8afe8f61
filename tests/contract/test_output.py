"""What pyrune prints and writes for programs to read: version, state, list, spec, the pid file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from pyrune import __version__
from tests.contract.oracle import Program
from tests.support.command import Pyrune

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def created(runc: Program, beside: Program) -> tuple[Program, Program]:
    """runc and pyrune, each with a created container `one`."""
    for program in (runc, beside):
        assert program(["create", "--bundle", str(program.bundle), "one"]).status == 0
    return runc, beside


@pytest.mark.parametrize("option", ["--version", "-version", "-v"])
def test_the_version_begins_as_runcs(pyrune: Pyrune, option: str) -> None:
    assert re.fullmatch(rf"pyrune version {re.escape(__version__)}\nspec: \d+\.\d+\.\d+\n", pyrune.ok(option))


@pytest.mark.parametrize("words", ["--help", "-h", "", "state --help", "eif --help", "ps -h one"])
def test_help_goes_to_standard_output(pyrune: Pyrune, words: str) -> None:
    done = pyrune(*words.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: pyrune")


def test_the_state_has_runcs_keys_and_indentation(created: tuple[Program, Program]) -> None:
    theirs, ours = (program(["state", "one"]).stdout for program in created)
    assert ours == json.dumps(json.loads(ours), indent=2) + "\n"
    assert theirs == json.dumps(json.loads(theirs), indent=2)
    assert [key for key in json.loads(ours) if key != "annotations"] == list(json.loads(theirs))


def test_the_state_reports_the_annotations_and_what_was_measured(created: tuple[Program, Program]) -> None:
    annotations = json.loads(created[1](["state", "one"]).stdout)["annotations"]
    assert annotations["enclave.type"] == "AwsNitroEnclaves"
    assert annotations["enclave.state.memory_mib"] == "256"
    assert re.fullmatch("[0-9a-f]{96}", annotations["enclave.state.pcr0"])


def test_the_table_of_containers_is_laid_out_as_runcs(created: tuple[Program, Program]) -> None:
    theirs, ours = (program(["list"]).stdout.splitlines() for program in created)
    assert ours[0].split() == theirs[0].split()
    for header, row in (theirs, ours):
        assert [found.start() for found in re.finditer(r"\S+", row)] == [
            found.start() for found in re.finditer(r"\S+", header)
        ]
    # A cell is as wide as its longest text and three spaces, and at least twelve.
    assert [line[:36] for line in ours] == [
        line[:36].replace(_pid(created[0]), _pid(created[1]).ljust(len(_pid(created[0]))))[:36] for line in theirs
    ]


def _pid(program: Program) -> str:
    return str(json.loads(program(["state", "one"]).stdout)["pid"])


def test_go_and_python_write_the_same_json_lists(created: tuple[Program, Program]) -> None:
    for words in (["list", "--format", "json"], ["ps", "--format", "json", "one"]):
        for text in (program(words).stdout for program in created):
            assert text == json.dumps(json.loads(text), separators=(",", ":")) + "\n"


@pytest.mark.parametrize("options", [(), ("--rootless",)])
def test_spec_writes_what_runc_writes(runc: Program, pyrune: Pyrune, tmp_path: Path, options: tuple[str, ...]) -> None:
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    assert runc(["spec", *options, "--bundle", str(tmp_path / "theirs")]).status == 0
    pyrune.ok("spec", *options, "--bundle", str(tmp_path / "ours"))
    theirs, ours = ((tmp_path / name / "config.json").read_text() for name in ("theirs", "ours"))
    version = re.compile(r'"ociVersion": "[^"]+"')
    assert version.sub("", ours) == version.sub("", theirs)


def test_spec_of_an_enclave_adds_annotations_and_takes_the_terminal_away(pyrune: Pyrune, tmp_path: Path) -> None:
    pyrune.ok("spec", "--bundle", str(tmp_path))
    ordinary = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    pyrune.ok("spec", "-enclave", "--image=/i.eif", "--memory", "1G", "-vcpus", "4", "--bundle", str(tmp_path))
    enclave = json.loads((tmp_path / "config.json").read_text())
    assert enclave.pop("annotations") == {
        "enclave.type": "AwsNitroEnclaves",
        "enclave.runtime.args": "image=/i.eif memory=1G vcpus=4",
    }
    assert (ordinary["process"].pop("terminal"), enclave["process"].pop("terminal")) == (True, False)
    assert enclave == ordinary


def test_spec_replaces_nothing(runc: Program, pyrune: Pyrune, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    for done in (pyrune("spec", "--enclave", "--bundle", str(tmp_path)), pyrune("spec", "--bundle", str(tmp_path))):
        assert done.returncode == 1
        assert "File config.json exists. Remove it first" in done.stderr
    assert "File config.json exists. Remove it first" in runc(["spec", "--bundle", str(tmp_path)]).stderr
    assert (tmp_path / "config.json").read_text() == "mine"


def test_an_enclaves_options_need_an_enclave(pyrune: Pyrune, tmp_path: Path) -> None:
    done = pyrune("spec", "--image", "/i.eif", "--bundle", str(tmp_path))
    assert done.returncode == 1
    assert "say --enclave as well" in done.stderr
    assert not (tmp_path / "config.json").exists()


def test_the_pid_file_holds_digits_only_and_replaces_another_at_once(
    runc: Program, beside: Program, tmp_path: Path
) -> None:
    for program in (runc, beside):
        place = program.directory / "pids"
        place.mkdir()
        (place / "pid").write_text("an older one, and longer")
        os.link(place / "pid", place / "kept")
        assert program(["create", "--pid-file", str(place / "pid"), "--bundle", str(program.bundle), "one"]).status == 0
        assert (place / "pid").read_text() == _pid(program)
        assert (place / "pid").stat().st_mode & 0o777 == 0o644
        assert (place / "kept").read_text() == "an older one, and longer"
        assert sorted(path.name for path in place.iterdir()) == ["kept", "pid"]


def test_the_state_directory_is_its_owners_alone(beside: Program) -> None:
    beside(["create", "--bundle", str(beside.bundle), "one"])
    assert beside.root.stat().st_mode & 0o777 == 0o700
    for path in [beside.root / "one", *(beside.root / "one").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0
