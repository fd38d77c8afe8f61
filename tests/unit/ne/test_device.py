"""What the device's errors say. The calls themselves are tested under the emulated driver, in tests/nitro."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.ne.device import EnclaveVm, NitroDevice, NitroDeviceError, ioctl_error, open_error

# What containerd, dockerd, Podman and CRI-O look for in a runtime's errors, and would draw wrong conclusions from.
MISREAD = (
    "process already finished",
    "container not running",
    "no such process",
    "does not exist",
    "not found",
    "no such container",
    "executable file",
    "no such file",
    "permission denied",
    "is a directory",
    "not a directory",
    "operation not permitted",
    "invalid process",
)
NUMBERS = sorted({*errno.errorcode, *range(256, 280), 0, 4095})


@pytest.mark.parametrize("number", NUMBERS)
def test_every_error_number_becomes_one_line_that_no_caller_misreads(number: int) -> None:
    for error in (open_error(number), ioctl_error("the enclave cannot be started (NE_START_ENCLAVE)", number)):
        text = str(error)
        assert error.number == number
        assert "\n" not in text
        assert f"(error {number})" in text
        assert error.remedy
        assert text.endswith(error.remedy)
        assert not [phrase for phrase in MISREAD if phrase in text.lower()]
        assert os.strerror(number).lower() not in text.lower() or not number


def test_an_error_of_the_driver_says_what_was_tried_and_what_to_do() -> None:
    assert str(ioctl_error("a CPU cannot be given to the enclave (NE_ADD_VCPU)", 272)) == (
        "a CPU cannot be given to the enclave (NE_ADD_VCPU): the enclave CPU pool has no free CPU (error 272); "
        "raise cpu_count in /etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator.service, "
        "or stop another enclave"
    )


def test_a_missing_device_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NitroDeviceError, match="the device is missing") as caught:
        NitroDevice(str(tmp_path / "nitro_enclaves"))
    assert "--enclave-options Enabled=true" in caught.value.remedy
    assert "modprobe nitro_enclaves" in caught.value.remedy
    assert isinstance(caught.value, BackendError)


def test_something_else_at_the_devices_path_is_told_from_the_driver() -> None:
    with (
        NitroDevice("/dev/null") as device,
        pytest.raises(NitroDeviceError, match=re.escape("(NE_CREATE_VM): what is there is not the Nitro Enclaves")),
    ):
        device.create_vm()


def test_every_ioctl_of_an_enclave_translates_its_failure() -> None:
    vm = EnclaveVm(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), 1)
    try:
        for call in (
            vm.image_load_offset,
            lambda: vm.set_user_memory_region(0, 2 << 20),
            vm.add_vcpu,
            lambda: vm.start(5, debug=True),
        ):
            with pytest.raises(NitroDeviceError) as caught:
                call()
            assert caught.value.number == errno.ENOTTY
    finally:
        vm.close()
        vm.close()
