"""What differs between two texts: lists of lines, environments, JSON.

Values may be secrets: unless they are asked for, it is only told that they are there, or that they differ. Names are
shown, and what is no name for certain is taken for a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from pyrune.eif.diff.difference import PRESENT, Difference, escaped
from pyrune.eif.metadata import Json
from pyrune.errors import printable

_VARIABLE: Final = re.compile(rb"([A-Za-z_][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_ABSENT: Final = object()


def compare_lines(before: bytes, after: bytes, *, show_values: bool) -> Iterator[Difference]:
    """The lines that differ, by their number in the first text, between what is equal at both ends."""
    old, new = before.split(b"\n"), after.split(b"\n")
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    while len(old) > start and len(new) > start and old[-1] == new[-1]:
        old.pop()
        new.pop()
    for number, (one, other) in enumerate(zip_longest(old[start:], new[start:]), start + 1):
        if one != other:
            yield Difference(f"line {number}", _shown(one, show_values), _shown(other, show_values))


def compare_environments(before: bytes, after: bytes, *, show_values: bool) -> Iterator[Difference]:
    """The variables that differ.

    A value with line breaks looks like more than one variable. Where any line is no variable, lines are compared
    instead, as what looks like a name may be part of a value.
    """
    old, new = _variables(before), _variables(after)
    if old is None or new is None:
        yield from compare_lines(before, after, show_values=show_values)
        return
    for name in dict.fromkeys([*old, *new]):
        for one, other in zip_longest(old.get(name, []), new.get(name, [])):
            if one != other:
                yield Difference(f"variable {name}", _shown(one, show_values), _shown(other, show_values))
    if before != after and {name: old[name] for name in old} == new:
        yield Difference("order of the variables", ", ".join(old), ", ".join(new))


def compare_json(before: Json, after: Json, *, show_values: bool) -> Iterator[Difference]:
    """The values that differ, each by its path."""
    pending: list[tuple[str, object, object]] = [("", before, after)]
    while pending:
        path, one, other = pending.pop()
        if one == other and type(one) is type(other):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            keys = [*dict.fromkeys([*one, *other])]
            pending += [(_below(path, key), one.get(key, _ABSENT), other.get(key, _ABSENT)) for key in keys[::-1]]
        elif isinstance(one, list) and isinstance(other, list):
            pairs = list(enumerate(zip_longest(one, other, fillvalue=_ABSENT)))
            pending += [(f"{path}[{number}]", *pair) for number, pair in pairs[::-1]]
        else:
            yield Difference("value", _shown_json(one, show_values), _shown_json(other, show_values), path)


def _variables(data: bytes) -> dict[str, list[bytes]] | None:
    """The values of each variable, in order, or None if there is anything else."""
    found: dict[str, list[bytes]] = {}
    for line in data.removesuffix(b"\n").split(b"\n") if data else ():
        match = _VARIABLE.fullmatch(line)
        if match is None:
            return None
        found.setdefault(match[1].decode("ascii"), []).append(match[2])
    return found


def _shown(value: bytes | None, show_values: bool) -> str | None:
    if value is None:
        return None
    return escaped(value) if show_values else PRESENT


def _shown_json(value: object, show_values: bool) -> str | None:
    if value is _ABSENT:
        return None
    return printable(json.dumps(value, ensure_ascii=False)) if show_values else PRESENT


def _below(path: str, key: str) -> str:
    return f"{path}.{printable(key)}" if path else printable(key)
