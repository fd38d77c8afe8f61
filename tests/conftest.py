"""What every test may lean on: where the outside test vectors lie, and which skips are failures.

PYRUNE_TEST_VECTORS names a directory of vectors that are not part of this repository (real enclave images,
attestation documents and container configurations). PYRUNE_REQUIRE is a comma-separated list of things whose
absence fails a test instead of skipping it: vectors, qemu, kernel, guest, runc, docker, root.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import pytest

REQUIRED = frozenset(filter(None, os.environ.get("PYRUNE_REQUIRE", "").split(",")))


def missing(what: str, reason: str) -> NoReturn:
    """Skip the calling test because `what` is not there, or fail it where the environment demands `what`."""
    if what in REQUIRED or "all" in REQUIRED:
        pytest.fail(f"{what} is required here, but {reason}")
    pytest.skip(f"{what}: {reason}")


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of outside vectors: eif/, attestation/ and oci-configs/ below it."""
    place = os.environ.get("PYRUNE_TEST_VECTORS")
    if not place:
        missing("vectors", "PYRUNE_TEST_VECTORS names no directory")
    path = Path(place)
    if not (path / "eif").is_dir():
        missing("vectors", f"{path} holds no eif directory")
    return path
