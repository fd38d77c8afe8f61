from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.cpio import CpioReader, CpioWriter, Entry
from pyrune.eif.diff import archives
from pyrune.eif.diff.archives import compare_archives
from pyrune.errors import EifError
from tests.unit.eif.test_cpio import packed

FILE = Entry(b"bin/app", 0o100755, size_bytes=5, uid=1, gid=2, mtime=3)


def file(name: str, data: bytes = b"", mode: int = 0o100644) -> tuple[Entry, bytes]:
    return Entry(name.encode(), mode, size_bytes=len(data)), data


def differences(before: bytes, after: bytes, show: bool = False) -> set[tuple[str, str, str | None, str | None]]:
    found = compare_archives(CpioReader([before]), CpioReader([after]), show_values=show)
    return {(one.path, one.attribute, one.before, one.after) for one in found}


@pytest.mark.parametrize(
    ("change", "attribute", "before", "after"),
    [
        ({"mode": 0o100700}, "mode", "0755", "0700"),
        ({"mode": 0o104755}, "mode", "0755", "4755"),
        ({"mode": 0o040755}, "type", "regular file", "folder"),
        ({"uid": 7}, "uid", "1", "7"),
        ({"gid": 7}, "gid", "2", "7"),
        ({"mtime": 7}, "mtime", "3", "7"),
        ({"rdev_major": 7}, "device", "0:0", "7:0"),
    ],
)
def test_an_attribute_that_differs_is_named(change: dict[str, Any], attribute: str, before: str, after: str) -> None:
    old, new = packed((FILE, b"hello")), packed((replace(FILE, **change), b"hello"))
    found = differences(old, new)
    assert ("bin/app", attribute, before, after) in found
    assert {one[1] for one in found} - {"links"} == {attribute}


def test_contents_are_compared_by_their_digests() -> None:
    found = differences(packed(file("a", b"abc")), packed(file("a", b"abd")))
    assert found == {
        (
            "a",
            "content",
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha256:a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9",
        )
    }
    assert ("a", "size", "3", "4") in differences(packed(file("a", b"abc")), packed(file("a", b"abcd")))


def test_the_target_of_a_link_is_shown() -> None:
    old, new = (packed(file("sh", target, 0o120777)) for target in (b"busybox", b"da\x1bh"))
    assert differences(old, new) == {("sh", "target", "busybox", r"da\x1bh"), ("sh", "size", "7", "4")}


def test_a_hard_link_is_one_to_a_certain_file() -> None:
    def linked(to: int) -> bytes:
        out = io.BytesIO()
        writer = CpioWriter(out)
        numbers = [writer.add(file(name, b"x")[0], [b"x"], nlink=2) for name in "ab"]
        writer.add(Entry(b"c", 0o100644), ino=numbers[to], nlink=2)
        writer.finish()
        return out.getvalue()

    assert differences(linked(0), linked(1)) == {("c", "hard link of", "a", "b")}


def test_entries_that_only_one_has_are_told() -> None:
    old = packed(file("a"), file("gone\n"), file("z"))
    new = packed(file("a"), file("new", mode=0o040755), file("z"))
    assert differences(old, new) == {
        (r"gone\n", "entry", "regular file", None),
        ("new", "entry", None, "folder"),
    }


def test_the_order_counts() -> None:
    old, new = (packed(*(file(name) for name in names)) for names in ("abcd", "acbd"))
    assert differences(old, new) == {("b", "order", "entry 2", "entry 3")}


@given(st.lists(st.sampled_from("abcdef"), max_size=8), st.lists(st.sampled_from("abcdef"), max_size=8))
def test_archives_of_the_same_names_are_the_same_if_and_only_if_nothing_is_told(old: list[str], new: list[str]) -> None:
    found = differences(packed(*(file(name) for name in old)), packed(*(file(name) for name in new)))
    assert (found == set()) == (old == new)
    told = {path for path, attribute, *_ in found if attribute == "entry"}
    assert told == {name for name in "abcdef" if old.count(name) != new.count(name)}
    if sorted(old) != sorted(new) and len(set(old)) == len(old) and len(set(new)) == len(new):
        common = [[name for name in side if name in old and name in new] for side in (old, new)]
        assert any(attribute == "order" for _, attribute, *_ in found) == (common[0] != common[1])


def test_entries_of_the_same_name_are_compared_in_their_order() -> None:
    old = packed(file("a", b"1"), file("a", b"2"))
    new = packed(file("a", b"1"), file("a", b"3"))
    assert {attribute for _, attribute, *_ in differences(old, new)} == {"content"}


@pytest.mark.parametrize("name", ["env", "./env", "/env"])
def test_the_environment_is_compared_by_its_variables(name: str) -> None:
    old, new = packed(file(name, b"A=1\nB=secret\n")), packed(file(name, b"A=1\nB=SECRET\n"))
    found = {attribute: (before, after) for _, attribute, before, after in differences(old, new)}
    assert set(found) == {"content", "variable B"}
    assert found["variable B"] == ("present", "present")
    assert (name, "variable B", "secret", "SECRET") in differences(old, new, show=True)


def test_lists_are_compared_by_their_lines() -> None:
    old, new = packed(file("cmd", b"sh\n-c\n")), packed(file("cmd", b"sh\n-x\n"))
    assert ("cmd", "line 2", "-c", "-x") in differences(old, new, show=True)
    assert ("cmd", "line 2", "present", "present") in differences(old, new)


@pytest.mark.parametrize(("name", "data"), [("etc/env", b"A=1\n"), (".env", b"A=1\n"), ("init", b"\x7fELF\0")])
def test_other_files_are_not_looked_into(name: str, data: bytes) -> None:
    found = differences(packed(file(name, data)), packed(file(name, b"A=2\n\0"[: len(data)])))
    assert {attribute for _, attribute, *_ in found} <= {"content", "size"}


def test_an_archive_that_is_none_is_an_error() -> None:
    with pytest.raises(EifError):
        differences(packed(file("a")), b"junk")


def test_one_entry_more_holds_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_HELD", 2)  # the new one, and one that the other archive has next
    many = [file(f"{number:05}") for number in range(500)]
    new = packed(many[0], file("0new"), *many[1:])
    assert differences(packed(*many), new) == {("0new", "entry", None, "regular file")}
    with pytest.raises(EifError, match="more than 2 entries have no counterpart"):
        differences(packed(*many), packed(*many[::-1]))


def test_little_is_held_of_an_archive_of_many_texts() -> None:
    def many() -> Iterator[tuple[Entry, bytes]]:
        for _ in range(40):
            yield file("env", b"A=" + b"x" * 100_000)

    found = differences(packed(*many()), packed(*many(), file("env", b"B=1")))
    assert found == {("env", "entry", None, "regular file")}
