"""Handing ordinary containers to runc, or to another runtime with its command line.

Which one: PYRUNE_RUNC names it (set and empty: none), else runc and then crun are looked for on PATH and, where that is
empty, in the usual places. The call becomes that program: same arguments, same descriptors, same process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import islice
from typing import NoReturn

from pyrune.errors import PyruneError
from pyrune.process import find_program, replace_self

ENVIRONMENT_VARIABLE = "PYRUNE_RUNC"
# The global options, pyrune's and runc's, whose value may be the next word.
_WITH_VALUE = frozenset({"backend", "criu", "log", "log-format", "root", "rootless"})


class OrdinaryRuntimeError(PyruneError):
    """There is no runtime for ordinary containers, or it does not start."""


def find_runc() -> str | None:
    """The absolute path of the runtime for ordinary containers, if there is one."""
    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    if configured is not None:
        return configured or None
    return find_program("runc") or find_program("crun")


def without_own_options(arguments: Sequence[str]) -> list[str]:
    """`arguments` less those that only pyrune has: --backend and its value, before the verb."""
    kept: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-") or word == "--":
            return [*kept, word, *rest]
        name, equals, _ = word.lstrip("-").partition("=")
        option = [word, *islice(rest, 1)] if name in _WITH_VALUE and not equals else [word]
        if name != "backend":
            kept += option
    return kept


def hand_over(arguments: Sequence[str]) -> NoReturn:
    """Become runc with `arguments`, those that pyrune was called with. Raises OrdinaryRuntimeError."""
    program = find_runc()
    if program is None:
        raise OrdinaryRuntimeError(
            "this is an ordinary container, and no runtime for those is installed; "
            f"install runc, or name another with {ENVIRONMENT_VARIABLE}"
        )
    if not os.path.isabs(program):
        raise OrdinaryRuntimeError(f"{ENVIRONMENT_VARIABLE} is {program!r}; it must be an absolute path")
    if os.path.realpath(program) == os.path.realpath(sys.argv[0]):
        raise OrdinaryRuntimeError(
            f"the runtime for ordinary containers, {program}, is pyrune; name another with {ENVIRONMENT_VARIABLE}"
        )
    try:
        replace_self(program, [os.path.basename(program), *without_own_options(arguments)])
    except OSError as exc:
        raise OrdinaryRuntimeError(f"the runtime {program} does not start (error {exc.errno})") from exc
