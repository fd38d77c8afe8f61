from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyrune
from pyrune.annotations import ARGUMENTS, KEYS, enclave_request
from pyrune.bundle import ANNOTATIONS_SCHEMA, OCI_CONFIG_SCHEMA, schema_path
from pyrune.document import Json
from pyrune.errors import AnnotationError
from pyrune.spec import default_spec

NAMES = [OCI_CONFIG_SCHEMA, ANNOTATIONS_SCHEMA]
# Keywords that can fail. Each needs a remedy beside it.
CONSTRAINTS = {"type", "required", "pattern", "minLength", "enum", "minimum", "maximum", "not"}
# Keywords that only lead to other schemas, or say something.
OTHERS = {
    "$schema", "$id", "$ref", "$defs", "title", "description", "x-remedy", "properties", "patternProperties",
    "additionalProperties", "items", "prefixItems",
}  # fmt: skip


def schema_of(name: str) -> dict[str, Json]:
    schema: dict[str, Json] = json.loads(schema_path(name).read_text(encoding="utf-8"))
    return schema


def subschemas(schema: Json, where: str = "") -> Iterator[tuple[str, dict[str, Json]]]:
    """`schema` and all below it, each with its place."""
    assert isinstance(schema, dict)
    yield where, schema
    for keyword in ("properties", "patternProperties", "$defs"):
        group = schema.get(keyword, {})
        assert isinstance(group, dict)
        for name, inner in group.items():
            yield from subschemas(inner, f"{where}/{keyword}/{name}")
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield from subschemas(schema[keyword], f"{where}/{keyword}")
    first = schema.get("prefixItems", [])
    assert isinstance(first, list)
    for inner in first:
        yield from subschemas(inner, f"{where}/prefixItems")


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one(name: str) -> None:
    schema = schema_of(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_can_fail_has_a_remedy(name: str) -> None:
    found = dict(subschemas(schema_of(name)))
    assert len(found) > 10
    without = [where for where, schema in found.items() if CONSTRAINTS & schema.keys() and "x-remedy" not in schema]
    assert without == []


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_uses_no_keyword_for_which_there_are_no_words(name: str) -> None:
    used = {keyword for _, schema in subschemas(schema_of(name)) for keyword in schema}
    assert used <= CONSTRAINTS | OTHERS


@pytest.mark.parametrize("name", NAMES)
def test_every_definition_is_used_and_every_reference_leads_somewhere(name: str) -> None:
    schema = schema_of(name)
    defined = schema["$defs"]
    assert isinstance(defined, dict)
    used = {inner["$ref"] for _, inner in subschemas(schema) if "$ref" in inner}
    assert used == {f"#/$defs/{definition}" for definition in defined}


@pytest.mark.parametrize("rootless", [False, True])
def test_what_spec_writes_fits(rootless: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(OCI_CONFIG_SCHEMA))
    assert list(validator.iter_errors(json.loads(default_spec(rootless=rootless, unified_cgroup=True)))) == []


def test_an_installed_package_brings_its_schemas(tmp_path: Path) -> None:
    package = tmp_path / "pyrune"
    shutil.copytree(Path(pyrune.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", "schemas"))
    (package / "schemas").mkdir()
    for name in NAMES:
        shutil.copy(schema_path(name), package / "schemas")
    code = "import sys; from pyrune.bundle import schema_path; print(*(schema_path(name) for name in sys.argv[1:]))"
    command = [sys.executable, "-B", "-c", code, *NAMES]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert run.stdout.split() == [str(package / "schemas" / name) for name in NAMES]


def test_the_schema_of_annotations_knows_every_key_and_no_other() -> None:
    properties = schema_of(ANNOTATIONS_SCHEMA)["properties"]
    assert isinstance(properties, dict)
    assert set(properties) == {key.annotation for key in KEYS}
    assert not fits({"enclave.typo": "x"})
    assert not fits({"Enclave.type": "AwsNitroEnclaves"})
    assert fits({"enclavetype": "x", "org.enclave.x": "y"})


def fits(annotations: dict[str, str]) -> bool:
    return jsonschema.Draft202012Validator(schema_of(ANNOTATIONS_SCHEMA)).is_valid(annotations)


def accepted(annotations: dict[str, str]) -> bool:
    try:
        return enclave_request(annotations, ()) is not None
    except AnnotationError:
        return False


VALUES = ["", "0", "1", "007", "512", "2G", "2g", "+1", "/a.eif", "a", "true", "false", "TRUE", "1.5", "4", "x=y"]
WORDS = st.builds("{}={}".format, st.sampled_from([a.name for a in ARGUMENTS] + ["x", ""]), st.sampled_from(VALUES))
ARGS = st.lists(WORDS | st.sampled_from(["", "image", "=", " ,"]), max_size=5).flatmap(
    lambda words: st.sampled_from([" ", ",", ", ", "  ", ";"]).map(lambda separator: separator.join(words))
)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"enclave.type": st.just("AwsNitroEnclaves")},
        optional={
            "enclave.runtime.args": ARGS,
            "enclave.boot.timeout": st.sampled_from(["", "0", "1", "1.5", "1.", ".5", "-1", "1e3", "86400", "inf"]),
            "enclave.runtime.loglevel": st.text(max_size=6),
            "enclave.runtime.path": st.text(max_size=6),
            "enclave.attestation.ra_type": st.sampled_from(["", "EPID"]),
        },
    )
)
def test_the_schema_refuses_nothing_that_the_code_accepts(annotations: dict[str, str]) -> None:
    assert fits(annotations) or not accepted(annotations)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("enclave.type", "intelSgx"),
        ("enclave.runtime.args", "image=relative"),
        ("enclave.runtime.args", "image=/a image"),
        ("enclave.runtime.args", "memory=0"),
        ("enclave.runtime.args", "memory=1g"),
        ("enclave.runtime.args", "vcpus=two"),
        ("enclave.runtime.args", "debug=yes"),
        ("enclave.runtime.args", "cpus=2"),
        ("enclave.runtime.args", "image="),
        ("enclave.boot.timeout", "soon"),
        ("enclave.attestation.ra_type", "EPID"),
        ("enclave.state.pcr0", "00"),
    ],
)
def test_the_schema_refuses_what_the_code_refuses(key: str, value: str) -> None:
    annotations = {"enclave.type": "AwsNitroEnclaves", key: value}
    assert not fits(annotations)
    assert not accepted(annotations)
