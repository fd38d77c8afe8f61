"""Container images in files, as docker save and OCI tools lay them out, made of tarfile's entries."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Squeeze: TypeAlias = Callable[[bytes], bytes]
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class File:
    """An entry of a layer. `type` is one of tarfile's; `link` a target; `pax` further records."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    mtime: int = 1_700_000_000
    pax: Mapping[str, str] = field(default_factory=dict)


def folder(name: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> File:
    return File(name, type=tarfile.DIRTYPE, mode=mode, uid=uid, gid=gid)


def symlink(name: str, link: str) -> File:
    return File(name, type=tarfile.SYMTYPE, mode=0o777, link=link)


def hard_link(name: str, link: str) -> File:
    return File(name, type=tarfile.LNKTYPE, link=link)


def tar(*files: File, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.mode, info.uid, info.gid = file.type, file.mode, file.uid, file.gid
            info.linkname, info.mtime, info.size = file.link, file.mtime, len(file.data)
            info.devmajor, info.devminor = file.device
            info.pax_headers = dict(file.pax)
            archive.addfile(info, io.BytesIO(file.data))
    return out.getvalue()


def plain(data: bytes) -> bytes:
    return data


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def image_config(layers: Sequence[bytes], architecture: str = "amd64", **config: object) -> bytes:
    """`config` are members such as Cmd=["/bin/sh"]."""
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": [DEFAULT_PATH], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer)}" for layer in layers]},
    }
    return json.dumps(document).encode()


def docker_archive(path: Path, layers: Sequence[bytes], *, old: bool = False, **config: object) -> Path:
    """As `docker save` writes: since version 25, with names that are digests, or as before."""
    document = image_config(layers, **config)  # type: ignore[arg-type]
    names = [f"{number:064x}/layer.tar" if old else f"blobs/sha256/{sha256(d)}" for number, d in enumerate(layers)]
    config_name = f"{sha256(document)}.json" if old else f"blobs/sha256/{sha256(document)}"
    manifest = [{"Config": config_name, "RepoTags": ["test:latest"], "Layers": names}]
    # Two layers with the same data are one blob.
    blobs = dict(zip(names, layers, strict=True)) | {config_name: document}
    files = [File(name, data) for name, data in blobs.items()]
    path.write_bytes(tar(*files, File("manifest.json", json.dumps(manifest).encode())))
    return path


class OciLayout:
    """An OCI layout in the making: its files, and the descriptors in its index."""

    def __init__(self) -> None:
        self.files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        self.files[f"blobs/sha256/{sha256(data)}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    def image(
        self, layers: Sequence[bytes], squeeze: Squeeze = plain, architecture: str = "amd64", **config: object
    ) -> dict[str, Any]:
        """Add an image's blobs, and return the descriptor of its manifest."""
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(
                image_config(layers, architecture, **config), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": [self.blob(squeeze(layer), "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        }
        return self.blob(json.dumps(manifest).encode(), MANIFEST_TYPE)

    def finish(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "manifests": self.manifests}
        return self.files | {"index.json": json.dumps(index).encode()}

    def write(self, path: Path) -> Path:
        """A directory."""
        for name, data in self.finish().items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return path

    def write_tar(self, path: Path) -> Path:
        path.write_bytes(tar(*(File(name, data) for name, data in self.finish().items())))
        return path
