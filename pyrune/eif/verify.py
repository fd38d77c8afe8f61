"""Whether an image is what it says it is, and what was expected: one check after the other, none left out.

A signature says that the owner of a certificate vouches for PCR0. Who that owner is nobody checks, so a signature
means something only together with an expected PCR8; an image without a signature passes where none is expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pyrune.eif.measure import Measurements, measure
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import SignatureReport, check_signature, parse_signature
from pyrune.errors import EifError


class Verdict(StrEnum):
    """How a check went. ABSENT: there was nothing to check, and nothing was demanded."""

    OK = "ok"
    FAILED = "failed"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Check:
    """One check; `detail` is what was found, in a few words."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Verification:
    """All that was checked of an image."""

    measurements: Measurements
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the image."""
        return all(check.verdict is not Verdict.FAILED for check in self.checks)

    def as_json(self) -> dict[str, object]:
        """An object in the manner of nitro-cli's."""
        return {
            "Passed": self.passed,
            "Measurements": self.measurements.as_json(),
            "Checks": [
                {"Check": check.name, "Verdict": str(check.verdict), "Detail": check.detail} for check in self.checks
            ],
        }


def verify(image: EifImage, expected: Mapping[str, str], now: datetime | None = None) -> Verification:
    """Check an image, reading it once. `expected` has PCRs by name ("PCR0"), as 96 lower-case digits.

    Raises EifError if a part of the image is malformed.
    """
    measurements = measure(image)
    found = measurements.as_json()
    return Verification(
        measurements,
        (
            _check("layout", not image.ambiguities, "; ".join(image.ambiguities) or "there is one way to read it"),
            _check_parts(image),
            _check_checksum(image, measurements),
            *_check_signature(image, measurements, now),
            *(_check_pcr(name, found.get(name), value) for name, value in expected.items()),
        ),
    )


def _check(name: str, good: bool, detail: str) -> Check:
    return Check(name, Verdict.OK if good else Verdict.FAILED, detail)


def _check_parts(image: EifImage) -> Check:
    try:
        image.require_bootable()
    except EifError as exc:
        return _check("parts", False, exc.problem)
    return _check("parts", True, f"kernel, command line, ramdisks: {len(image.ramdisks)}")


def _check_checksum(image: EifImage, measurements: Measurements) -> Check:
    told, computed = image.header.crc32, measurements.crc32
    if told == computed:
        return _check("checksum", True, f"0x{computed:08x}")
    return _check("checksum", False, f"it is 0x{computed:08x}, but the header says 0x{told:08x}")


def _check_signature(image: EifImage, measurements: Measurements, now: datetime | None) -> tuple[Check, ...]:
    section = image.signature
    if section is None:
        return (Check("signature", Verdict.ABSENT, "the image is not signed"),)
    try:
        report = check_signature(parse_signature(image.read(section)), measurements.pcr0, now)
    except EifError as exc:
        return (_check("signature", False, exc.problem),)
    return _signature_checks(report)


def _signature_checks(report: SignatureReport) -> tuple[Check, ...]:
    certificate = report.certificate
    good, matches, dated = report.signature_valid, report.pcr0_matches, report.within_dates
    signed = "it is the image's" if matches else "it is not the image's"
    return (
        _check("signature", good, f"it is {'' if good else 'not '}by the key of its certificate"),
        _check("signed PCR0", matches, signed),
        _check("certificate dates", dated, f"{certificate.not_before} to {certificate.not_after}"),
    )


def _check_pcr(name: str, found: str | None, expected: str) -> Check:
    if found is None:
        return _check(name, False, f"there is none, but {expected} was expected")
    return _check(name, found == expected, found if found == expected else f"{found}, but {expected} was expected")
