"""The metadata section: compact JSON about how an image came to be. Nothing measures it and nothing trusts it.

The order of the keys is fixed, so that what nitro-cli wrote is written again byte for byte; DockerInfo (what
`docker inspect` says of the image) and CustomMetadata (whatever the user gave) are any JSON, or null.

Source: github.com/aws/aws-nitro-enclaves-image-format, src/defs/mod.rs (EifIdentityInfo) and src/utils/identity.rs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NoReturn, TypeAlias

from pyrune import __version__
from pyrune.eif.files import quoted, read_regular
from pyrune.errors import EifError, printable

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# Of a build that is told no time: a constant, so that the same inputs give the same file.
DEFAULT_BUILD_TIME: Final = datetime(1980, 1, 1, tzinfo=UTC)
UNKNOWN: Final = "Unknown"

_MAX_CUSTOM_BYTES: Final = 4096  # nitro-cli's limit


@dataclass(frozen=True, slots=True)
class BuildMetadata:
    """What built the image, when, around which kernel. `build_time` is RFC 3339 text."""

    build_time: str
    build_tool: str
    build_tool_version: str
    operating_system: str
    kernel_version: str

    def as_json(self) -> dict[str, Json]:
        """The object under BuildMetadata."""
        return {
            "BuildTime": self.build_time,
            "BuildTool": self.build_tool,
            "BuildToolVersion": self.build_tool_version,
            "OperatingSystem": self.operating_system,
            "KernelVersion": self.kernel_version,
        }


@dataclass(frozen=True, slots=True)
class Metadata:
    """The contents of a metadata section."""

    image_name: str
    image_version: str
    build: BuildMetadata
    docker_info: Json = None
    custom: Json = None

    def encode(self) -> bytes:
        """The bytes of the section."""
        value = {
            "ImageName": self.image_name,
            "ImageVersion": self.image_version,
            "BuildMetadata": self.build.as_json(),
            "DockerInfo": self.docker_info,
            "CustomMetadata": self.custom,
        }
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def parse_metadata(data: bytes) -> Metadata:
    """The contents of the metadata section `data`. Raises EifError."""
    try:
        value = parse_json(data)
        build = _object(_object(value)["BuildMetadata"])
        metadata = Metadata(
            image_name=_text(_object(value)["ImageName"]),
            image_version=_text(_object(value)["ImageVersion"]),
            build=BuildMetadata(
                build_time=_text(build["BuildTime"]),
                build_tool=_text(build["BuildTool"]),
                build_tool_version=_text(build["BuildToolVersion"]),
                operating_system=_text(build["OperatingSystem"]),
                kernel_version=_text(build["KernelVersion"]),
            ),
            docker_info=_object(value).get("DockerInfo"),
            custom=_object(value).get("CustomMetadata"),
        )
        metadata.encode()  # refuses halves of surrogate pairs, which JSON can name but no text can hold
    except KeyError as exc:
        raise EifError(f"the metadata section lacks {exc.args[0]}") from exc
    except (ValueError, RecursionError) as exc:
        raise EifError(f"the metadata section is not what nitro-cli writes: {printable(str(exc))}") from exc
    return metadata


def parse_json(data: bytes) -> Json:
    """Any JSON. Raises ValueError, or RecursionError if it is nested absurdly deeply."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    value: Json = json.loads(data.decode(), parse_constant=refuse)
    return value


def read_custom_metadata(path: str) -> Json:
    """The JSON in the file `path`, for CustomMetadata: keys sorted, as nitro-cli stores them. Raises EifError."""
    label = f"metadata file {quoted(path)}"
    data = read_regular(path, label, _MAX_CUSTOM_BYTES)
    try:
        value: Json = json.loads(json.dumps(parse_json(data), sort_keys=True))
    except (ValueError, RecursionError) as exc:
        raise EifError(f"{label} is no JSON: {printable(str(exc))}") from exc
    return value


def build_metadata(kernel_version: str = UNKNOWN, build_time: datetime | None = None) -> BuildMetadata:
    """What pyrune says of a build of its own.

    The time is `build_time`, or $SOURCE_DATE_EPOCH, or DEFAULT_BUILD_TIME. Raises EifError if the variable holds
    no time.
    """
    moment = build_time or _source_date() or DEFAULT_BUILD_TIME
    return BuildMetadata(moment.isoformat(), "pyrune", __version__, "Linux", kernel_version)


def _source_date() -> datetime | None:
    """See reproducible-builds.org/specs/source-date-epoch."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise EifError("SOURCE_DATE_EPOCH holds no number of seconds since 1970") from exc


def _object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ValueError("there is no object where one should be")
    return value


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError("there is no text where one should be")
    return value
