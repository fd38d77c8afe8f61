"""Fixtures that every test may use.

PYRUNE_TEST_VECTORS names a directory of vectors that are not part of this repository (real enclave images,
attestation documents and container configurations).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.needs import missing


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
