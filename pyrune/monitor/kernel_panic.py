"""Seeing from a console that the enclave's kernel has given up.

Linux prints one line at the start of a panic and one at its end, at the highest level, so `quiet` hides neither (both
in kernel/panic.c). What follows depends on `panic=`: a reboot at once, after a time, or never.
"""

from __future__ import annotations

import re

from pyrune.errors import printable

_LINE_LIMIT_BYTES = 1024
_TIMESTAMP = rb"(?:<[0-9]+>)?(?:\[ *[0-9]+\.[0-9]+\](?:\[[^\]]*\])? )?"
_BEGIN = re.compile(_TIMESTAMP + rb"(Kernel panic - not syncing.*)")
_END = re.compile(_TIMESTAMP + rb"---\[ end Kernel panic - not syncing")


class PanicWatch:
    """Feed it the console. `reason` is the panic's first line, escaped; `over` says that nothing more will come."""

    def __init__(self) -> None:
        self.reason = ""
        self.over = False
        self._partial = b""

    def feed(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[:_LINE_LIMIT_BYTES]
        for line in lines:
            if not self.reason and (found := _BEGIN.match(line)):
                self.reason = printable(found[1][:_LINE_LIMIT_BYTES].rstrip(b"\r").decode(errors="replace"))
            elif self.reason and _END.match(line):
                self.over = True
