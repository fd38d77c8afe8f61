from __future__ import annotations

import gzip
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyrune.compose import layer_data
from pyrune.compose.extent import Extent
from pyrune.compose.layer_data import Digest, layer_archive
from pyrune.eif.files import CHUNK_BYTES
from pyrune.errors import EifError
from tests.support.image_archives import gzipped, sha256
from tests.unit.compose.trees import extent

DATA = os.urandom(1000) + bytes(3 * CHUNK_BYTES)


def archive(layer: bytes, directory: Path, data: bytes = DATA) -> bytes:
    """The archive that comes out of `layer`, which is to be `data`."""
    with extent(layer, "layer") as compressed, ExitStack() as stack:
        found = layer_archive(stack, compressed, Digest(f"sha256:{sha256(data)}", "config"), directory)
        assert os.listdir(directory) == []
        return b"".join(bytes(piece) for piece in found.pieces())


def test_a_layer_that_is_not_compressed_stays_where_it_is(tmp_path: Path) -> None:
    with extent(DATA) as plain, ExitStack() as stack:
        assert layer_archive(stack, plain, Digest(f"sha256:{sha256(DATA)}", ""), tmp_path) is plain


@pytest.mark.parametrize("layer", [gzipped(DATA), gzipped(DATA[:700]) + gzipped(DATA[700:])])
def test_gzip_is_decompressed_to_a_file_that_has_no_name(layer: bytes, tmp_path: Path) -> None:
    assert archive(layer, tmp_path) == DATA


@pytest.mark.parametrize("layer", [DATA, gzipped(DATA)])
def test_a_layer_with_another_digest_is_refused(layer: bytes, tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"layer is damaged: its digest is not sha256:"):
        archive(layer, tmp_path, data=b"other")


@pytest.mark.parametrize("length", [3, 12, 700, -1])
def test_a_layer_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(EifError, match="layer is damaged"):
        archive(gzipped(DATA)[:length], tmp_path)


def test_a_layer_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EifError, match="its compression is broken"):
        archive(gzipped(DATA) + b"something", tmp_path)


def test_a_bomb_is_given_up_before_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    monkeypatch.setattr(layer_data, "RESERVED_BYTES", free + (1 << 40))
    with pytest.raises(EifError, match="more room than the output's disk has"):
        archive(gzip.compress(bytes(1 << 20)), tmp_path, bytes(1 << 20))


def test_a_place_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"layer cannot be decompressed to .*/nowhere: nothing is there"):
        archive(gzipped(DATA), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("magic", "name"), [(b"BZh91AY", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x04\x22\x4d\x18", "lz4")]
)
def test_other_compressions_are_refused_by_name(magic: bytes, name: str, tmp_path: Path) -> None:
    with pytest.raises(EifError, match=f"compressed with {name}; gzip and zstd are supported"):
        archive(magic + b"xxxxxxx", tmp_path)


def test_zstd_that_cannot_be_decompressed_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression", "compression.zstd", "zstandard"):
        # A module that is None cannot be imported.
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        EifError, match=r"compressed with zstd; it takes Python 3\.14, or: pip install 'pyrune\[zstd\]'"
    ):
        archive(b"\x28\xb5\x2f\xfd" + bytes(20), tmp_path)


def test_zstd_is_decompressed(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="zstd: the module zstandard is not installed")
    packed = zstandard.ZstdCompressor().compress(DATA)
    assert archive(packed, tmp_path) == DATA
    with pytest.raises(EifError, match="layer is damaged"):
        archive(packed[:-5], tmp_path)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:xyz", "md5:" + "0" * 32, "sha256:" + "A" * 64, "0" * 64])
def test_a_digest_that_cannot_be_checked_is_refused(text: str) -> None:
    with pytest.raises(EifError, match="config names no digest that can be checked"):
        Digest(text, "config")


@pytest.mark.parametrize(("algorithm", "digits"), [("sha256", 64), ("sha384", 96), ("sha512", 128)])
def test_every_usual_digest_is_known(algorithm: str, digits: int) -> None:
    assert str(Digest(f"{algorithm}:{'a' * digits}", "")) == f"{algorithm}:{'a' * digits}"


def test_an_extent_knows_its_bounds() -> None:
    with extent(b"0123456789") as whole:
        part = whole.part(2, 5)
        assert (part.read(1, 100), part.read(9, 1), part.whole(5)) == (b"3456", b"", b"23456")
        with pytest.raises(EifError, match="ends before it should"):
            part.part(3, 3)
        with pytest.raises(EifError, match="has 5 bytes, more than 4"):
            part.whole(4)
        with pytest.raises(EifError, match="became shorter"):
            Extent(whole.fd, 5, 10, "label").read(0, 10)
