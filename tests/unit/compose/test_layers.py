from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.compose.extent import Extent
from pyrune.compose.layers import apply_layer
from pyrune.compose.root import RootTree
from pyrune.errors import EifError
from tests.support.image_archives import File, folder, hard_link, symlink
from tests.unit.compose.trees import content, layered, texts


def test_a_later_layer_wins() -> None:
    assert texts(layered([File("a", b"1"), File("b", b"1")], [File("a", b"2")])) == {"a": "2", "b": "1"}


def test_a_whiteout_hides_what_is_below() -> None:
    lower = [folder("d"), File("d/a", b"1"), File("d/b", b"1"), folder("gone"), File("gone/x", b"1")]
    found = layered(lower, [File("d/.wh.a"), File(".wh.gone"), File("d/.wh.nothing")])
    assert sorted(found) == ["d", "d/b"]


@pytest.mark.parametrize("first", [True, False])
def test_a_whiteout_does_not_hide_its_own_layer(first: bool) -> None:
    upper = [File("a", b"new"), File(".wh.a")]
    assert texts(layered([File("a", b"old")], upper if first else upper[::-1])) == {"a": "new"}


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_folder_hides_all_that_the_layers_below_have_in_it(first: bool) -> None:
    lower = [folder("d", mode=0o700), File("d/old"), folder("d/sub"), File("d/sub/old"), File("other")]
    upper = [File("d/new", b"n"), File("d/.wh..wh..opq")]
    found = layered(lower, upper if first else upper[::-1])
    assert sorted(found) == ["d", "d/new", "other"]
    assert found["d"][0].mode == 0o40700


def test_what_file_systems_note_for_themselves_is_left_out() -> None:
    assert list(layered([File(".wh..wh.aufs"), File("d/.wh..wh.orph", b"x"), File("a")])) == ["a"]


@pytest.mark.parametrize("name", [".wh.", ".wh..", "d/.wh..."])
def test_a_whiteout_of_no_name_is_refused(name: str) -> None:
    with pytest.raises(EifError, match="hides nothing"):
        layered([File(name)])


def test_a_folder_over_a_folder_changes_its_attributes_only() -> None:
    found = layered([folder("d"), File("d/a", b"1")], [folder("d", mode=0o1777, uid=5, gid=6)])
    assert (found["d"][0].mode, found["d"][0].uid, found["d"][0].gid) == (0o41777, 5, 6)
    assert found["d/a"][1] == b"1"


def test_a_file_over_a_folder_and_a_folder_over_a_link_replace_it() -> None:
    lower = [folder("d"), File("d/a"), symlink("l", "d")]
    found = layered(lower, [File("d", b"file"), folder("l"), File("l/b")])
    assert sorted(found) == ["d", "l", "l/b"]
    assert stat.S_ISDIR(found["l"][0].mode)


def test_folders_that_nobody_named_come_into_being() -> None:
    found = layered([File("a/b/c", b"x")])
    assert [found[name][0].mode for name in ("a", "a/b")] == [0o40755] * 2


def test_hard_links_are_one_file_also_over_layers() -> None:
    found = layered([File("a", b"data")], [hard_link("b", "a"), hard_link("c", "/b")])
    assert len({found[name][0].ino for name in "abc"}) == 1
    assert [(found[name][0].nlink, found[name][0].size_bytes) for name in "abc"] == [(3, 4), (3, 0), (3, 0)]


def test_a_file_that_is_written_anew_is_no_hard_link_any_more() -> None:
    found = layered([File("a", b"1"), hard_link("b", "a")], [File("a", b"2")])
    assert (found["a"][1], found["b"][1]) == (b"2", b"1")
    assert found["a"][0].nlink == found["b"][0].nlink == 1


@pytest.mark.parametrize("target", ["nothing", "d", "later"])
def test_a_hard_link_to_no_file_is_refused(target: str) -> None:
    with pytest.raises(EifError, match=f"image: /l is a hard link to {target}, which is no file so far"):
        layered([folder("d"), hard_link("l", target), File("later")])


def test_a_hard_link_of_a_symbolic_link_is_another_symbolic_link() -> None:
    assert texts(layered([symlink("a", "/etc/passwd"), hard_link("b", "a")])) == {
        "a": "/etc/passwd",
        "b": "/etc/passwd",
    }


def test_absolute_names_are_names_in_the_root() -> None:
    assert texts(layered([File("/etc/passwd", b"1"), File("./etc//./group", b"2")])) == {
        "etc/passwd": "1",
        "etc/group": "2",
    }


@pytest.mark.parametrize("name", ["../a", "a/../../b", "a/..", "..", "/../x"])
def test_names_that_lead_upwards_are_refused(name: str) -> None:
    with pytest.raises(EifError, match="leads elsewhere"):
        layered([File(name)])
    with pytest.raises(EifError, match="leads elsewhere"):
        layered([File("a"), hard_link("b", f"../{name}")])


@pytest.mark.parametrize("target", ["/usr/bin", "usr/bin", "../../usr/bin", "/../usr/./bin"])
def test_a_file_through_a_link_lands_where_it_leads_within_the_root(target: str) -> None:
    found = layered([folder("usr/bin"), symlink("bin", target)], [File("bin/sh", b"x")])
    assert found["usr/bin/sh"][1] == b"x"
    assert found["bin"][1].decode() == target


def test_a_link_out_of_the_root_leads_to_a_folder_in_it() -> None:
    found = layered([symlink("out", "../../../../tmp/outside"), File("out/file", b"x")])
    assert found["tmp/outside/file"][1] == b"x"


def test_links_in_a_circle_are_refused() -> None:
    with pytest.raises(EifError, match="too many symbolic links"):
        layered([symlink("a", "b"), symlink("b", "a"), File("a/x")])


def test_a_file_below_a_file_is_refused() -> None:
    with pytest.raises(EifError, match="/a/b lies below something that is no folder"):
        layered([File("a"), File("a/b")])


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (File("n" * 256), "a name of more than 255 bytes"),
        (File("d/" * 2048 + "x"), "a path of more than 4095 bytes"),
        (symlink("l", "t" * 4096), "a target that is too long"),
        (symlink("l", ""), "a symbolic link without a target"),
        (File("", type=tarfile.REGTYPE), "is the root and no folder"),
        (File("ping", pax={"SCHILY.xattr.security.capability": "x"}), r"ping has the extended .* security\.capability"),
    ],
)
def test_what_no_ramdisk_can_hold_is_refused_by_name(file: File, words: str) -> None:
    with pytest.raises(EifError, match=words):
        layered([file])


def test_a_file_of_4_gib_is_refused_by_name(tmp_path: Path) -> None:
    info = tarfile.TarInfo("etc/big")
    info.size = 1 << 32
    path = tmp_path / "layer.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 512 + info.size)
    tree = RootTree("image")
    with path.open("rb") as file:
        apply_layer(tree, Extent(file.fileno(), 0, 512 + info.size, "layer"))
        with pytest.raises(EifError, match="etc/big cannot be packed: it has 4 GiB or more"):
            content(tree)


def test_devices_and_pipes_are_kept_and_nothing_of_them_is_opened() -> None:
    found = layered([File("null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)), File("p", type=tarfile.FIFOTYPE)])
    assert (found["null"][0].mode, found["null"][0].rdev_major, found["null"][0].rdev_minor) == (0o20666, 1, 3)
    assert stat.S_ISFIFO(found["p"][0].mode)


def test_deep_trees_and_many_whiteouts_cost_what_they_are() -> None:
    deep = "/".join(["d"] * 1500)
    found = layered([File(f"{deep}/x")], [File(f"{deep}/.wh.x")], [File(f".wh.{number}") for number in range(2000)])
    assert len(found) == 1500


NAMES = st.sampled_from(["a", "b", "a/b", "a/c", "b/a/c", "a/.wh.b", ".wh.a", "b/.wh..wh..opq", "l", "l/x", "../a"])
FILES = st.one_of(
    st.builds(File, NAMES, st.binary(max_size=4)),
    st.builds(folder, NAMES),
    st.builds(symlink, NAMES, st.sampled_from(["a", "..", "/b", "l", "../../a/c"])),
    st.builds(hard_link, NAMES, NAMES),
)


@given(st.lists(st.lists(FILES, max_size=6), max_size=4))
def test_whatever_layers_say_the_result_is_a_tree_or_one_error(layers: list[list[File]]) -> None:
    try:
        found = layered(*layers)
    except EifError:
        return
    for name in found:
        assert not {"..", "."} & set(name.split("/"))
        parent = name.rpartition("/")[0]
        assert not parent or stat.S_ISDIR(found[parent][0].mode)
    assert list(found) == sorted(found, key=lambda name: name.split("/"))
