"""runc's command-line grammar for click commands: what Go's flag package accepts, as urfave/cli 1.x has it.

One dash or two make no difference (`-bundle`, `--b`), a value follows `=` or the next word, switches may be given a
value (`--force=false`), options may follow the arguments, and letters are not combined. Click parses what is left once
that is translated. Words of errors are Go's, measured with runc 1.1.5; its usage text, which goes to standard output
there, is not printed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import click

from pyrune.errors import UsageError, printable

# strconv.ParseBool
_TRUE = frozenset(["1", "t", "T", "true", "TRUE", "True"])
_FALSE = frozenset(["0", "f", "F", "false", "FALSE", "False"])


class Command(click.Command):
    """A verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options, arguments = translated(args, _options(self, ctx), options_first=not ctx.allow_interspersed_args)
        if not {"--help", "--version"} & set(options):
            self._check_count(ctx, len(arguments))
        return super().parse_args(ctx, [*options, "--", *arguments])

    def _check_count(self, ctx: click.Context, count: int) -> None:
        declared = [param for param in self.get_params(ctx) if isinstance(param, click.Argument)]
        least = sum(param.required for param in declared)
        most = None if any(param.nargs < 0 for param in declared) else len(declared)
        if least == most != count:
            raise UsageError(f'pyrune: "{ctx.info_name}" requires exactly {least} argument(s)')
        if count < least:
            raise UsageError(f'pyrune: "{ctx.info_name}" requires a minimum of {least} argument(s)')
        if most is not None and count > most:
            raise UsageError(f'pyrune: "{ctx.info_name}" requires a maximum of {most} argument(s)')


class Group(click.Group):
    """The command with its verbs. Without one it prints its help."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options, arguments = translated(args, _options(self, ctx), options_first=True)
        return super().parse_args(ctx, [*options, *(["--", *arguments] if arguments else ["--help"])])


def translated(
    words: list[str], options: Mapping[str, click.Option], *, options_first: bool
) -> tuple[list[str], list[str]]:
    """`words` as options that click reads, and arguments. Raises UsageError.

    With `options_first`, everything from the first argument on is an argument. Otherwise an undeclared option there
    is one: so it is in urfave/cli.
    """
    found: list[str] = []
    arguments: list[str] = []
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if options_first and arguments:
            arguments += [word, *rest]
            break
        if word == "--":
            arguments += rest
            break
        option = options.get(_name(word)) if _is_option(word) else None
        if option is not None:
            found += _as_click_reads(word, option, rest)
        elif arguments or not _is_option(word):
            arguments.append(word)
        elif word.startswith("---"):
            raise UsageError(f"bad flag syntax: {printable(word)}")
        else:
            raise UsageError(f"flag provided but not defined: -{printable(_name(word))}")
    return found, arguments


def _options(command: click.Command, ctx: click.Context) -> dict[str, click.Option]:
    declared = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    return {name.lstrip("-"): option for option in declared for name in option.opts}


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _name(word: str) -> str:
    return word.removeprefix("-").removeprefix("-").partition("=")[0]


def _as_click_reads(word: str, option: click.Option, rest: deque[str]) -> list[str]:
    """One option of the command line, with its value from `rest` if that is where it is."""
    _, equals, value = word.partition("=")
    longest = max(option.opts, key=len)
    if option.is_flag:
        if equals and value not in _TRUE | _FALSE:
            raise UsageError(f'invalid boolean value "{printable(value)}" for -{_name(word)}: parse error')
        return [] if value in _FALSE else [longest]
    if not equals:
        if not rest:
            raise UsageError(f"flag needs an argument: -{_name(word)}")
        value = rest.popleft()
    return [f"{longest}={value}"]
