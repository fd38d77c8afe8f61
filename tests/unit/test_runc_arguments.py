"""Handing over any command line: what was put together from known pieces loses exactly the pieces that are pyrune's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrune.runc import without_own_options

# Values that look like options and verbs on purpose.
values = (
    st.sampled_from(["local", "create", "--backend", "--backend=local", "-root", "--", "", "/run/x", "a=b"]) | st.text()
)
dashes = st.sampled_from(["-", "--"])
names = st.sampled_from(["root", "log", "log-format", "criu", "rootless"])
flags = st.tuples(dashes, st.sampled_from(["debug", "systemd-cgroup"])).map(lambda parts: ["".join(parts)])


def option(name: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """An option and its value, as one word or two."""
    two = st.tuples(dashes, name, values).map(lambda parts: [parts[0] + parts[1], parts[2]])
    one = st.tuples(dashes, name, values).map(lambda parts: [f"{parts[0]}{parts[1]}={parts[2]}"])
    return one | two


kept = option(names) | flags
ours = option(st.just("backend"))
verbs = st.sampled_from(["create", "state", "list", "exec"])


@given(st.lists(st.tuples(st.just(True), kept) | st.tuples(st.just(False), ours)), verbs, st.lists(values))
def test_exactly_our_own_options_are_left_out(
    options: list[tuple[bool, list[str]]], verb: str, rest: list[str]
) -> None:
    given_words = [word for _, words in options for word in words]
    kept_words = [word for keep, words in options if keep for word in words]
    assert without_own_options([*given_words, verb, *rest]) == [*kept_words, verb, *rest]


@given(st.lists(values))
def test_any_words_are_taken_and_handing_over_twice_changes_nothing(words: list[str]) -> None:
    once = without_own_options(words)
    assert without_own_options(once) == once


@given(st.lists(option(st.just("backend"))), values)
def test_what_follows_two_dashes_is_left_alone(options: list[list[str]], value: str) -> None:
    rest = ["--", "--backend", value]
    assert without_own_options([*(word for words in options for word in words), *rest]) == rest
