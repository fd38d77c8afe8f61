from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.diff.difference import Difference
from pyrune.eif.diff.texts import compare_environments, compare_json, compare_lines
from pyrune.eif.metadata import Json

SECRET = b"hunter2"


def lines(before: bytes, after: bytes, show: bool = True) -> list[tuple[str, str | None, str | None]]:
    return [(found.attribute, found.before, found.after) for found in compare_lines(before, after, show_values=show)]


def variables(before: bytes, after: bytes, show: bool = True) -> list[tuple[str, str | None, str | None]]:
    found = compare_environments(before, after, show_values=show)
    return [(one.attribute, one.before, one.after) for one in found]


def test_lines_have_the_number_they_had_in_the_first() -> None:
    assert lines(b"a\nb\nc\n", b"a\nx\nc\n") == [("line 2", "b", "x")]
    assert lines(b"a\nc\n", b"a\nnew\nc\n") == [("line 2", None, "new")]
    assert lines(b"a\nb\nc\n", b"a\nc\n") == [("line 2", "b", None)]
    assert lines(b"a\na\n", b"a\n") == [("line 2", "a", None)]
    assert lines(b"a\n", b"a") == [("line 2", "", None)]
    assert lines(b"a", b"a") == []


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_texts_are_the_same_if_and_only_if_no_line_differs(before: bytes, after: bytes) -> None:
    assert (lines(before, after) == []) == (before == after)
    assert (variables(before, after) == []) == (before.removesuffix(b"\n") == after.removesuffix(b"\n"))


def test_variables_are_named() -> None:
    assert variables(b"A=1\nB=2\nC=3\n", b"A=1\nB=x=y\nD=\n") == [
        ("variable B", "2", "x=y"),
        ("variable C", "3", None),
        ("variable D", None, ""),
    ]


def test_a_variable_may_be_there_twice() -> None:
    assert variables(b"A=1\nA=2\n", b"A=1\nA=3\nA=4\n") == [("variable A", "2", "3"), ("variable A", None, "4")]


def test_the_order_of_variables_counts() -> None:
    assert variables(b"A=1\nB=2\n", b"B=2\nA=1\n") == [("order of the variables", "A, B", "B, A")]


def test_values_are_not_shown_unless_asked_for() -> None:
    assert variables(b"A=1\nB=hunter2\n", b"A=2\n", show=False) == [
        ("variable A", "present", "present"),
        ("variable B", "present", None),
    ]
    assert lines(b"hunter2", b"x", show=False) == [("line 1", "present", "present")]


@pytest.mark.parametrize(
    "data", [b"KEY=-----BEGIN KEY-----\nhunter2=\n-----END KEY-----\n", b"A=x\nhunter2\n", b"A=x\nhunter2 =y\n"]
)
def test_what_may_be_part_of_a_value_is_not_taken_for_a_name(data: bytes) -> None:
    found = [*variables(data, b"A=y\n", show=False), *variables(b"", data, show=False)]
    assert found
    assert SECRET.decode() not in str(found)


def test_control_characters_are_escaped() -> None:
    assert lines(b"\x1b[31m\xff", b"x") == [("line 1", r"\x1b[31m\xff", "x")]


def test_json_values_are_found_by_their_path() -> None:
    before: Json = {"a": {"b": [1, {"c": "x"}]}, "gone": 1, "odd\x1b": 1}
    after: Json = {"a": {"b": [1, {"c": "y"}, 3]}, "new": None, "odd\x1b": 2}
    assert list(compare_json(before, after, show_values=True)) == [
        Difference("value", '"x"', '"y"', "a.b[1].c"),
        Difference("value", None, "3", "a.b[2]"),
        Difference("value", "1", None, "gone"),
        Difference("value", "1", "2", r"odd\x1b"),
        Difference("value", None, "null", "new"),
    ]
    assert "x" not in {found.before for found in compare_json(before, after, show_values=False)}


def test_deep_json_is_no_problem() -> None:
    deep = json.loads("[" * 900 + "1" + "]" * 900), json.loads("[" * 900 + "2" + "]" * 900)
    (found,) = compare_json(*deep, show_values=True)
    assert found.path == "[0]" * 900
