"""Container images in files, without a registry and without a daemon: which configuration and which layers they have.

`docker save` writes a tar archive with a manifest.json, which names files within; an OCI layout is a directory, or a
tar archive of one, with an index.json, which names blobs by their digests. An index may hold one image for several
processors. Every digest that is stated is checked, and so are the layers' own, of the decompressed data.

Sources: the OCI image specification, image-layout.md, image-index.md, manifest.md; Docker's image specification v1.2,
"Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyrune.compose.extent import Extent
from pyrune.compose.image_config import ImageConfig, JsonFile, architecture_of, read_image_config
from pyrune.compose.layer_data import Digest, layer_archive
from pyrune.compose.layers import apply_layer
from pyrune.compose.root import RootTree
from pyrune.compose.store import Store, open_store
from pyrune.eif.files import quoted
from pyrune.eif.format import Architecture
from pyrune.eif.metadata import Json
from pyrune.errors import EifError

_INDEX_TYPES: Final = frozenset(
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"]
)
_MANIFEST_TYPES: Final = frozenset(
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"]
)
# An index may name further indexes; buildx makes two levels.
_MAX_DEPTH: Final = 4
# overlayfs, and with it Docker, has 128 layers at most.
_MAX_LAYERS: Final = 512
_MAX_IMAGES: Final = 1000
# Names of files in docker's archives that are digests.
_DIGEST_NAME: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose files have been found. Its layers have not been looked at."""

    store: Store
    config: ImageConfig
    layers: tuple[Extent, ...]

    def root(self, stack: ExitStack, spool_directory: Path) -> RootTree:
        """The root file system. Its data are read from the archive, and from `spool_directory`, until `stack` is
        closed. Raises EifError."""
        tree = RootTree(self.store.label)
        for layer, diff_id in zip(self.layers, self.config.diff_ids, strict=True):
            apply_layer(tree, layer_archive(stack, layer, diff_id, spool_directory))
        return tree


def open_docker_archive(stack: ExitStack, path: str, arch: Architecture | None) -> Image:
    """The image in what `docker save` wrote. Raises EifError."""
    store = open_store(stack, path, "docker archive")
    file = JsonFile(_require(store, "manifest.json"))
    images = [file.object(image) for image in file.list(file.value)]
    if len(images) != 1:
        raise EifError(f"{store.label} holds {len(images)} images; save one of them alone")
    config_name = file.text(images[0].get("Config"))
    config_file = _require(store, config_name)
    _check_name(config_name, config_file)
    layers = []
    for name in file.texts(images[0].get("Layers")):
        layers.append(_require(store, name))
        _check_name(name, layers[-1])
    return _image(store, read_image_config(config_file), layers, arch)


def open_oci_layout(stack: ExitStack, path: str, arch: Architecture | None) -> Image:
    """The image in an OCI layout; if it has several, that for `arch`, or for this machine. Raises EifError."""
    store = open_store(stack, path, "OCI layout")
    layout = JsonFile(_require(store, "oci-layout"))
    version = layout.text(layout.object(layout.value).get("imageLayoutVersion"))
    if version != "1.0.0":
        raise EifError(f"{store.label} is of version {quoted(version[:40])}; 1.0.0 is known")
    manifest = JsonFile(_chosen(store, JsonFile(_require(store, "index.json")), arch))
    document = manifest.object(manifest.value)
    config = read_image_config(_blob(store, manifest, document.get("config")))
    layers = []
    for descriptor in manifest.list(document.get("layers")):
        media_type = manifest.text(manifest.object(descriptor).get("mediaType"))
        if media_type.endswith("+encrypted"):
            raise EifError(f"{manifest.label} has an encrypted layer, which cannot be read")
        layers.append(_blob(store, manifest, descriptor))
    return _image(store, config, layers, arch)


def _image(store: Store, config: ImageConfig, layers: list[Extent], arch: Architecture | None) -> Image:
    if arch not in (None, config.arch):
        raise EifError(f"{store.label} is for {config.arch}, not for {arch}")
    if len(layers) != len(config.diff_ids) or len(layers) > _MAX_LAYERS:
        raise EifError(f"{store.label} has {len(layers)} layers, and {len(config.diff_ids)} in its configuration")
    return Image(store, config, tuple(layers))


def _require(store: Store, name: str) -> Extent:
    extent = store.find(name)
    if extent is None:
        raise EifError(f"{store.label} lacks {quoted(name[:200])}")
    return extent


def _check_name(name: str, extent: Extent) -> None:
    """Check a file of a docker archive that is named by its digest. The layers of old ones are not: see diff_ids."""
    if match := _DIGEST_NAME.fullmatch(name):
        Digest(f"sha256:{match[1]}", extent.label).check(extent)


def _blob(store: Store, file: JsonFile, descriptor: Json) -> Extent:
    """The blob that a descriptor names, checked."""
    members = file.object(descriptor)
    digest = Digest(file.text(members.get("digest")), file.label)
    extent = _require(store, f"blobs/{digest.algorithm}/{digest.hexadecimal}")
    size = members.get("size")
    if size != extent.size_bytes or isinstance(size, bool):
        raise EifError(f"{extent.label} has {extent.size_bytes} bytes, not those that {file.label} says")
    digest.check(extent)
    return extent


def _chosen(store: Store, index: JsonFile, arch: Architecture | None) -> Extent:
    """The manifest of the one image that is wanted."""
    found = _manifests(store, index)
    if len(found) > 1:
        wanted = arch or _this_machine(store)
        found = [manifest for manifest in found if manifest.arch in (wanted, None)]
        if not found:
            raise EifError(f"{store.label} has no image for {wanted}; --arch names another architecture")
    digests = {manifest.digest for manifest in found}
    if len(digests) != 1:
        raise EifError(f"{store.label} holds {len(digests)} images that could be meant; it must hold one")
    return _blob(store, found[0].index, found[0].descriptor)


@dataclass(frozen=True, slots=True)
class _Manifest:
    """An image of an index; `arch` is None if the index does not say it."""

    index: JsonFile
    descriptor: Json
    digest: str
    arch: Architecture | None


def _manifests(store: Store, index: JsonFile) -> list[_Manifest]:
    """All images for Linux in an index and those below."""
    found: list[_Manifest] = []
    pending = [(index, 1)]
    while pending:
        file, depth = pending.pop()
        for descriptor in file.list(file.object(file.value).get("manifests")):
            members = file.object(descriptor)
            platform = file.object(members.get("platform"))
            name, os_name = file.text(platform.get("architecture")), file.text(platform.get("os"))
            arch = architecture_of(name, os_name)
            media_type = file.text(members.get("mediaType"))
            if media_type in _INDEX_TYPES and depth < _MAX_DEPTH:
                pending.append((JsonFile(_blob(store, file, descriptor)), depth + 1))
            elif media_type in _MANIFEST_TYPES and (arch or not platform):
                found.append(_Manifest(file, descriptor, file.text(members.get("digest")), arch))
            if len(found) + len(pending) > _MAX_IMAGES:
                raise EifError(f"{store.label} holds more than {_MAX_IMAGES} images")
    return found


def _this_machine(store: Store) -> Architecture:
    try:
        return Architecture(os.uname().machine)
    except ValueError as exc:
        raise EifError(f"{store.label} holds several images; --arch chooses one") from exc
