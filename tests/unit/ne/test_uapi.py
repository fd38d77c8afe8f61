"""The numbers and sizes against the literal ones that the kernel's headers give."""

from __future__ import annotations

from pyrune.ne import uapi


def test_the_ioctl_numbers_are_the_kernels() -> None:
    assert uapi.NE_CREATE_VM == 0x8008AE20
    assert uapi.NE_ADD_VCPU == 0xC004AE21
    assert uapi.NE_GET_IMAGE_LOAD_INFO == 0xC010AE22
    assert uapi.NE_SET_USER_MEMORY_REGION == 0x4018AE23
    assert uapi.NE_START_ENCLAVE == 0xC010AE24


def test_arguments_are_laid_out_without_padding() -> None:
    assert uapi.SLOT_ID.size == 8
    assert uapi.VCPU_ID.size == 4
    assert uapi.IMAGE_LOAD_INFO.size == 16
    assert uapi.USER_MEMORY_REGION.size == 24
    assert uapi.ENCLAVE_START_INFO.size == 16


def test_every_error_from_256_to_275_is_explained() -> None:
    assert [int(error) for error in uapi.NeError] == list(range(256, 276))
    assert set(uapi.EXPLANATIONS) == set(uapi.NeError)


def test_explanations_differ_from_one_another() -> None:
    meanings = [explanation.meaning for explanation in uapi.EXPLANATIONS.values()]
    assert len(set(meanings)) == len(meanings)
    assert all(explanation.remedy for explanation in uapi.EXPLANATIONS.values())
