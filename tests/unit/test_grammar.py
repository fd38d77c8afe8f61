"""Go's flags, as runc's users may type them."""

from __future__ import annotations

import click
import pytest

from pyrune.errors import UsageError
from pyrune.grammar import translated

OPTIONS = {
    name.lstrip("-"): option
    for option in (
        click.Option(["-b", "--bundle"]),
        click.Option(["--pid-file"]),
        click.Option(["-f", "--force"], is_flag=True),
        click.Option(["-h", "--help"], is_flag=True),
    )
    for name in option.opts
}


@pytest.mark.parametrize(
    ("typed", "options", "arguments"),
    [
        ("id", [], ["id"]),
        ("--bundle /b id", ["--bundle=/b"], ["id"]),
        ("-bundle /b id", ["--bundle=/b"], ["id"]),
        ("-bundle=/b id", ["--bundle=/b"], ["id"]),
        ("--b /b id", ["--bundle=/b"], ["id"]),
        ("-b=/b id", ["--bundle=/b"], ["id"]),
        ("--bundle= id", ["--bundle="], ["id"]),
        ("--bundle a=b id", ["--bundle=a=b"], ["id"]),
        ("--bundle -force id", ["--bundle=-force"], ["id"]),
        ("--bundle -- id", ["--bundle=--"], ["id"]),
        ("-force id", ["--force"], ["id"]),
        ("--force=true id", ["--force"], ["id"]),
        ("-f=F id", [], ["id"]),
        ("id --force", ["--force"], ["id"]),
        ("id -pid-file p more", ["--pid-file=p"], ["id", "more"]),
        ("-- --force", [], ["--force"]),
        ("id -- --force", [], ["id", "--force"]),
        ("-", [], ["-"]),
        # Once an argument has come, what is not declared is an argument.
        ("id -9", [], ["id", "-9"]),
    ],
)
def test_what_go_accepts_is_accepted(typed: str, options: list[str], arguments: list[str]) -> None:
    assert translated(typed.split(" "), OPTIONS, options_first=False) == (options, arguments)


def test_after_the_verb_everything_is_left_to_the_verb() -> None:
    words = ["-f", "state", "--", "-f", "--nonsense"]
    assert translated(words, OPTIONS, options_first=True) == (["--force"], ["state", "--", "-f", "--nonsense"])


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("--nosuch id", "flag provided but not defined: -nosuch"),
        ("-nosuch=1 id", "flag provided but not defined: -nosuch"),
        ("-x\x1b", r"flag provided but not defined: -x\x1b"),
        ("---force", "bad flag syntax: ---force"),
        ("id --bundle", "flag needs an argument: -bundle"),
        ("-b", "flag needs an argument: -b"),
        ("--force=maybe id", 'invalid boolean value "maybe" for -force: parse error'),
        ("--force= id", 'invalid boolean value "" for -force: parse error'),
    ],
)
def test_what_go_refuses_is_refused_in_its_words(typed: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        translated(typed.split(" "), OPTIONS, options_first=False)
    assert str(caught.value) == text
