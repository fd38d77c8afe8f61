from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrune.eif.output import whole_file
from pyrune.errors import EifError


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    with whole_file(place, "image", mode=0o604) as out:
        out.write(b"new")
        out.flush()
        assert place.read_bytes() == b"old"
    assert place.read_bytes() == b"new"
    assert place.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_file_that_did_not_become_whole_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"old")
    with pytest.raises(kind), whole_file(place, "image") as out:
        out.write(b"new")
        raise kind
    assert os.listdir(tmp_path) == ["file"]
    assert place.read_bytes() == b"old"


def test_an_error_names_the_file_and_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(EifError, match=r"payload .*/folder cannot be written: it is a folder"),
        whole_file(tmp_path / "folder", "payload"),
    ):
        pass
