"""Handing over: which runtime, and with which arguments."""

from __future__ import annotations

import pytest

from pyrune.runc import ENVIRONMENT_VARIABLE, find_runc, without_own_options


@pytest.mark.parametrize(
    ("given", "handed_over"),
    [
        ("--root /r state x", "--root /r state x"),
        ("--backend local state x", "state x"),
        ("-backend local state x", "state x"),
        ("--backend=local --root=/r state x", "--root=/r state x"),
        ("--root --backend --debug state x", "--root --backend --debug state x"),
        ("--backend --root state x", "state x"),
        ("--debug create --backend x", "--debug create --backend x"),
        ("exec x sh --backend local", "exec x sh --backend local"),
        ("--log /l --log-format json -backend=auto list", "--log /l --log-format json list"),
        ("--backend", ""),
        ("", ""),
    ],
)
def test_only_the_option_backend_before_the_verb_is_left_out(given: str, handed_over: str) -> None:
    assert without_own_options(given.split()) == handed_over.split()


def test_the_variable_names_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "/opt/runtime")
    assert find_runc() == "/opt/runtime"


def test_an_empty_variable_means_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert find_runc() is None
