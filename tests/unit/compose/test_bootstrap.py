from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pyrune.compose.bootstrap import DEFAULT_CMDLINE, Places, bootstrap_ramdisk, choose_kernel, kernel_cache
from pyrune.eif.format import Architecture
from pyrune.errors import EifError
from tests.unit.compose.trees import populate, unpacked, written
from tests.unit.eif.kernels import arm64_image, bzimage


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Nothing is there yet, but for pyrune's own init."""
    populate(tmp_path / "inits", {"init-x86_64": "init of x86_64", "init-aarch64": "init of aarch64"})
    return Places(tmp_path / "blobs", tmp_path / "cache", tmp_path / "inits")


def add_cached(places: Places) -> None:
    modules = {f"modules/{name}.ko": name for name in ("a", "b", "unused")}
    version = "package linux-image-6\nversion 6.1-2\narchitecture x86_64\n"
    lists = {"modules.load": "/modules/b.ko\n/modules/a.ko\n", "version": version}
    populate(places.cache / "x86_64", modules | lists)
    (places.cache / "x86_64" / "vmlinuz").write_bytes(bzimage())


def add_blobs(places: Places) -> None:
    populate(places.blobs, {"cmdline": "reboot=k panic=30\n", "nsm.ko": "nsm"})
    (places.blobs / "bzImage").write_bytes(bzimage())


def test_a_kernel_that_is_named_is_taken(places: Places, tmp_path: Path) -> None:
    add_cached(places)
    add_blobs(places)
    path = tmp_path / "kernel"
    path.write_bytes(arm64_image())
    kernel = choose_kernel(places, arch=None, path=str(path), cmdline="quiet")
    assert (kernel.arch, kernel.cmdline, kernel.origin, kernel.modules) == (Architecture.AARCH64, "quiet", "given", ())
    assert kernel.sha256 == hashlib.sha256(arm64_image()).hexdigest()
    with pytest.raises(EifError, match="is for aarch64, and what it is to run is for x86_64"):
        choose_kernel(places, arch=Architecture.X86_64, path=str(path))


def test_awss_kernel_comes_before_the_cached_one(places: Places) -> None:
    add_cached(places)
    assert choose_kernel(places, arch=Architecture.X86_64).origin == "linux-image-6 6.1-2"
    add_blobs(places)
    kernel = choose_kernel(places, arch=Architecture.X86_64)
    assert (kernel.origin, kernel.cmdline) == ("aws-nitro-enclaves-cli", "reboot=k panic=30")
    found = unpacked(written(bootstrap_ramdisk(kernel, places, None)))
    assert list(found) == [b"dev", b"init", b"modules.load", b"nsm.ko"]
    assert found[b"modules.load"][1] == b"/nsm.ko\n"


def test_the_cached_kernel_comes_with_its_modules(places: Places) -> None:
    add_cached(places)
    kernel = choose_kernel(places, arch=Architecture.X86_64)
    assert kernel.cmdline == DEFAULT_CMDLINE
    found = unpacked(written(bootstrap_ramdisk(kernel, places, None)))
    assert list(found) == [b"dev", b"init", b"modules", b"modules/a.ko", b"modules/b.ko", b"modules.load"]
    assert found[b"modules.load"][1] == b"/modules/b.ko\n/modules/a.ko\n"
    assert (found[b"init"][0].mode, found[b"init"][1]) == (0o100755, b"init of x86_64")


def test_init_and_modules_can_be_named(places: Places, tmp_path: Path) -> None:
    populate(tmp_path, {"kernel": "k", "mine.ko": "m", "own-init": "i"})
    kernel = choose_kernel(
        places, arch=Architecture.AARCH64, path=str(tmp_path / "kernel"), modules=[str(tmp_path / "mine.ko")]
    )
    found = unpacked(written(bootstrap_ramdisk(kernel, places, str(tmp_path / "own-init"))))
    assert (found[b"init"][1], found[b"modules/mine.ko"][1], found[b"modules.load"][1]) == (
        *(b"i", b"m"),
        b"/modules/mine.ko\n",
    )
    twice = choose_kernel(
        places, arch=None, path=str(tmp_path / "kernel"), modules=[str(tmp_path / "mine.ko"), str(tmp_path / "mine.ko")]
    )
    with pytest.raises(EifError, match=r"two kernel modules are called mine\.ko"):
        bootstrap_ramdisk(twice, places, str(tmp_path / "own-init"))


def test_without_any_kernel_the_error_says_where_one_comes_from(places: Places) -> None:
    with pytest.raises(EifError, match="run scripts/fetch-kernel --arch aarch64, or give --kernel"):
        choose_kernel(places, arch=Architecture.AARCH64)


def test_an_init_that_is_not_built_is_one_clear_error(places: Places, tmp_path: Path) -> None:
    add_cached(places)
    kernel = choose_kernel(places, arch=Architecture.X86_64)
    with pytest.raises(EifError, match=r"run python -m pyrune\.guest\.build, or give --init"):
        bootstrap_ramdisk(kernel, Places(places.blobs, places.cache, tmp_path / "nothing"), None)


@pytest.mark.parametrize("line", ["/modules/../../x.ko", "x.ko", "/modules/a/b.ko"])
def test_a_list_of_modules_that_leads_elsewhere_is_refused(line: str, places: Places) -> None:
    add_cached(places)
    (places.cache / "x86_64" / "modules.load").write_text(line)
    with pytest.raises(EifError, match="names no file below /modules"):
        choose_kernel(places, arch=Architecture.X86_64)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert kernel_cache() == Path("/var/cache/pyrune/kernels")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert kernel_cache() == Path("/x/pyrune/kernels")
