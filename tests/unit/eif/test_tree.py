from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrune.eif.cpio import CpioReader, Entry
from pyrune.eif.format import Chunk
from pyrune.eif.ramdisk import MTIME, Ramdisk
from pyrune.eif.tree import Directory, Tree, write_tree
from pyrune.errors import EifError


def packed(directory: Path, prefix: str = "", *, keep_owners: bool = False, keep_devices: bool = False) -> bytes:
    out = io.BytesIO()
    write_tree(directory, out, prefix=prefix, keep_owners=keep_owners, keep_devices=keep_devices)
    return out.getvalue()


def unpacked(data: bytes) -> dict[bytes, tuple[Entry, bytes]]:
    reader = CpioReader([data])
    return {entry.name: (entry, b"".join(bytes(piece) for piece in reader.data())) for entry in reader}


def populate(directory: Path, names: list[str]) -> None:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o644)
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)


NAMES = ["init", "bin/sh", "bin-extra", "bin.d/x", "etc/é", "Zed", "bin/a/deep/file"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    populate(directory, NAMES)
    (directory / "bin" / "bash").symlink_to("sh")
    (directory / "etc" / "outside").symlink_to("/etc/passwd")
    (directory / "etc" / "up").symlink_to("../../..")
    (directory / "tmp").mkdir(mode=0o755)
    (directory / "tmp").chmod(0o1777)
    (directory / "init").chmod(0o4755)
    return directory


def test_a_tree_holds_its_files_links_and_modes(tree: Path) -> None:
    found = unpacked(packed(tree))
    assert found[b"init"][1] == b"init"
    assert found[b"init"][0].mode == 0o104755
    assert found[b"tmp"][0].mode == 0o041777
    assert found[b"etc/outside"][1] == b"/etc/passwd"
    assert stat.S_ISLNK(found[b"etc/outside"][0].mode)
    assert found[b"etc/up"][1] == b"../../.."
    assert found["etc/é".encode()][1] == "etc/é".encode()


def test_names_are_sorted_bytewise_and_a_directory_precedes_what_is_in_it(tree: Path) -> None:
    assert [name.decode() for name in unpacked(packed(tree))] == [
        "Zed",
        "bin",
        "bin/a",
        "bin/a/deep",
        "bin/a/deep/file",
        "bin/bash",
        "bin/sh",
        "bin-extra",
        "bin.d",
        "bin.d/x",
        "etc",
        "etc/outside",
        "etc/up",
        "etc/é",
        "init",
        "tmp",
    ]


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, order in (("one", NAMES), ("two", NAMES[::-1])):
        populate(tmp_path / name, order)
    os.utime(tmp_path / "two" / "init", (1, 2))
    assert packed(tmp_path / "one") == packed(tmp_path / "two")


def test_times_and_owners_do_not_get_in(tree: Path) -> None:
    entries = [entry for entry, _ in unpacked(packed(tree)).values()]
    assert {(entry.mtime, entry.uid, entry.gid) for entry in entries} == {(MTIME, 0, 0)}


def test_owners_are_kept_if_asked_for(tree: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tree / "init", 1234, 5678)
    status = (tree / "init").stat()
    entry, _ = unpacked(packed(tree, keep_owners=True))[b"init"]
    assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)


def test_the_size_is_known_beforehand(tree: Path) -> None:
    with Tree(tree) as scanned:
        assert scanned.size_bytes == len(packed(tree))


@pytest.mark.parametrize("prefix", ["a/rootfs", "a/rootfs/"])
def test_a_prefix_goes_before_every_name(tree: Path, prefix: str) -> None:
    tree.chmod(0o700)
    found = unpacked(packed(tree, prefix))
    assert list(found)[:3] == [b"a", b"a/rootfs", b"a/rootfs/Zed"]
    assert found[b"a"][0].mode == 0o040755
    assert found[b"a/rootfs"][0].mode == 0o040700
    assert all(name == b"a" or name.startswith(b"a/rootfs") for name in found)


@pytest.mark.parametrize("prefix", ["/a", "../a", "a/../..", "./a"])
def test_a_prefix_that_leads_elsewhere_is_a_bug_of_the_caller(tree: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match="no path below"):
        packed(tree, prefix)


def test_hard_links_stay_hard_links(tree: Path) -> None:
    for name in ("bin/one", "bin/two"):
        (tree / name).hardlink_to(tree / "bin" / "sh")
    (tree.parent / "outside").hardlink_to(tree / "Zed")
    found = unpacked(packed(tree))
    links = [found[name][0] for name in (b"bin/one", b"bin/sh", b"bin/two")]
    assert len({entry.ino for entry in links}) == 1
    assert [(entry.nlink, entry.size_bytes) for entry in links] == [(3, 6), (3, 0), (3, 0)]
    assert found[b"bin/one"][1] == b"bin/sh"
    # The kernel would look for a partner of every entry that claims to have one.
    assert found[b"Zed"][0].nlink == 1


SPECIALS: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "a FIFO"),
    (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), "a socket"),
]


@pytest.mark.parametrize(("make", "words"), SPECIALS)
def test_special_files_are_refused_by_name(tree: Path, make: Callable[[Path], object], words: str) -> None:
    make(tree / "etc" / "special")
    with pytest.raises(EifError, match=f"tree/etc/special cannot be packed: it is {words}"):
        packed(tree)


def test_special_files_are_kept_if_asked_for(tree: Path) -> None:
    os.mkfifo(tree / "fifo", 0o600)
    assert unpacked(packed(tree, keep_devices=True))[b"fifo"][0].mode == 0o010600


def test_devices_keep_their_numbers(tree: Path) -> None:
    try:
        os.mknod(tree / "console", stat.S_IFCHR | 0o600, os.makedev(5, 1))
    except PermissionError:
        pytest.skip("devices: only root makes them")
    with pytest.raises(EifError, match="it is a device"):
        packed(tree)
    entry, _ = unpacked(packed(tree, keep_devices=True))[b"console"]
    assert (entry.mode, entry.rdev_major, entry.rdev_minor) == (0o020600, 5, 1)


def test_sockets_are_never_packed(tree: Path) -> None:
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    with pytest.raises(EifError, match="it is a socket"):
        packed(tree, keep_devices=True)


def test_a_file_of_4_gib_is_refused_by_name(tree: Path) -> None:
    with (tree / "big").open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(EifError, match="big cannot be packed: it has 4 GiB"):
        Tree(tree)


def test_a_name_that_ends_archives_is_refused(tree: Path) -> None:
    (tree / "TRAILER!!!").touch()
    with pytest.raises(EifError, match="ends an archive"):
        packed(tree)
    (tree / "TRAILER!!!").rename(tree / "bin" / "TRAILER!!!")
    assert b"bin/TRAILER!!!" in unpacked(packed(tree))


def replace_by_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_copy(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def replace_folder_by_symlink(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


def shorten(path: Path) -> None:
    os.truncate(path, 1)


def lengthen(path: Path) -> None:
    os.truncate(path, 1000)


def rewrite_at_the_same_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(
    "change",
    [
        replace_by_symlink,
        replace_by_copy,
        replace_folder_by_symlink,
        shorten,
        lengthen,
        rewrite_at_the_same_size,
        Path.unlink,
    ],
)
def test_what_changes_between_scan_and_reading_is_an_error(tree: Path, change: Callable[[Path], None]) -> None:
    with Tree(tree) as scanned:
        change(tree / "bin" / "sh")
        with pytest.raises(EifError, match="tree/bin"):
            scanned.write(io.BytesIO())


@pytest.mark.parametrize("name", ["nothing", "file", "a\0b"])
def test_what_is_no_directory_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EifError, match="cannot be packed"):
        Tree(tmp_path / name)


def test_a_file_that_is_written_to_while_it_is_packed_is_an_error(tree: Path) -> None:
    class Meddler:
        def write(self, data: Chunk, /) -> None:
            if bytes(data) == b"bin/sh":
                rewrite_at_the_same_size(tree / "bin" / "sh")

    with Tree(tree) as scanned, pytest.raises(EifError, match="tree/bin/sh changed while it was packed"):
        scanned.write(Meddler())


def test_extended_attributes_are_refused_if_asked_for(tree: Path) -> None:
    try:
        os.setxattr(tree / "init", b"user.note", b"x")
    except OSError:
        pytest.skip("attributes: this file system has none")
    assert b"init" in unpacked(packed(tree))
    with (
        Directory(tree, refuse_attributes=True) as strict,
        pytest.raises(EifError, match=r"tree/init has the extended attribute user\.note"),
    ):
        Ramdisk(strict.nodes())


def test_a_failed_scan_leaves_no_descriptor(tree: Path) -> None:
    os.mkfifo(tree / "bin" / "a" / "fifo")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EifError):
        Tree(tree)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_empty_directory_is_an_empty_archive(tmp_path: Path) -> None:
    assert unpacked(packed(tmp_path)) == {}
    assert len(packed(tmp_path)) == 512
