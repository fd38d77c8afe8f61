"""Tables, and their place in a document."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import DOCUMENT
from benchmarks.figures import Pairs, seconds
from benchmarks.report import BEGIN, END, PAIR_COLUMNS, Table, pair_row, skipped, with_measured


def test_a_table_as_markdown() -> None:
    table = Table("Title", ("what", "much"), [("one", "1 s"), ("a longer name", "22 s")], "A note.")
    assert table.markdown().splitlines() == [
        "### Title",
        "",
        "| what          | much |",
        "| ------------- | ---- |",
        "| one           | 1 s  |",
        "| a longer name | 22 s |",
        "",
        "A note.",
    ]


def test_a_table_without_rows_keeps_its_head() -> None:
    assert Table("Title", ("", "much"), []).markdown().splitlines()[2:] == ["|     | much |", "| --- | ---- |"]


def test_a_bar_in_a_cell_does_not_end_the_cell() -> None:
    assert r"| a \| b |" in Table("Title", ("what",), [("a | b",)]).markdown()


def test_a_row_with_too_few_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 cells, not 2"):
        Table("Title", ("what", "much"), [("one",)])


def test_a_pair_as_a_row() -> None:
    row = pair_row("boot", Pairs.of([(2.0, 1.0), (3.0, 2.0), (2.5, 1.0)]), seconds)
    assert row == ("boot", "2.50 s (2.00 s to 3.00 s)", "1.00 s (1.00 s to 2.00 s)", "2 (1.5 to 2.5)", "3")
    assert len(row) == len(PAIR_COLUMNS)


def test_what_was_not_measured_says_why() -> None:
    assert skipped("boot", "there is no QEMU") == "### boot\n\nNot measured: there is no QEMU.\n"


def test_the_measured_part_of_a_document_is_replaced_and_nothing_else() -> None:
    document = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nMore.\n"
    assert with_measured(document, "new\n") == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nMore.\n"


def test_replacing_twice_is_replacing_once() -> None:
    document = f"# Title\n{BEGIN}\n{END}\n"
    once = with_measured(document, "new")
    assert with_measured(once, "new") == once


@pytest.mark.parametrize("document", ["no marks", f"only {BEGIN}", f"only {END}", f"{END} before {BEGIN}"])
def test_a_document_without_the_marks_is_left_alone(document: str) -> None:
    with pytest.raises(ValueError, match="not both there"):
        with_measured(document, "new")


def test_the_projects_own_document_has_the_marks() -> None:
    assert "\n\nnew\n\n" in with_measured(DOCUMENT.read_text(), "new")
