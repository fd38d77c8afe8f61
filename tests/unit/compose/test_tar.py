from __future__ import annotations

import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.compose.tar import BLOCK_BYTES, MAX_EXTENDED_BYTES, Member, read_tar
from pyrune.errors import EifError
from tests.support.image_archives import File, folder, hard_link, symlink, tar
from tests.unit.compose.trees import extent

FORMATS = pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def members(data: bytes) -> list[tuple[Member, bytes]]:
    with extent(data) as archive:
        return [(member, archive.read(member.data_offset, member.size_bytes)) for member in read_tar(archive)]


def reheaded(block: bytes, offset: int, text: bytes) -> bytes:
    """A header with other bytes at one place, and the checksum that it then has."""
    changed = bytearray(block)
    changed[offset : offset + len(text)] = text
    changed[148:156] = b"        "
    changed[148:156] = b"%06o\0 " % sum(changed[:BLOCK_BYTES])
    return bytes(changed)


@FORMATS
def test_every_kind_of_entry_is_read(format: int) -> None:
    found = members(
        tar(
            folder("a", mode=0o1777, uid=7, gid=8),
            File("a/file", b"data", mode=0o4755, uid=1000, gid=100),
            symlink("a/link", "../b"),
            hard_link("a/hard", "a/file"),
            File("null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
            File("disk", type=tarfile.BLKTYPE, device=(8, 1)),
            File("pipe", type=tarfile.FIFOTYPE),
            format=format,
        )
    )
    by_name = {member.name.rstrip(b"/"): member for member, _ in found}
    assert (by_name[b"a"].mode, by_name[b"a"].uid, by_name[b"a"].gid) == (stat.S_IFDIR | 0o1777, 7, 8)
    assert found[1][1] == b"data"
    assert (by_name[b"a/file"].mode, by_name[b"a/file"].uid) == (stat.S_IFREG | 0o4755, 1000)
    assert (stat.S_ISLNK(by_name[b"a/link"].mode), by_name[b"a/link"].link) == (True, b"../b")
    assert (by_name[b"a/hard"].is_hard_link, by_name[b"a/hard"].link) == (True, b"a/file")
    assert (by_name[b"null"].rdev_major, by_name[b"null"].rdev_minor) == (1, 3)
    assert stat.S_ISBLK(by_name[b"disk"].mode)
    assert stat.S_ISFIFO(by_name[b"pipe"].mode)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_large_numbers_are_read(format: int) -> None:
    name, target = "long/" * 100 + "name", "t" * 300
    ((member, data), (link, _)) = members(
        tar(File(name, b"x", uid=4_000_000_000, gid=3_000_000_000), symlink("s" * 200, target), format=format)
    )
    assert (member.name.decode(), data, member.uid, member.gid) == (name, b"x", 4_000_000_000, 3_000_000_000)
    assert (link.name.decode(), link.link.decode()) == ("s" * 200, target)


def test_a_prefix_goes_before_a_name() -> None:
    name = "directory/" * 12 + "name"
    ((member, _),) = members(tar(File(name, b"x"), format=tarfile.USTAR_FORMAT))
    assert member.name.decode() == name


@FORMATS
def test_names_are_bytes(format: int) -> None:
    name = b"line\nbreak \xff \xc3\xa9".decode("utf-8", "surrogateescape")
    ((member, _),) = members(tar(File(name), format=format))
    assert member.name == b"line\nbreak \xff \xc3\xa9"


def test_names_of_attributes_are_told() -> None:
    ((member, _),) = members(tar(File("a", pax={"SCHILY.xattr.security.capability": "x", "comment": "no attribute"})))
    assert member.attributes == (b"security.capability",)


FILE = tar(File("name", b"data" * 200), format=tarfile.USTAR_FORMAT)
LARGE_EXTENDED = reheaded(FILE[:512], 156, b"x")
PAX_GLOBAL = tar(File("x", b"15 path=foobar\n"), format=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (FILE[:512] + b"\1" * 512, "ends inside name"),
        (b"junk" * 128 + FILE, "has no entry where one should begin"),
        (FILE[:1536] + b"junk" * 128, "has no entry where one should begin"),
        (FILE[:1536] + bytes(512) + FILE, "goes on after its end"),
        (FILE[:100], "is cut short"),
        (reheaded(FILE, 156, b"S"), "an entry of the type S, which is not supported: name"),
        (reheaded(FILE, 124, b"0o000000001\0"), "a number that is none at name"),
        (reheaded(tar(File("dev", type=tarfile.CHRTYPE)), 329, b"\x80\0\0\1\0\0\0\0"), "a device that Linux cannot"),
        (reheaded(FILE, 124, b"\xff" * 12), "a number that is none at name"),
        (reheaded(FILE, 124, b"-0000000001\0"), "a number that is none at name"),
        (reheaded(FILE, 124, b"\x80" + b"\x7f" * 11), "ends inside name"),
        (reheaded(FILE, 108, b"\x80\0\0\1\0\0\0\0"), "an owner that no file can have: name"),
        (reheaded(LARGE_EXTENDED, 124, b"%011o\0" % (MAX_EXTENDED_BYTES + 1)), "an extended header of"),
        (reheaded(PAX_GLOBAL, 156, b"g"), "says path of all its entries at once"),
        (reheaded(FILE, 156, b"x"), "has a damaged extended header"),
        (reheaded(PAX_GLOBAL, 156, b"x"), "ends after an extended header"),
        (tar(File("a", pax={"GNU.sparse.major": "1"})), "has sparse files"),
        (tar(File("a", pax={"uid": "-1"})), "says of an entry that its uid is -1"),
        (tar(File("a", pax={"path": "a\0b"})), "a NUL in it"),
    ],
)
def test_what_is_doubtful_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(EifError, match=words):
        members(data)


def test_an_archive_that_is_cut_is_refused_but_where_it_could_have_ended() -> None:
    data = tar(File("one", b"1" * 600), File("two", b"2"), format=tarfile.GNU_FORMAT)[: 512 * 7]
    ends = {0: [], 1536: [b"one"], 2560: [b"one", b"two"]}
    # One block of zeros is enough for everybody.
    ends |= dict.fromkeys(range(3072, len(data)), ends[2560])
    for length in range(len(data)):
        if length in ends:
            assert [member.name for member, _ in members(data[:length])] == ends[length]
        else:
            with pytest.raises(EifError, match=r"cut short|ends inside"):
                members(data[:length])


@given(st.binary(max_size=2048), st.integers(0, 2047), st.binary(max_size=16))
def test_no_bytes_do_anything_but_an_error(junk: bytes, place: int, change: bytes) -> None:
    data = bytearray(tar(File("name", b"data"), symlink("l" * 120, "t")))
    data[place : place + len(change)] = change
    for archive in (junk, bytes(data), reheaded(bytes(data), place % 148, change[: 148 - place % 148])):
        try:
            for member, _ in members(archive):
                assert 0 <= member.size_bytes <= len(archive)
        except EifError:
            pass
