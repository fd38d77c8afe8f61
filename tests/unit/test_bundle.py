from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.annotations import enclave_request
from pyrune.bundle import Bundle, check_terminal, load_bundle, validate
from pyrune.config import read
from pyrune.document import Document, Json, Node, parse
from pyrune.errors import AnnotationError, BundleError, UsageError
from pyrune.spec import EnclaveArguments, default_spec
from tests.needs import missing
from tests.unit.test_config import WHOLE, places, replaced

# Texts by which Docker, containerd, Podman and CRI-O tell failures apart. None of them may appear by accident.
MATCHED_BY_CALLERS = (
    "process already finished",
    "container not running",
    "no such process",
    "does not exist",
    "not found",
    "no such",
    "executable file",
    "permission denied",
    "operation not permitted",
    "is a directory",
    "not a directory",
    "invalid process",
)


@pytest.fixture
def tree() -> dict[str, Json]:
    """A document that passes."""
    document: dict[str, Json] = json.loads(default_spec(enclave=EnclaveArguments("/a.eif", "512", "2")))
    return document


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Json], str]:
    """Write a document into a bundle that has a rootfs; returns the bundle's path."""
    (tmp_path / "rootfs").mkdir()

    def write_document(document: Json) -> str:
        (tmp_path / "config.json").write_text(json.dumps(document))
        return str(tmp_path)

    return write_document


def test_what_spec_writes_is_valid(write: Callable[[Json], str], tree: Json) -> None:
    path = write(tree)
    bundle = load_bundle(path)
    validate(bundle)
    assert bundle.process.args == ("sh",)
    assert bundle.rootfs == f"{path}/rootfs"


def test_a_complete_document_is_valid(write: Callable[[Json], str]) -> None:
    validate(load_bundle(write(json.loads(WHOLE))))


def test_an_absolute_rootfs_stays_so(write: Callable[[Json], str], tree: dict[str, Json], tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    tree["root"] = {"path": elsewhere}
    assert load_bundle(write(tree)).rootfs == elsewhere


def test_configurations_of_docker_and_containerd_are_valid(vectors: Path, write: Callable[[Json], str]) -> None:
    paths = sorted((vectors / "oci-configs").glob("*.json"))
    assert len(paths) > 30
    for path in paths:
        document = json.loads(path.read_bytes())
        # Two were recorded with annotations that are no request for an enclave; all root file systems are elsewhere.
        document.pop("annotations", None)
        document["root"]["path"] = "rootfs"
        bundle = load_bundle(write(document))
        validate(bundle)
        assert bundle.process.args == tuple(document["process"]["args"]), path
        assert bundle.config.linux.cgroups_path == document["linux"]["cgroupsPath"], path


def test_recorded_annotations_that_are_no_request_are_refused(vectors: Path, tmp_path: Path) -> None:
    for name in ("ctr21", "docker-d28-tty-annot"):
        shutil.copyfile(vectors / "oci-configs" / f"{name}.json", tmp_path / "config.json")
        bundle = load_bundle(str(tmp_path))
        with pytest.raises(AnnotationError):
            enclave_request(bundle.config.annotations, bundle.process.env)
        with pytest.raises(BundleError, match=r"annotations\[\"enclave\."):
            validate(bundle)


def refusal(text: str) -> str:
    """The words by which a document is refused somewhere in all that is done with it; "" if it passes."""
    try:
        root = Node("config.json", "", parse(text.encode(), "config.json"))
        document = Document("/", root)
        enclave_request(document.annotations, document.env)
        validate(Bundle(document.bundle_path, read(document), document))
    except (BundleError, AnnotationError) as exc:
        return str(exc)
    return ""


ABSENT = object()

# Where, the value put there, the place that the error names if another, the problem.
CORRUPTIONS: list[tuple[str, object, str, str]] = [
    ("ociVersion", ABSENT, "", "missing"),
    ("ociVersion", "2.0.0", "", "not of the form"),
    ("ociVersion", "1.0", "", "not of the form"),
    ("process", ABSENT, "", "process property must not be empty"),
    ("process.cwd", ABSENT, "", "Cwd property must not be empty"),
    ("process.cwd", "", "", "Cwd property must not be empty"),
    ("process.cwd", "home", "", "Cwd must be an absolute path"),
    ("process.cwd", "/\0", "", "not of the form"),
    ("process.args", ABSENT, "", "args must not be empty"),
    ("process.args", [], "", "args must not be empty"),
    ("process.args", [""], "process.args[0]", "must not be empty"),
    ("process.args", ["sh", "a\0b"], "process.args[1]", "not of the form"),
    ("process.env", ["A=1", "B"], "process.env[1]", "not of the form"),
    ("process.env", ["=1"], "process.env[0]", "not of the form"),
    ("process.env", ["A=\0"], "process.env[0]", "not of the form"),
    ("process.user.umask", 0o1000, "", "out of range"),
    ("process.oomScoreAdj", 1001, "", "out of range"),
    ("process.consoleSize", {"height": 25}, "process.consoleSize.width", "missing"),
    ("process.capabilities.bounding", ["KILL"], "process.capabilities.bounding[0]", "not of the form"),
    ("process.rlimits", [{"type": "RLIMIT_CORE"}], "process.rlimits[0].soft", "missing"),
    (
        "process.rlimits",
        [{"type": "RLIMIT_X", "soft": 1, "hard": 1}],
        "process.rlimits[0].type",
        "not one of the known values",
    ),
    ("root", ABSENT, "", "root must be specified"),
    ("root.path", ABSENT, "", "missing"),
    ("root.path", "", "", "must not be empty"),
    ("root.path", "elsewhere", "", "invalid rootfs"),
    ("root.path", "config.json", "", "invalid rootfs"),
    ("root.path", "root\0fs", "", "not of the form"),
    ("mounts", [{"type": "proc"}], "mounts[0].destination", "missing"),
    ("mounts", [{"destination": ""}], "mounts[0].destination", "must not be empty"),
    ("hooks", {"prestart": [{"path": "a"}]}, "hooks.prestart[0].path", "not of the form"),
    ("hooks", {"poststop": [{}]}, "hooks.poststop[0].path", "missing"),
    ("hooks", {"poststop": [{"path": "/a", "timeout": 0}]}, "hooks.poststop[0].timeout", "out of range"),
    ("hooks", {"poststop": [{"path": "/a", "env": ["A"]}]}, "hooks.poststop[0].env[0]", "not of the form"),
    ("linux.namespaces", [{"type": "foo"}], "linux.namespaces[0].type", "no kind of namespace"),
    ("linux.namespaces", [{}], "linux.namespaces[0].type", "missing"),
    ("linux.namespaces", [{"type": "pid"}, {"type": "pid"}], "linux.namespaces[1].type", "duplicated ns pid"),
    ("linux.namespaces", [{"type": "pid", "path": "x"}], "linux.namespaces[0].path", "not of the form"),
    ("linux.maskedPaths", ["proc"], "linux.maskedPaths[0]", "not of the form"),
    ("linux.resources.memory", {"limit": -2}, "linux.resources.memory.limit", "out of range"),
    ("linux.resources.cpu", {"cpus": "0-"}, "linux.resources.cpu.cpus", "not of the form"),
    ("linux.devices", [{"path": "/x", "type": "y"}], "linux.devices[0].type", "not one of the known values"),
    ("linux.uidMappings", [{"containerID": 0, "hostID": 0}], "linux.uidMappings[0].size", "missing"),
    ("annotations", {"enclave.type": "awsnitro"}, 'annotations["enclave.type"]', "not one of the known values"),
    ("annotations", {"enclave.tpye": ""}, 'annotations["enclave.tpye"]', "unknown"),
    ("annotations", {"enclave.boot.timeout": "1m"}, 'annotations["enclave.boot.timeout"]', "not of the form"),
    ("annotations", {"enclave.runtime.args": "image=a"}, 'annotations["enclave.runtime.args"]', "not of the form"),
]


def corrupted(tree: dict[str, Json], place: str, value: object) -> dict[str, Json]:
    *parents, name = place.split(".")
    target = tree
    for parent in parents:
        child = target[parent]
        assert isinstance(child, dict)
        target = child
    if value is ABSENT:
        del target[name]
    else:
        target[name] = json.loads(json.dumps(value))
    return tree


@pytest.mark.parametrize(("place", "value", "named", "problem"), CORRUPTIONS)
def test_one_wrong_thing_is_named_with_its_place_and_its_remedy(
    write: Callable[[Json], str], tree: dict[str, Json], place: str, value: object, named: str, problem: str
) -> None:
    path = write(corrupted(tree, place, value))
    with pytest.raises(BundleError) as caught:
        validate(load_bundle(path))
    fault = caught.value
    assert (fault.file, fault.json_path) == (f"{path}/config.json", named or place)
    assert problem in fault.problem
    assert fault.remedy
    text = str(fault)
    assert text.isprintable()
    assert not [words for words in MATCHED_BY_CALLERS if words in text.removeprefix(path)]


@pytest.mark.parametrize("name", ["process", "root"])
def test_a_null_is_absent_for_the_schema_too(write: Callable[[Json], str], tree: dict[str, Json], name: str) -> None:
    tree["linux"] = {"namespaces": None, "resources": {"memory": None, "pids": {"limit": None}}}
    validate(load_bundle(write(tree)))
    tree[name] = None
    with pytest.raises(BundleError, match=rf"{name}.* must"):
        validate(load_bundle(write(tree)))


def test_no_value_of_an_environment_is_in_an_error_or_what_it_carries(
    write: Callable[[Json], str], tree: dict[str, Json]
) -> None:
    bundle = load_bundle(write(corrupted(tree, "process.env", ["A=1", "TOKEN secret"])))
    with pytest.raises(BundleError) as caught:
        validate(bundle)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "secret" not in f"{shown!s} {shown!r}"
        shown = None if shown.__suppress_context__ and shown.__cause__ is None else shown.__cause__ or shown.__context__


def test_a_value_nested_to_any_depth_is_refused_like_any_other() -> None:
    # At 988 to 992 levels, from a shallow caller, CPython 3.11 still reads it but fails to print it.
    for depth in range(900, 1010):
        nested = "[" * depth + "]" * depth
        text = f'{{"ociVersion": "1.2.0", "linux": {{"seccomp": {nested}}}}}'
        assert refusal(text) in (
            "config.json: linux.seccomp: a value of the wrong kind; give an object, or leave it out",
            "config.json: values are nested too deeply; `pyrune spec` writes a complete one",
        )


def test_the_gravest_of_many_faults_is_found_in_bounded_time(
    write: Callable[[Json], str], tree: dict[str, Json]
) -> None:
    with pytest.raises(BundleError, match=r"process\.env\["):
        validate(load_bundle(write(corrupted(tree, "process.env", ["A"] * 100_000))))


@pytest.mark.parametrize(
    ("terminal", "detached", "console_socket"),
    [(True, True, "/s"), (True, False, None), (False, True, None), (False, False, None), (False, True, "")],
)
def test_a_terminal_and_a_console_socket_that_fit(terminal: bool, detached: bool, console_socket: str | None) -> None:
    check_terminal(terminal, detached, console_socket)


def test_a_terminal_needs_a_console_socket_when_nobody_stays() -> None:
    text = "process.terminal: cannot allocate tty if pyrune will detach without setting console socket"
    for console_socket in (None, ""):
        with pytest.raises(BundleError, match=text):
            check_terminal(True, True, console_socket)


@pytest.mark.parametrize(("terminal", "detached"), [(True, False), (False, True), (False, False)])
def test_a_console_socket_needs_a_terminal_and_nobody_who_stays(terminal: bool, detached: bool) -> None:
    with pytest.raises(UsageError, match="cannot use console socket if pyrune will not detach or allocate tty"):
        check_terminal(terminal, detached, "/s")


def test_reading_a_bundle_does_not_import_jsonschema(write: Callable[[Json], str], tree: Json) -> None:
    code = "import sys; from pyrune.bundle import load_bundle; load_bundle(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code, write(tree)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "jsonschema" not in run.stdout.split()


RUNC = shutil.which("runc")
# Those that runc finds before it touches the machine.
SHARED_WITH_RUNC = ["process", "process.cwd", "process.args", "root", "linux.namespaces"]


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (place, value, problem)
        for place, value, _, problem in CORRUPTIONS
        if place in SHARED_WITH_RUNC and problem[:3] in ("pro", "Cwd", "arg", "roo", "dup")
    ],
)
def test_runc_says_it_in_the_same_words(
    write: Callable[[Json], str], tree: dict[str, Json], tmp_path: Path, place: str, value: object, problem: str
) -> None:
    if RUNC is None:
        missing("runc", "not installed")
    assert isinstance(tree["process"], dict)
    tree["process"]["terminal"] = False
    bundle = write(corrupted(tree, place, value))
    runc = [RUNC, "--root", str(tmp_path / "state")]
    try:
        create = subprocess.run([*runc, "create", "-b", bundle, "x"], capture_output=True, text=True, timeout=30)
    finally:
        subprocess.run([*runc, "delete", "--force", "x"], capture_output=True, timeout=30)
    assert create.returncode == 1
    words = problem.replace("ns pid", "ns {")
    assert words in create.stderr.replace("\\", "")


NAMES = sorted({step for path in places(json.loads(WHOLE)) for step in path if isinstance(step, str)})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["", "/", "rootfs", "pid", "A=1", "AwsNitroEnclaves", "image=/a memory=1", "RLIMIT_CORE", "c"])
)
KEYS = st.sampled_from([*NAMES, "enclave.type", "enclave.runtime.args", "enclave.x"]) | st.text(max_size=5)
TREES: st.SearchStrategy[Json] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=30
)


@settings(deadline=None, max_examples=60)
@given(TREES)
def test_any_json_is_refused_in_our_words(tree: Json) -> None:
    assert refusal(json.dumps(tree)).isprintable()


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(places(json.loads(WHOLE))), TREES)
def test_any_value_anywhere_is_taken_or_refused_in_our_words(path: tuple[str | int, ...], value: Json) -> None:
    whole = replaced(json.loads(WHOLE), ("root", "path"), "tmp")
    assert refusal(json.dumps(whole)) == ""
    assert refusal(json.dumps(replaced(whole, path, value))).isprintable()
