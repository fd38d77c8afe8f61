from __future__ import annotations

import stat

import pytest

from pyrune.compose.application import application_ramdisk, normalise
from pyrune.compose.process_spec import ProcessSpec
from pyrune.compose.root import Folder, Leaf, RootTree, regular
from pyrune.errors import EifError
from tests.unit.compose.trees import content, unpacked, written

SPEC = ProcessSpec(("/bin/x", "two words", "", "é"), ("A=1", "B="))
# What every root file system gets.
ALWAYS = {"dev", "etc", "etc/mtab", "proc", "sys"}


def tree_of(**files: Leaf) -> RootTree:
    tree = RootTree("root")
    for name, leaf in files.items():
        tree.put((name.encode(),), leaf)
    return tree


def dockers(tree: RootTree) -> RootTree:
    """What Docker adds when it makes a container."""
    for path in ("dev/pts", "dev/shm", "proc", "sys"):
        tree.put(tuple(path.encode().split(b"/")), Folder())
    for path in (".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/resolv.conf"):
        tree.put(tuple(path.encode().split(b"/")), regular(b"", 0o755))
    tree.put((b"etc", b"mtab"), Leaf(stat.S_IFLNK | 0o777, target=b"/proc/mounts"))
    return tree


def test_process_and_root_are_where_the_init_looks_for_them() -> None:
    found = unpacked(written(application_ramdisk(tree_of(x=regular(b"data", 0o755)), SPEC)))
    assert found[b"cmd"][1] == "/bin/x\ntwo words\n\né\n".encode()
    assert found[b"env"][1] == b"A=1\nB=\n"
    assert found[b"rootfs/x"][1] == b"data"
    assert set(found) == {b"cmd", b"env", b"rootfs", b"rootfs/x"} | {f"rootfs/{name}".encode() for name in ALWAYS}
    assert list(found) == sorted(found)
    assert len({entry.mtime for entry, _ in found.values()}) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ProcessSpec(()), "there is no program to run"),
        (ProcessSpec(("",)), "there is no program to run"),
        (ProcessSpec(("/x",), cwd="/srv"), "the working directory '/srv' cannot be given to the guest's init yet"),
        (ProcessSpec(("/x",), uid=5), "the user 5:0 cannot be given to the guest's init yet"),
        (ProcessSpec(("/x",), gid=5), "the user 0:5 cannot"),
        (ProcessSpec(("/x", "a\nb")), "argument 1 has a line break"),
        (ProcessSpec(("/x",), ("A=1", "SECRET=a\nb")), "environment variable 1 has a line break"),
    ],
)
def test_what_the_init_cannot_take_is_refused_by_name(spec: ProcessSpec, words: str) -> None:
    with pytest.raises(EifError, match=words) as caught:
        application_ramdisk(tree_of(), spec)
    assert "SECRET" not in str(caught.value)


def test_a_container_of_docker_measures_as_its_image() -> None:
    image, container = tree_of(x=regular(b"1")), dockers(tree_of(x=regular(b"1")))
    normalise(image)
    normalise(container)
    assert content(image) == content(container)
    assert set(content(image)) == ALWAYS | {"x"}


def test_what_an_image_has_of_its_own_is_kept() -> None:
    tree = dockers(RootTree("root"))
    tree.put((b"etc", b"hosts"), regular(b"127.0.0.1 me"))
    tree.put((b"etc", b"hostname"), regular(b"", 0o644))
    tree.put((b"etc", b"mtab"), Leaf(stat.S_IFLNK | 0o777, target=b"../proc/self/mounts"))
    tree.put((b"dev", b"null"), Leaf(stat.S_IFCHR | 0o666, rdev=(1, 3)))
    tree.put((b"proc", b"note"), regular(b"x"))
    normalise(tree)
    found = content(tree)
    assert set(found) == {*ALWAYS, "dev/null", "etc/hostname", "etc/hosts", "proc/note"}
    assert found["etc/mtab"][1] == b"../proc/self/mounts"


def test_mount_points_look_the_same_in_every_image() -> None:
    tree = RootTree("root")
    tree.put((b"proc",), Folder(0o555, 5, 6))
    normalise(tree)
    assert (content(tree)["proc"][0].mode, content(tree)["proc"][0].uid) == (0o40755, 0)


def test_a_link_in_place_of_etc_is_left_alone() -> None:
    tree = tree_of(etc=Leaf(stat.S_IFLNK | 0o777, target=b"/elsewhere"))
    normalise(tree)
    assert set(content(tree)) == {"dev", "etc", "proc", "sys"}
