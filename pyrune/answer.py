"""What a call answers: lines on standard output. Everything else that is said goes to the log."""

from __future__ import annotations

import os

from pyrune.errors import UsageError


def answer(*lines: str) -> None:
    """Write all of them, or raise UsageError. Where standard output was closed from the start, that is no error."""
    import click

    try:
        click.echo("".join(f"{line}\n" for line in lines), nl=False)
    except OSError as exc:
        # What is left in the buffer must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        raise UsageError(f"standard output takes no more (error {exc.errno})") from exc
