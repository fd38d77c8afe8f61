"""Tables of Markdown, and their place in docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.figures import Pairs, times

BEGIN = "<!-- measured: begin; from here on written by `python -m benchmarks --write` -->"
END = "<!-- measured: end -->"

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """One part of the results. Each row has as many cells as there are columns; `note` is a paragraph below."""

    title: str
    columns: Row
    rows: Sequence[Row]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {row} has {len(row)} cells, not {len(self.columns)}")

    def markdown(self) -> str:
        """As GitHub reads it, under a heading; padded, so that a terminal shows it well, too."""
        rows = [[text.replace("|", "\\|") for text in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        head, *body = [_line(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
        rule = _line("-" * width for width in widths)
        return "\n".join([f"### {self.title}", "", head, rule, *body, *(["", self.note] if self.note else []), ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


PAIR_COLUMNS: Row = ("", "pyrune", "bare", "ratio", "pairs")


def pair_row(name: str, pairs: Pairs, unit: Callable[[float], str]) -> Row:
    """A row below PAIR_COLUMNS."""
    return (name, pairs.ours.written(unit), pairs.bare.written(unit), pairs.ratios.written(times), str(len(pairs.ours)))


def skipped(title: str, reason: str) -> str:
    """What stands in the place of a table that this machine cannot fill."""
    return f"### {title}\n\nNot measured: {reason}.\n"


def with_measured(document: str, measured: str) -> str:
    """`document` with `measured` between its two marks. Raises ValueError for one that lacks them."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the marks {BEGIN} and {END} are not both there")
    return f"{before}{BEGIN}\n\n{measured.strip()}\n\n{END}{after}"
