"""What is decided before the device is asked: sizes, and which images may run."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.backend import BackendName
from pyrune.backends import load_backend
from pyrune.errors import BackendError, EifError
from pyrune.ne.backend import MEMORY_PER_IMAGE, NitroBackend, check_image, memory_for
from tests.unit.eif.images import CMDLINE, KERNEL, SIGNATURE, SMALL, Layout, opened
from tests.unit.eif.signing import signer

MIB = 1 << 20
OURS = int(os.uname().machine == "aarch64")


def test_the_back_end_is_loaded_by_its_name() -> None:
    assert isinstance(load_backend(BackendName.NITRO), NitroBackend)


@pytest.mark.parametrize(
    ("asked_mib", "image_bytes", "mib"),
    [
        (None, 1, 512),
        (None, 128 * MIB, 512),
        (None, 128 * MIB + 1, 514),
        (64, 16 * MIB, 64),
        (65, 1, 66),
        (1024, 256 * MIB, 1024),
        (150 << 10, MIB, 150 << 10),
    ],
)
def test_memory_is_what_was_asked_for_or_what_the_image_needs(
    asked_mib: int | None, image_bytes: int, mib: int
) -> None:
    assert memory_for(asked_mib, image_bytes) == mib * MIB


@pytest.mark.parametrize(
    ("asked_mib", "image_bytes", "message"),
    [
        (1, 1, "no enclave may have less than 64 MiB; say memory=64 or more"),
        (63, 100 * MIB, "no enclave may have less than 64 MiB; say memory=400 or more"),
        (399, 100 * MIB, "its image of 100 MiB needs 4 times its size: .*; say memory=400 or more"),
        (64, 16 * MIB + 1, "its image of 17 MiB needs 4 times its size: .*; say memory=66 or more"),
    ],
)
def test_too_little_memory_is_refused_with_what_is_enough(asked_mib: int, image_bytes: int, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        memory_for(asked_mib, image_bytes)


@given(st.none() | st.integers(1, 1 << 20), st.integers(1, 200 << 30))
def test_what_is_given_is_enough_and_what_is_refused_is_told_the_least(asked_mib: int | None, image_bytes: int) -> None:
    try:
        given_bytes = memory_for(asked_mib, image_bytes)
    except BackendError as exc:
        least = int(exc.remedy.removeprefix("say memory=").partition(" ")[0])
        assert memory_for(least, image_bytes) == least * MIB
        assert asked_mib is not None
        assert asked_mib < least
    else:
        assert given_bytes % (2 * MIB) == 0
        assert given_bytes >= max(64 * MIB, MEMORY_PER_IMAGE * image_bytes, (asked_mib or 0) * MIB)


def test_an_image_of_this_machines_architecture_passes() -> None:
    with opened(Layout(flags=OURS).build()) as image:
        check_image(image)


def test_an_image_of_another_architecture_is_refused() -> None:
    with opened(Layout(flags=1 - OURS).build()) as image, pytest.raises(EifError, match=r"it is for .* processors"):
        check_image(image)


def test_an_image_that_cannot_boot_or_is_ambiguous_is_refused() -> None:
    for layout, problem in (
        (Layout(SMALL[:3], flags=OURS), "it has no ramdisk"),
        (Layout(flags=OURS, gap=b"x"), "more than one way"),
        (Layout([(KERNEL, b"k"), (CMDLINE, b"a\0b"), *SMALL[3:]], flags=OURS), "holds a NUL"),
    ):
        with opened(layout.build()) as image, pytest.raises(EifError, match=problem):
            check_image(image)


def test_a_signature_that_has_expired_is_refused_whatever_it_signs() -> None:
    data = Layout([*SMALL, (SIGNATURE, signer().section("00" * 48))], flags=OURS).build()
    with opened(data) as image, pytest.raises(EifError, match="its signature does not hold: the signing certificate"):
        check_image(image)
