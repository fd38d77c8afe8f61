from __future__ import annotations

import json
import os
import shutil
import stat
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pyrune.compose.bootstrap import Places
from pyrune.compose.build import Built, ContentKind, Order, build_from_content
from pyrune.compose.directory import Owner, parse_owner, root_of_directory
from pyrune.eif.metadata import parse_metadata
from pyrune.eif.ramdisk import Ramdisk
from pyrune.eif.reader import EifImage
from pyrune.errors import BundleError, EifError, PyruneError, UsageError
from tests.support.image_archives import (
    DEFAULT_PATH,
    File,
    OciLayout,
    docker_archive,
    folder,
    gzipped,
    hard_link,
    symlink,
    tar,
)
from tests.unit.compose.trees import populate, written
from tests.unit.eif.kernels import bzimage

PLAIN = {"bin/app": "#!/bin/sh", "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "data": "1"}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    populate(tmp_path / "inits", {"init-x86_64": "init", "init-aarch64": "init"})
    populate(tmp_path / "cache" / "x86_64", {"modules.load": "", "version": "package p\nversion 1\n"})
    (tmp_path / "cache" / "x86_64" / "vmlinuz").write_bytes(bzimage())
    return Places(tmp_path / "no-blobs", tmp_path / "cache", tmp_path / "inits")


def order(kind: ContentKind, path: Path, **more: object) -> Order:
    output = path.parent / "image.eif"
    return replace(Order(kind, os.fspath(path), os.fspath(output)), **more)  # type: ignore[arg-type]


def built(places: Places, kind: ContentKind, path: Path, **more: object) -> tuple[Built, bytes]:
    done = build_from_content(order(kind, path, **more), places)
    output = path.parent / "image.eif"
    with EifImage.open(output) as image:
        image.require_bootable()
    return done, output.read_bytes()


def rootfs(places: Places, path: Path, **more: object) -> tuple[Built, bytes]:
    return built(places, ContentKind.ROOTFS, path, arguments=("/bin/app", "1"), owner=Owner(0, 0), **more)


def test_the_same_content_gives_the_same_bytes_elsewhere_and_at_another_time(places: Places, tmp_path: Path) -> None:
    _, first = rootfs(places, populate(tmp_path / "one" / "rootfs", PLAIN))
    before = os.umask(0o077)
    try:
        other = tmp_path / "another place" / "other"
        for name in reversed(PLAIN):
            populate(other, {name: PLAIN[name]})
        for path in other.rglob("*"):
            os.utime(path, (1, 1))
        _, second = rootfs(places, other)
    finally:
        os.umask(before)
    assert first == second


def test_what_is_in_a_file_changes_pcr2_only(places: Places, tmp_path: Path) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    first = rootfs(places, root)[0].measurements
    (root / "data").write_text("2")
    second = rootfs(places, root)[0].measurements
    assert first.pcr1 == second.pcr1
    assert first.pcr2 != second.pcr2


LAYER = [
    folder("bin"),
    File("bin/app", b"#!/bin/sh", mode=0o4755),
    hard_link("bin/other", "bin/app"),
    symlink("bin/link", "/etc/../bin/app"),
    folder("etc"),
    File("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    folder("home", mode=0o1777, uid=1000, gid=100),
    File("home/weird \n\udcff name", b"mine", mode=0o600, uid=1000, gid=1000),
    File("gone", b"x"),
]
UPPER = [File(".wh.gone"), File("new", b"n")]


def unpack(layers: list[list[File]], root: Path) -> Path:
    """What a container engine makes of the layers; devices are for root."""
    root.mkdir(parents=True)
    root.chmod(0o755)
    for layer in layers:
        for file in layer:
            path = root / file.name
            if path.name.startswith(".wh."):
                path.with_name(path.name.removeprefix(".wh.")).unlink()
            elif file.type == tarfile.DIRTYPE:
                path.mkdir()
            elif file.type == tarfile.SYMTYPE:
                path.symlink_to(file.link)
            elif file.type == tarfile.LNKTYPE:
                path.hardlink_to(root / file.link)
            elif file.type == tarfile.CHRTYPE:
                os.mknod(path, stat.S_IFCHR, os.makedev(*file.device))
            else:
                path.write_bytes(file.data)
            if path.exists() and file.type not in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                os.chown(path, file.uid, file.gid)
                path.chmod(file.mode)
    return root


@pytest.mark.skipif(os.geteuid() != 0, reason="root: only root unpacks owners and devices")
def test_a_directory_and_every_archive_of_the_same_content_measure_alike(places: Places, tmp_path: Path) -> None:
    lower = [*LAYER, File("null", type=tarfile.CHRTYPE, mode=0o666, device=(1, 3))]
    layers = [tar(*lower), tar(*UPPER)]
    layout = OciLayout()
    layout.manifests.append(layout.image(layers, gzipped, Cmd=["/bin/app"]))
    for name in "abcd":
        (tmp_path / name).mkdir()
    arguments = ("/bin/app",)
    root = unpack([lower, UPPER], tmp_path / "a" / "rootfs")
    results = [
        built(places, ContentKind.ROOTFS, root, arguments=arguments),
        built(
            places, ContentKind.DOCKER_ARCHIVE, docker_archive(tmp_path / "b" / "i", layers, Entrypoint=["/bin/app"])
        ),
        built(
            places, ContentKind.DOCKER_ARCHIVE, docker_archive(tmp_path / "c" / "i", layers, old=True, Cmd=["/bin/app"])
        ),
        built(places, ContentKind.OCI_LAYOUT, layout.write(tmp_path / "d" / "i")),
    ]
    assert len({data for _, data in results}) == 1


def bundle_of(path: Path, root: Path, **process: object) -> Path:
    path.mkdir(exist_ok=True)
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/app", "1"], "cwd": "/", "user": {"uid": 0, "gid": 0}, **process},
        "root": {"path": os.fspath(root)},
        "hostname": "0123456789ab",
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_bundle_measures_as_its_root_file_system(places: Places, tmp_path: Path) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    bundle = bundle_of(tmp_path / "bundle", root, env=[DEFAULT_PATH, "HOSTNAME=0123456789ab"])
    done, image = built(places, ContentKind.BUNDLE, bundle, owner=Owner(0, 0))
    assert done.not_enforced == ("hostname",)
    assert image == rootfs(places, root)[1]


def test_what_of_a_bundle_is_not_carried_out_is_told(places: Places, tmp_path: Path) -> None:
    process = {"noNewPrivileges": True, "terminal": True, "user": {"uid": 0, "gid": 0, "additionalGids": [0, 5]}}
    bundle = bundle_of(tmp_path / "bundle", populate(tmp_path / "rootfs", PLAIN), **process)
    done, _ = built(places, ContentKind.BUNDLE, bundle, owner=Owner(0, 0))
    assert done.not_enforced == (
        *("process.terminal", "process.user.additionalGids", "process.noNewPrivileges", "hostname"),
    )
    assert done.notes()[-1].startswith("not carried out inside the enclave yet: process.terminal, ")


@pytest.mark.parametrize(
    "mount",
    [
        {"destination": "/data", "type": "tmpfs"},
        {"destination": "/tmp", "type": "bind", "source": "/srv"},
        {"destination": "/tmp", "type": "none", "source": "/srv", "options": ["rbind"]},
        {"destination": "/"},
    ],
)
def test_a_mount_of_the_parent_is_refused_by_name(mount: dict[str, object], places: Places, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", populate(tmp_path / "rootfs", PLAIN))
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"] = [{"destination": "/proc"}, {"destination": "/etc/hosts", "type": "bind"}, mount]
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"mounts\[2\]\.destination: an enclave has no mounts of its parent"):
        built(places, ContentKind.BUNDLE, bundle, owner=Owner(0, 0))


def test_the_choice_of_the_kernel_is_told_and_recorded(places: Places, tmp_path: Path) -> None:
    done, _ = rootfs(places, populate(tmp_path / "rootfs", PLAIN), custom_metadata={"Owner": "me"})
    with EifImage.open(tmp_path / "image.eif") as image:
        assert image.metadata is not None
        metadata = parse_metadata(image.read(image.metadata))
    assert metadata.custom == {"Owner": "me", "BootKernel": {"Origin": "p 1", "SHA256": done.kernel.sha256}}
    assert done.kernel.sha256 in done.notes()[0]
    assert done.notes()[1].startswith("memory: 1 MiB for the image (1 MiB) and what it unpacks")
    assert done.memory_bytes > done.image_bytes == (tmp_path / "image.eif").stat().st_size


def test_all_files_get_the_owner_that_is_named(places: Places, tmp_path: Path) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    pcrs = {
        built(places, ContentKind.ROOTFS, root, arguments=("/x",), owner=owner)[0].measurements.pcr2
        for owner in (Owner(0, 0), Owner(0, 0), Owner(1000, 0), Owner(0, 1000))
    }
    assert len(pcrs) == 3


def test_without_root_an_owner_is_needed(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root knows whose its files are to be; give --owner 0:0"):
        built(places, ContentKind.ROOTFS, root, arguments=("/x",))


@pytest.mark.parametrize("text", ["", "0", "root:root", "0:", "-1:0", "4294967295:0", "0:0:0"])
def test_an_owner_is_two_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--owner takes the numbers"):
        parse_owner(text)


def leave(root: Path) -> None:
    (root / "out").symlink_to("../../../..")
    (root / "absolute").symlink_to("/etc/shadow")


def test_links_of_a_directory_stay_links(places: Places, tmp_path: Path) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    leave(root)
    secret = tmp_path / "secret"
    secret.write_text("do not read this" * 100)
    (root / "secret").symlink_to(secret)
    _, image = rootfs(places, root)
    assert b"do not read this" not in image


Meddling = Callable[[Path], object]
REFUSED: list[tuple[Meddling, str]] = [
    (lambda root: os.mknod(root / "socket", stat.S_IFSOCK | 0o600), "socket cannot be packed: it is a socket"),
    (lambda root: shutil.rmtree(root), "cannot be packed: nothing is there"),
    (lambda root: os.truncate(root / "data", 1 << 32), "data cannot be packed: it has 4 GiB"),
]


@pytest.mark.parametrize(("meddle", "words"), REFUSED)
def test_what_cannot_be_packed_is_refused_and_no_image_appears(
    meddle: Meddling, words: str, places: Places, tmp_path: Path
) -> None:
    root = populate(tmp_path / "rootfs", PLAIN)
    meddle(root)
    with pytest.raises(EifError, match=words):
        rootfs(places, root)
    assert not [path.name for path in tmp_path.iterdir() if "eif" in path.name or path.name.startswith(".pyrune")]


@pytest.mark.skipif(os.geteuid() != 0, reason="root: another user is needed")
def test_a_file_that_cannot_be_read_is_an_error() -> None:
    # The tests' own directory is closed to other users.
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        root = populate(Path(directory) / "rootfs", PLAIN)
        (root / "data").chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(EifError, match="data does not open: this user may not do that"), ExitStack() as stack:
                tree = root_of_directory(stack, os.fspath(root), Owner(0, 0))
                written(Ramdisk(tree.nodes()))
        finally:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (ContentKind.BUNDLE, {"arguments": ("/x",)}, "is in its config.json"),
        (ContentKind.ROOTFS, {}, "does not say what to run"),
        (ContentKind.DOCKER_ARCHIVE, {"owner": Owner(0, 0)}, "--owner is for directories"),
        (ContentKind.OCI_LAYOUT, {"owner": Owner(0, 0)}, "--owner is for directories"),
        (ContentKind.OCI_LAYOUT, {"custom_metadata": ["list"]}, "the metadata must be a JSON object"),
        (ContentKind.OCI_LAYOUT, {"custom_metadata": {"BootKernel": 1}}, "the metadata must be a JSON object"),
    ],
)
def test_orders_that_contradict_themselves_are_refused(
    kind: ContentKind, more: dict[str, object], words: str, places: Places, tmp_path: Path
) -> None:
    with pytest.raises(PyruneError, match=words):
        build_from_content(order(kind, tmp_path / "content", **more), places)


@pytest.mark.parametrize("squeeze", [bytes, gzipped])
def test_memory_does_not_grow_with_the_content(
    squeeze: Callable[[bytes], bytes], places: Places, tmp_path: Path
) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image([tar(File("app", bytes(64 << 20)))], squeeze, Cmd=["/app"]))
    path = layout.write(tmp_path / "layout")
    del layout
    tracemalloc.start()
    try:
        build_from_content(order(ContentKind.OCI_LAYOUT, path), places)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "image.eif").stat().st_size > 64 << 20
