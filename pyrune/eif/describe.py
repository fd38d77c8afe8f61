"""What `nitro-cli describe-eif` prints of an image, key by key, and one list more where there is cause for it.

Source: github.com/aws/aws-nitro-enclaves-cli, src/common/json_output.rs (EifDescribeInfo).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pyrune.eif.measure import Measurements, measure
from pyrune.eif.metadata import Json, Metadata, parse_metadata
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import SignatureReport, check_signature, parse_signature
from pyrune.errors import EifError


@dataclass(frozen=True, slots=True)
class Description:
    """Everything that is known of an image after reading it once."""

    version: int
    measurements: Measurements
    crc_valid: bool
    signature: SignatureReport | None
    metadata: Metadata | None
    ambiguities: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """The object that nitro-cli prints, in its order, and Ambiguities at the end if there are any."""
        result: dict[str, object] = {
            "EifVersion": self.version,
            "Measurements": self.measurements.as_json(),
            "IsSigned": self.signature is not None,
        }
        if self.signature is not None:
            result["SigningCertificate"] = self.signature.certificate.as_json()
        result["CheckCRC"] = self.crc_valid
        if self.signature is not None:
            # As in nitro-cli, the certificate's dates do not count here.
            result["SignatureCheck"] = self.signature.signature_valid and self.signature.pcr0_matches
        if self.metadata is not None:
            result["ImageName"] = self.metadata.image_name
            result["ImageVersion"] = self.metadata.image_version
            result["Metadata"] = _flattened(self.metadata)
        if self.ambiguities:
            result["Ambiguities"] = list(self.ambiguities)
        return result


def describe(image: EifImage) -> Description:
    """Measure and check an image. Raises EifError if a part of it is malformed."""
    measurements = measure(image)
    return Description(
        version=image.header.version,
        measurements=measurements,
        crc_valid=measurements.crc32 == image.header.crc32,
        signature=_signature_report(image, measurements),
        metadata=_metadata(image),
        ambiguities=image.ambiguities,
    )


def pretty_json(value: object) -> str:
    """JSON as nitro-cli prints it, with every unprintable character of an image's texts escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _signature_report(image: EifImage, measurements: Measurements) -> SignatureReport | None:
    section = image.signature
    if section is None:
        return None
    try:
        return check_signature(parse_signature(image.read(section)), measurements.pcr0)
    except EifError as exc:
        raise image.error(exc.problem, section.offset) from exc


def _metadata(image: EifImage) -> Metadata | None:
    section = image.metadata
    if section is None:
        return None
    data = image.read(section)
    try:
        return parse_metadata(data)
    except EifError as exc:
        raise image.error(exc.problem, section.offset) from exc


def _flattened(metadata: Metadata) -> dict[str, Json]:
    """Metadata as nitro-cli shows them: what the user added stands beside the rest, and never in its place."""
    shown = metadata.build.as_json() | {"DockerInfo": metadata.docker_info}
    if isinstance(metadata.custom, dict):
        return shown | {key: value for key, value in metadata.custom.items() if key not in shown}
    return shown if metadata.custom is None else shown | {"CustomMetadata": metadata.custom}
