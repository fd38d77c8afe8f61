from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pyrune.annotations import EnclaveRequest, enclave_request
from pyrune.bundle import load_bundle, validate
from pyrune.document import OCI_VERSION, Json
from pyrune.errors import AnnotationError, BundleError
from pyrune.spec import EnclaveArguments, default_spec, write_spec
from tests.needs import missing


def runc() -> str:
    """The path of a runc whose template is ours."""
    path = shutil.which("runc")
    if path is None:
        missing("runc", "not installed")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    if not version.startswith("runc version 1.1."):
        missing("runc", "its template is compared with that of the 1.1 series, and this is another")
    return path


def without_version(text: str) -> str:
    lines = text.split("\n")
    assert lines[1].startswith('\t"ociVersion": "')
    return "\n".join([lines[0], *lines[2:]])


@pytest.mark.parametrize("rootless", [False, True])
def test_the_template_is_that_of_runc(tmp_path: Path, rootless: bool) -> None:
    options = ["--rootless"] if rootless else []
    subprocess.run([runc(), "spec", *options], cwd=tmp_path, check=True, timeout=30)
    theirs = (tmp_path / "config.json").read_text()
    assert without_version(default_spec(rootless=rootless)) == without_version(theirs)


def namespaces(text: str) -> list[str]:
    return [namespace["type"] for namespace in json.loads(text)["linux"]["namespaces"]]


def test_a_machine_with_cgroup_2_alone_gets_a_namespace_for_it() -> None:
    assert namespaces(default_spec(unified_cgroup=False)) == ["pid", "network", "ipc", "uts", "mount"]
    assert namespaces(default_spec(unified_cgroup=True)) == ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    rootless = default_spec(rootless=True, unified_cgroup=True)
    assert namespaces(rootless) == ["pid", "ipc", "uts", "mount", "cgroup", "user"]


def test_a_rootless_template_maps_the_caller() -> None:
    linux = json.loads(default_spec(rootless=True))["linux"]
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": os.getegid(), "size": 1}]


def test_an_enclave_adds_annotations_and_takes_the_terminal_away() -> None:
    plain: dict[str, Json] = json.loads(default_spec())
    enclave: dict[str, Json] = json.loads(default_spec(enclave=EnclaveArguments("/a.eif", "512", "2")))
    assert list(enclave) == ["ociVersion", "process", "root", "hostname", "mounts", "annotations", "linux"]
    assert enclave.pop("annotations") == {
        "enclave.type": "AwsNitroEnclaves",
        "enclave.runtime.args": "image=/a.eif memory=512 vcpus=2",
    }
    assert isinstance(enclave["process"], dict)
    assert isinstance(plain["process"], dict)
    assert enclave["process"].pop("terminal") is False
    assert plain["process"].pop("terminal") is True
    assert enclave == plain
    assert enclave["ociVersion"] == OCI_VERSION


@pytest.mark.parametrize(
    ("arguments", "args"),
    [
        (EnclaveArguments(), None),
        (EnclaveArguments(image="/a"), "image=/a"),
        (EnclaveArguments(memory="1G"), "memory=1G"),
        (EnclaveArguments(image="/a", vcpus="1"), "image=/a vcpus=1"),
    ],
)
def test_only_what_was_given_is_written(arguments: EnclaveArguments, args: str | None) -> None:
    annotations = json.loads(default_spec(enclave=arguments))["annotations"]
    assert annotations.get("enclave.runtime.args") == args


@pytest.mark.parametrize(
    "arguments",
    [
        EnclaveArguments(image="a.eif"),
        EnclaveArguments(image=""),
        EnclaveArguments(image="/a b"),
        EnclaveArguments(image="/a,debug=true"),
        EnclaveArguments(image="/a memory=1"),
        EnclaveArguments(image="/a\n"),
        EnclaveArguments(image="/\udcff"),
        EnclaveArguments(memory="0"),
        EnclaveArguments(memory="512MB"),
        EnclaveArguments(vcpus="0"),
        EnclaveArguments(vcpus="2 debug=true"),
    ],
)
def test_what_create_would_refuse_is_never_written(arguments: EnclaveArguments) -> None:
    with pytest.raises(AnnotationError) as caught:
        default_spec(enclave=arguments)
    assert caught.value.key == "enclave.runtime.args"


def test_what_is_written_is_what_create_reads(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    write_spec(str(tmp_path), default_spec(enclave=EnclaveArguments("/h\u00e9llo&.eif", "1G", "4")))
    bundle = load_bundle(str(tmp_path))
    validate(bundle)
    found = enclave_request(bundle.config.annotations, bundle.process.env)
    assert found == EnclaveRequest(image="/h\u00e9llo&.eif", memory_mib=1024, vcpus=4, env=bundle.process.env)


def test_a_configuration_that_is_there_stays_there(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("mine")
    with pytest.raises(BundleError, match=r"File config\.json exists\. Remove it first"):
        write_spec(str(tmp_path), default_spec())
    assert config.read_text() == "mine"


def test_a_link_that_leads_nowhere_counts_as_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("elsewhere")
    with pytest.raises(BundleError, match="exists"):
        write_spec(str(tmp_path), default_spec())
    assert not (tmp_path / "elsewhere").exists()


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file or directory"):
        write_spec(str(tmp_path / "nowhere"), default_spec())
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="not a directory"):
        write_spec(str(tmp_path / "file"), default_spec())


def test_the_file_has_the_permissions_that_runc_gives_it(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        write_spec(str(tmp_path), default_spec())
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o640
