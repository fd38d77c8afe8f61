"""Skip, or fail: what a test needs and this machine may not have.

PYRUNE_REQUIRE is a comma-separated list of things whose absence fails a test instead of skipping it; "all" stands for
those of `OBTAINABLE`, which any machine can be given. What depends on the machine or on where the checkout lies, such
as numa, hugepages or an open checkout, must be named.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

OBTAINABLE = frozenset({"vectors", "qemu", "kernel", "guest", "runc", "docker", "network", "root"})
_NAMED = frozenset(filter(None, os.environ.get("PYRUNE_REQUIRE", "").split(",")))
REQUIRED = _NAMED | OBTAINABLE if "all" in _NAMED else _NAMED


def missing(what: str, reason: str) -> NoReturn:
    """Skip the calling test because `what` is not there, or fail it where the environment demands `what`."""
    if what in REQUIRED:
        pytest.fail(f"{what} is required here, but {reason}")
    pytest.skip(f"{what}: {reason}")
