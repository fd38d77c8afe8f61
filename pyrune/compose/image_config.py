"""What an image says of itself: which processor, which layers, and how its process is started.

Docker's and OCI's configurations have the same members. What they do not say is absent here, too.

Sources: the OCI image specification, config.md; Docker's image specification v1.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from pyrune.compose.extent import Extent
from pyrune.compose.layer_data import Digest
from pyrune.document import Json, parse
from pyrune.eif.format import Architecture
from pyrune.errors import BundleError, EifError, printable

MAX_JSON_BYTES: Final = 4 << 20

_Kind = TypeVar("_Kind")

# Go's names for processors, which images use.
_ARCHITECTURES: Final = {"amd64": Architecture.X86_64, "arm64": Architecture.AARCH64}


class JsonFile:
    """A JSON document of an image. Members of the wrong kind are errors that name the file."""

    def __init__(self, extent: Extent) -> None:
        """Raises EifError if it is no JSON."""
        self.label = extent.label
        try:
            self.value: Json = parse(extent.whole(MAX_JSON_BYTES), self.label)
        except BundleError as exc:
            raise EifError(f"{self.label} is no JSON of one meaning: {printable(exc.problem)}") from exc

    def object(self, value: Json) -> dict[str, Json]:
        """`value` as an object; an empty one for null."""
        return self._of(dict, value) if value is not None else {}

    def list(self, value: Json) -> list[Json]:
        """`value` as an array; an empty one for null."""
        return self._of(list, value) if value is not None else []

    def text(self, value: Json) -> str:
        """`value` as a string; "" for null."""
        return self._of(str, value) if value is not None else ""

    def texts(self, value: Json) -> tuple[str, ...]:
        """`value` as an array of strings, each of which must be there."""
        return tuple(self._of(str, item) for item in self.list(value))

    def _of(self, kind: type[_Kind], value: Json) -> _Kind:
        if not isinstance(value, kind):
            raise EifError(f"{self.label} does not have the form of an image's: something has the wrong type")
        return value


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The configuration of an image. `user` is a name or number, or two with a colon; `env` is kept out of repr."""

    arch: Architecture
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = field(default=(), repr=False)
    cwd: str = ""
    user: str = ""


def architecture_of(name: str, os_name: str) -> Architecture | None:
    """The architecture that a platform stands for; None if no enclave has it."""
    return _ARCHITECTURES.get(name) if os_name == "linux" else None


def read_image_config(extent: Extent) -> ImageConfig:
    """The configuration in this JSON. Raises EifError."""
    file = JsonFile(extent)
    document = file.object(file.value)
    platform = file.text(document.get("architecture")), file.text(document.get("os"))
    arch = architecture_of(*platform)
    if arch is None:
        shown = printable("/".join(reversed(platform))[:60])
        raise EifError(f"{file.label} is of an image for {shown}; enclaves are linux/amd64 or linux/arm64")
    rootfs = file.object(document.get("rootfs"))
    config = file.object(document.get("config"))
    return ImageConfig(
        arch=arch,
        diff_ids=tuple(Digest(text, file.label) for text in file.texts(rootfs.get("diff_ids"))),
        entrypoint=file.texts(config.get("Entrypoint")),
        cmd=file.texts(config.get("Cmd")),
        env=file.texts(config.get("Env")),
        cwd=file.text(config.get("WorkingDir")),
        user=file.text(config.get("User")),
    )
