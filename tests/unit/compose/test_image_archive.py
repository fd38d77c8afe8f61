from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.compose.image_archive import Image, open_docker_archive, open_oci_layout
from pyrune.eif.format import Architecture
from pyrune.errors import EifError
from tests.support.image_archives import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    File,
    OciLayout,
    docker_archive,
    gzipped,
    image_config,
    sha256,
    symlink,
    tar,
)
from tests.unit.compose.trees import content, texts

LAYERS = [tar(File("a", b"1"), File("b", b"1")), tar(File("a", b"2"))]
RESULT = {"a": "2", "b": "1"}
Open = Callable[[ExitStack, str, Architecture | None], Image]


def files_of(open_image: Open, path: Path, arch: Architecture | None = None) -> dict[str, str]:
    with ExitStack() as stack:
        image = open_image(stack, os.fspath(path), arch)
        found = texts(content(image.root(stack, path.parent)))
        image.store.check_unchanged()
        return found


@pytest.mark.parametrize("old", [False, True])
def test_what_docker_saved_is_read(old: bool, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "image.tar", LAYERS, old=old, Cmd=["/a"], WorkingDir="/w", User="me")
    assert files_of(open_docker_archive, path) == RESULT
    with ExitStack() as stack:
        config = open_docker_archive(stack, os.fspath(path), None).config
    assert (config.arch, config.cmd, config.cwd, config.user) == (Architecture.X86_64, ("/a",), "/w", "me")


def test_layers_that_docker_saved_as_links_are_followed_within_the_archive(tmp_path: Path) -> None:
    config = image_config([LAYERS[0], LAYERS[0]])
    manifest = [{"Config": f"{sha256(config)}.json", "Layers": ["one/layer.tar", "two/layer.tar"]}]
    files = [
        File(f"{sha256(config)}.json", config),
        File("one/layer.tar", LAYERS[0]),
        symlink("two/layer.tar", "../one/layer.tar"),
        File("manifest.json", json.dumps(manifest).encode()),
    ]
    (tmp_path / "image.tar").write_bytes(tar(*files))
    assert files_of(open_docker_archive, tmp_path / "image.tar") == {"a": "1", "b": "1"}


@pytest.mark.parametrize("squeeze", [bytes, gzipped])
@pytest.mark.parametrize("form", ["write", "write_tar"])
def test_an_oci_layout_is_read(form: str, squeeze: Callable[[bytes], bytes], tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image(LAYERS, squeeze))
    path = getattr(layout, form)(tmp_path / "layout")
    assert files_of(open_oci_layout, path) == RESULT


def several_platforms(nested: bool) -> OciLayout:
    layout = OciLayout()
    platforms = [("amd64", "linux"), ("arm64", "linux"), ("amd64", "windows"), ("unknown", "unknown")]
    for name, system in platforms:
        known = name if name != "unknown" else "amd64"
        descriptor = layout.image([tar(File("arch", f"{name} {system}".encode()))], architecture=known)
        layout.manifests.append(descriptor | {"platform": {"architecture": name, "os": system}})
    if nested:
        index = json.dumps({"manifests": layout.manifests}).encode()
        layout.manifests = [layout.blob(index, INDEX_TYPE)]
    return layout


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("arch", "found"), [(Architecture.X86_64, "amd64 linux"), (Architecture.AARCH64, "arm64 linux")]
)
def test_the_platform_is_chosen(arch: Architecture, found: str, nested: bool, tmp_path: Path) -> None:
    path = several_platforms(nested).write(tmp_path / "layout")
    assert files_of(open_oci_layout, path, arch) == {"arch": found}


def test_this_machines_platform_is_the_default(tmp_path: Path) -> None:
    expected = {"x86_64": "amd64 linux", "aarch64": "arm64 linux"}[os.uname().machine]
    assert files_of(open_oci_layout, several_platforms(True).write(tmp_path / "layout")) == {"arch": expected}


def test_two_images_for_one_platform_are_refused(tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests += [layout.image([tar(File(name))]) for name in "ab"]
    with pytest.raises(EifError, match="holds 2 images that could be meant"):
        files_of(open_oci_layout, layout.write(tmp_path / "layout"))


def test_a_platform_that_is_not_there_is_refused(tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image(LAYERS))
    with pytest.raises(EifError, match="is for x86_64, not for aarch64"):
        files_of(open_oci_layout, layout.write(tmp_path / "layout"), Architecture.AARCH64)
    with pytest.raises(EifError, match=r"is for x86_64, not for aarch64"):
        files_of(open_docker_archive, docker_archive(tmp_path / "d.tar", LAYERS), Architecture.AARCH64)


@pytest.mark.parametrize("architecture", ["s390x", "", "AMD64"])
def test_an_image_for_no_enclave_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(EifError, match=r"enclaves are linux/amd64 or linux/arm64"):
        files_of(open_docker_archive, docker_archive(tmp_path / "d.tar", LAYERS, architecture=architecture))


def test_every_blob_of_a_layout_is_checked(tmp_path: Path) -> None:
    for number in range(4):
        layout = OciLayout()
        layout.manifests.append(layout.image(LAYERS, gzipped))
        name = [name for name in layout.files if name.startswith("blobs/")][number]
        layout.files[name] = b"{" + layout.files[name][1:-1] + b" "
        with pytest.raises(EifError, match=f"{name} is damaged: its digest is not"):
            files_of(open_oci_layout, layout.write(tmp_path / str(number)))


@pytest.mark.parametrize("old", [False, True])
def test_every_layer_of_a_docker_archive_is_checked(old: bool, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "d.tar", LAYERS, old=old)
    data = path.read_bytes()
    place = data.index(b"2", data.index(LAYERS[1][:400]) + 512)
    path.write_bytes(data[:place] + b"3" + data[place + 1 :])
    with pytest.raises(EifError, match="is damaged: its digest is not"):
        files_of(open_docker_archive, path)


def test_a_size_that_is_wrong_is_refused(tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image(LAYERS) | {"size": 1})
    with pytest.raises(EifError, match="bytes, not those that"):
        files_of(open_oci_layout, layout.write(tmp_path / "layout"))


Change = Callable[[dict[str, bytes]], object]


def put(name: str, value: Any) -> Change:
    return lambda files: files.__setitem__(name, value if isinstance(value, bytes) else json.dumps(value).encode())


MANIFEST = {"mediaType": MANIFEST_TYPE, "size": 1}
WRONG: list[tuple[Change, str]] = [
    (lambda files: files.pop("oci-layout"), "lacks oci-layout"),
    (lambda files: files.pop("index.json"), r"lacks index\.json"),
    (put("oci-layout", {"imageLayoutVersion": "2"}), "is of version 2"),
    (put("index.json", b"{"), r"index\.json is no JSON"),
    (put("index.json", b"[" * 100_000), r"index\.json is no JSON"),
    (put("index.json", b'{"manifests": ["\\ud800"]}'), r"index\.json is no JSON of one meaning"),
    (put("index.json", b'{"manifests": [], "manifests": []}'), "given twice in one object"),
    (put("index.json", []), "something has the wrong type"),
    (put("index.json", {"manifests": [1]}), "something has the wrong type"),
    (put("index.json", {"manifests": []}), "holds 0 images"),
    (put("index.json", {"manifests": [MANIFEST | {"digest": "sha256:../../../etc/passwd"}]}), "names no digest"),
    (put("index.json", {"manifests": [MANIFEST | {"digest": "sha256:" + "0" * 64}]}), "lacks blobs/sha256/000"),
    (put("index.json", b" " * (5 << 20)), "bytes, more than"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
@pytest.mark.parametrize("form", ["directory", "tar"])
def test_a_layout_that_is_none_is_one_clear_error(change: Change, words: str, form: str, tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image(LAYERS))
    files = layout.finish()
    change(files)
    path = tmp_path / "layout"
    if form == "tar":
        path.write_bytes(tar(*(File(name, data) for name, data in files.items())))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    with pytest.raises(EifError, match=words):
        files_of(open_oci_layout, path)


def test_an_index_that_names_itself_through_others_ends(tmp_path: Path) -> None:
    layout = OciLayout()
    descriptor = layout.image(LAYERS)
    for _ in range(6):
        descriptor = layout.blob(json.dumps({"manifests": [descriptor]}).encode(), INDEX_TYPE)
    layout.manifests.append(descriptor)
    with pytest.raises(EifError, match="holds 0 images"):
        files_of(open_oci_layout, layout.write(tmp_path / "layout"))


def test_links_and_pipes_in_a_layouts_directory_are_not_followed(tmp_path: Path) -> None:
    layout = OciLayout()
    layout.manifests.append(layout.image(LAYERS))
    path = layout.write(tmp_path / "layout")
    (path / "index.json").rename(tmp_path / "outside.json")
    (path / "index.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(EifError, match="no regular file but a symbolic link"):
        files_of(open_oci_layout, path)
    (path / "index.json").unlink()
    os.mkfifo(path / "index.json")
    with pytest.raises(EifError, match="no regular file but a FIFO"):
        files_of(open_oci_layout, path)
    (path / "index.json").unlink()
    (tmp_path / "outside.json").rename(path / "index.json")
    (path / "blobs").rename(tmp_path / "blobs")
    (path / "blobs").symlink_to("../blobs")
    with pytest.raises(EifError, match=r"a part of its path is no folder|lead in a circle, or nowhere"):
        files_of(open_oci_layout, path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "manifest.json/x", ""])
def test_names_in_a_manifest_stay_within_the_archive(name: str, tmp_path: Path) -> None:
    manifest = [{"Config": name, "Layers": []}]
    (tmp_path / "d.tar").write_bytes(tar(File("manifest.json", json.dumps(manifest).encode())))
    with pytest.raises(EifError, match="lacks "):
        files_of(open_docker_archive, tmp_path / "d.tar")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_archive_is_one_error_or_the_same_image(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = docker_archive(Path(directory) / "d.tar", LAYERS)
        whole = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
            whole[place] = data.draw(st.integers(0, 255))
        path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), *range(0, len(whole), 999)]))])
        try:
            assert files_of(open_docker_archive, path) == RESULT
        except EifError:
            pass


def test_several_images_in_one_docker_archive_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(tar(File("manifest.json", b"[{}, {}]")))
    with pytest.raises(EifError, match="holds 2 images; save one of them alone"):
        files_of(open_docker_archive, tmp_path / "d.tar")


def test_two_files_of_one_name_in_an_archive_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.tar").write_bytes(tar(File("manifest.json", b"[]"), File("manifest.json", b"[{}]")))
    with pytest.raises(EifError, match=r"has two files of one name: manifest\.json"):
        files_of(open_docker_archive, tmp_path / "d.tar")


def test_layers_and_configuration_must_agree(tmp_path: Path) -> None:
    config = image_config(LAYERS)
    manifest = [{"Config": "c.json", "Layers": ["l"]}]
    files = [File("c.json", config), File("l", LAYERS[0]), File("manifest.json", json.dumps(manifest).encode())]
    (tmp_path / "d.tar").write_bytes(tar(*files))
    with pytest.raises(EifError, match="has 1 layers, and 2 in its configuration"):
        files_of(open_docker_archive, tmp_path / "d.tar")


def test_an_archive_that_is_written_to_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "d.tar", LAYERS)
    with ExitStack() as stack:
        image = open_docker_archive(stack, os.fspath(path), None)
        with path.open("r+b") as file:
            file.seek(600)
            file.write(b"x")
        with pytest.raises(EifError, match="changed while it was read"):
            image.store.check_unchanged()


def test_an_archive_that_is_compressed_as_a_whole_says_so(tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "d.tar", LAYERS)
    path.write_bytes(gzipped(path.read_bytes()))
    with pytest.raises(EifError, match="is compressed as a whole; decompress it first"):
        files_of(open_docker_archive, path)


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_what_is_no_archive_is_one_clear_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for open_image in (open_docker_archive, open_oci_layout):
        with pytest.raises(EifError, match=r"does not open: nothing is there|lacks"):
            files_of(open_image, tmp_path / name)
