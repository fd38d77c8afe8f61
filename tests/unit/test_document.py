from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.document import MAX_CONFIG_BYTES, Document, Json, Node, parse, read_config
from pyrune.errors import BundleError
from pyrune.spec import default_spec


def config_of(directory: Path, content: bytes | str) -> str:
    """Write `content` as the config.json of `directory`; its path."""
    data = content.encode() if isinstance(content, str) else content
    (directory / "config.json").write_bytes(data)
    return str(directory)


def document_of(tree: Json) -> Document:
    return Document("/bundle", Node("config.json", "", parse(json.dumps(tree).encode(), "config.json")))


def test_the_annotations_and_the_environment_are_there_after_one_read(tmp_path: Path) -> None:
    tree: Json = {"annotations": {"b": "2", "a": "1"}, "process": {"env": ["X=1", "Y"]}}
    document = read_config(config_of(tmp_path, json.dumps(tree)))
    assert list(document.annotations.items()) == [("b", "2"), ("a", "1")]
    assert document.env == ("X=1", "Y")


def test_null_and_absent_are_the_same() -> None:
    trees: list[Json] = [{}, {"annotations": None, "process": None}, {"process": {"env": None}}]
    for tree in trees:
        document = document_of(tree)
        assert document.annotations == {}
        assert document.env == ()


def test_the_path_of_a_bundle_is_absolute_and_without_symbolic_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    config_of(tmp_path / "real", "{}")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert read_config("link").bundle_path == str((tmp_path / "real").resolve())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("{", "not JSON from line 1, column 2 on"),
        ("{}x", "not JSON from line 1, column 3 on"),
        ("\ufeff{}", "not JSON from line 1, column 1 on"),
        ("[]", "the document is not a JSON object"),
        ("null", "the document is not a JSON object"),
        ("7", "the document is not a JSON object"),
        (b'{"a": "\xff"}', "the file is not UTF-8 text"),
        (r'{"a": "\ud800"}', "the file is not UTF-8 text"),
        (r'{"\uDfff": 1}', "the file is not UTF-8 text"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": [-Infinity]}', "-Infinity is no JSON value"),
        ('{"a": 1, "a": 1}', "the property 'a' is given twice in one object"),
        ('{"b": [{"a": 1, "a": 2}]}', "the property 'a' is given twice in one object"),
        ("[" * 200_000, "values are nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "a number has too many digits"),
    ],
)
def test_what_is_no_single_json_object_is_refused(tmp_path: Path, content: bytes | str, problem: str) -> None:
    bundle = config_of(tmp_path, content)
    with pytest.raises(BundleError) as caught:
        read_config(bundle)
    assert caught.value.problem == problem
    assert caught.value.file == f"{bundle}/config.json"
    assert caught.value.remedy


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    bundle = config_of(tmp_path, r'{"annotations": {"a": "\ud83d\ude00"}}')
    assert read_config(bundle).annotations == {"a": "\N{GRINNING FACE}"}


def test_a_configuration_that_was_cut_short_anywhere_is_refused() -> None:
    text = default_spec(unified_cgroup=True).encode()
    for length in range(len(text)):
        with pytest.raises(BundleError):
            parse(text[:length], "config.json")


@pytest.mark.parametrize(
    "tree",
    [
        {"Annotations": {}},
        {"annotations": {}, "ANNOTATIONS": {"enclave.type": ""}},
        {"annotation\N{LATIN SMALL LETTER LONG S}": {}},
        {"Process": None},
        {"process": {"Env": []}},
    ],
)
def test_a_spelling_that_only_go_would_understand_is_refused_where_it_decides(tree: Json) -> None:
    with pytest.raises(BundleError, match="in another spelling"):
        document_of(tree)


def test_other_unknown_properties_are_ignored() -> None:
    document_of({"vendor": {"Env": 1}, "process": {"Args": 1}})


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"annotations": []}, "annotations"),
        ({"annotations": {"enclave.type": None}}, 'annotations["enclave.type"]'),
        ({"annotations": {"a": 1}}, "annotations.a"),
        ({"process": "sh"}, "process"),
        ({"process": {"env": {}}}, "process.env"),
        ({"process": {"env": ["A=1", 2]}}, "process.env[1]"),
        ({"process": {"env": [None]}}, "process.env[0]"),
    ],
)
def test_a_wrong_kind_of_value_is_refused_with_its_place(tree: Json, place: str) -> None:
    with pytest.raises(BundleError) as caught:
        document_of(tree)
    assert caught.value.json_path == place


def test_what_is_missing_is_said_in_the_words_of_runc(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"JSON specification file config\.json not found"):
        read_config(str(tmp_path))
    with pytest.raises(BundleError, match="no such file or directory") as caught:
        read_config(str(tmp_path / "nowhere"))
    assert caught.value.file == str(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="not a directory"):
        read_config(str(tmp_path / "file"))


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    os.mkfifo(config)
    with pytest.raises(BundleError, match="not a regular file"):
        read_config(str(tmp_path))
    config.unlink()
    config.mkdir()
    with pytest.raises(BundleError, match=r"cannot be read|not a regular file"):
        read_config(str(tmp_path))


def test_a_link_that_leads_in_a_circle_is_an_error_without_the_words_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("config.json")
    with pytest.raises(BundleError, match=r"cannot be read \(ELOOP\)"):
        read_config(str(tmp_path))


def test_the_size_is_bounded(tmp_path: Path) -> None:
    filler = "{" + " " * (MAX_CONFIG_BYTES - 2) + "}"
    assert read_config(config_of(tmp_path, filler)).annotations == {}
    bundle = config_of(tmp_path, filler + " ")
    with pytest.raises(BundleError, match="larger than 16 MiB"):
        read_config(bundle)


def test_an_error_shows_a_long_key_in_part() -> None:
    with pytest.raises(BundleError) as caught:
        document_of({"annotations": {"x" * 100_000: 1}})
    assert len(str(caught.value)) < 300


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_raise_nothing_else(data: bytes) -> None:
    said = ""
    try:
        parse(data, "config.json")
    except BundleError as exc:
        said = str(exc)
    assert said.isprintable()


def test_numbers_fit_or_are_refused() -> None:
    def number(value: Json) -> Node:
        return Node("config.json", "n", value)

    assert number(255).integer(0, 255) == 255
    assert number(None).integer(0, 255) is None
    wrong_ones: list[Json] = [-1, 256, 1.0, True, "1", [1]]
    for wrong in wrong_ones:
        with pytest.raises(BundleError):
            number(wrong).integer(0, 255)


def test_the_entry_point_can_decide_without_costly_imports() -> None:
    code = "import sys, pyrune.document, pyrune.enclave_type; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert {"dataclasses", "jsonschema", "click", "logging"}.isdisjoint(run.stdout.split())
