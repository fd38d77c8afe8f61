from __future__ import annotations

import pytest

from pyrune.annotations import KEYS
from pyrune.enclave_type import VARIABLES, enclave_type
from pyrune.errors import AnnotationError

NITRO = {"enclave.type": "AwsNitroEnclaves"}


def test_an_ordinary_bundle_has_no_type() -> None:
    assert enclave_type({}, []) == ""
    assert enclave_type({"org.example": "x", "enclavetype": "x"}, ["A=1", "ENCLAVE=1", "ENCLAVE_MODE=1", ""]) == ""
    assert enclave_type({"enclave.type": ""}, []) == ""
    assert enclave_type({}, ["ENCLAVE_TYPE="]) == ""
    assert enclave_type({}, ["ENCLAVE_TYPE"]) == ""
    assert enclave_type({"enclave.type": ""}, ["ENCLAVE_TYPE="]) == ""


def test_an_enclave_is_asked_for_by_annotation_or_variable_or_both() -> None:
    assert enclave_type(NITRO, []) == "AwsNitroEnclaves"
    assert enclave_type({}, ["ENCLAVE_TYPE=AwsNitroEnclaves"]) == "AwsNitroEnclaves"
    assert enclave_type(NITRO, ["ENCLAVE_TYPE=AwsNitroEnclaves"]) == "AwsNitroEnclaves"


@pytest.mark.parametrize("name", ["intelSgx", "Jailhouse", "awsnitroenclaves", "AwsNitroEnclaves ", "\x1b[2J"])
def test_another_type_is_refused_by_name_unless_a_variable_named_it(name: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        enclave_type({"enclave.type": name}, [])
    assert repr(name) in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(AnnotationError, match="ENCLAVE_TYPE: the value is no type") as caught:
        enclave_type({}, [f"ENCLAVE_TYPE={name}"])
    assert f"{name!r}" not in str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "variable"), [("AwsNitroEnclaves", ""), ("", "AwsNitroEnclaves"), ("AwsNitroEnclaves", "intelSgx")]
)
def test_a_variable_neither_empties_nor_changes_nor_gives_the_type_that_the_annotation_names(
    annotation: str, variable: str
) -> None:
    with pytest.raises(AnnotationError, match=r"ENCLAVE_TYPE: differs from the annotation enclave\.type"):
        enclave_type({"enclave.type": annotation}, [f"ENCLAVE_TYPE={variable}"])


@pytest.mark.parametrize("key", [key.annotation for key in KEYS if key.annotation != "enclave.type"])
@pytest.mark.parametrize("value", ["", "x"])
def test_a_key_without_a_type_is_an_error(key: str, value: str) -> None:
    for given in ({key: value}, {key: value, "enclave.type": ""}):
        with pytest.raises(AnnotationError, match=r"given without enclave\.type") as caught:
            enclave_type(given, [])
        assert caught.value.key == key


@pytest.mark.parametrize("name", [name for name in VARIABLES.values() if name != "ENCLAVE_TYPE"])
def test_a_variable_without_a_type_is_an_error(name: str) -> None:
    for env in ([f"{name}=x"], [f"{name}="], [name], ["ENCLAVE_TYPE=", f"{name}=x"]):
        with pytest.raises(AnnotationError, match=r"given without enclave\.type") as caught:
            enclave_type({}, env)
        assert caught.value.key == name


@pytest.mark.parametrize("key", ["enclave.tpye", "enclave.", "enclave.runtime.arg", "Enclave.type", "ENCLAVE.TYPE"])
@pytest.mark.parametrize("others", [{}, NITRO])
def test_an_unknown_key_is_an_error(key: str, others: dict[str, str]) -> None:
    with pytest.raises(AnnotationError, match="unknown annotation") as caught:
        enclave_type({key: "x", **others}, [])
    assert caught.value.key == key


def test_what_pyrune_reports_cannot_be_set() -> None:
    with pytest.raises(AnnotationError, match="a name that pyrune reports under"):
        enclave_type({"enclave.state.pcr0": "00", **NITRO}, [])


def test_a_variable_may_be_repeated_but_not_with_another_value() -> None:
    assert enclave_type({}, ["ENCLAVE_TYPE=AwsNitroEnclaves"] * 2) == "AwsNitroEnclaves"
    for env in (["ENCLAVE_TYPE=", "ENCLAVE_TYPE=AwsNitroEnclaves"], ["ENCLAVE_TYPE=AwsNitroEnclaves", "ENCLAVE_TYPE="]):
        with pytest.raises(AnnotationError, match="ENCLAVE_TYPE: given twice, with different values"):
            enclave_type({}, env)


def test_a_long_key_or_value_is_shown_in_part() -> None:
    for given in ({"enclave." + "x" * 100_000: ""}, {"enclave.type": "x" * 100_000}):
        with pytest.raises(AnnotationError) as caught:
            enclave_type(given, [])
        assert len(str(caught.value)) < 300
