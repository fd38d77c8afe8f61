"""One difference between two images, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyrune.errors import printable

# What is told of a value that is not to be seen.
PRESENT: Final = "present"


def escaped(data: bytes) -> str:
    """Bytes of an image, printable."""
    return printable(data.decode(errors="backslashreplace"))


@dataclass(frozen=True, slots=True)
class Difference:
    """A thing that is not the same in both images, or only in one of them, where the other has None.

    `section` is "" where the caller knows it, `path` is "" for what is no entry of a ramdisk or key of the metadata.
    All texts are printable.
    """

    attribute: str
    before: str | None
    after: str | None
    path: str = ""
    section: str = ""
    pcrs: tuple[str, ...] = ()

    def as_text(self) -> str:
        """One line."""
        where = ": ".join(filter(None, (self.section, self.path, self.attribute)))
        return f"{where}: {self._change} ({', '.join(self.pcrs) or 'not measured'})"

    def as_json(self) -> dict[str, object]:
        """An object in the manner of nitro-cli's."""
        return {
            "Section": self.section,
            "Path": self.path or None,
            "Attribute": self.attribute,
            "A": self.before,
            "B": self.after,
            "PCRs": list(self.pcrs),
        }

    @property
    def _change(self) -> str:
        if self.before == self.after:
            return "differs"
        before, after = (value if value is not None else "absent" for value in (self.before, self.after))
        return f"{before} -> {after}"
