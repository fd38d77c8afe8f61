"""Every error of the driver at every step: what is said, how pyrune exits, and that nothing stays taken."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import pytest

from pyrune.ne.uapi import EXPLANATIONS, NeError
from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import Nitro
from tests.unit.ne.test_device import MISREAD

NE_ERRORS = [int(error) for error in NeError]
DEVICE_ERRORS: Mapping[str, str] = {
    "EIO": "belongs to another process",
    "EINVAL": "refuses the values",
    "ENOMEM": "no memory for it",
    "EFAULT": "cannot be used",
    "ETIMEDOUT": "not answered within 120 s",
    "ENODEV": "the device is gone",
    "ENOTTY": "not the Nitro Enclaves driver",
    "EPIPE": "the answer is EPIPE",
}
# The step, and what its message names beside the ioctl.
AT_CREATE = {
    "NE_CREATE_VM": "an enclave cannot be created",
    "NE_GET_IMAGE_LOAD_INFO": "the place for the image is unknown",
    "NE_SET_USER_MEMORY_REGION": "64 MiB of memory cannot be given to the enclave",
    "NE_ADD_VCPU": "a CPU cannot be given to the enclave",
}
_USED_UP = (NeError.VCPU_NOT_IN_CPU_POOL, NeError.NO_CPUS_AVAIL_IN_POOL)


def _fail(pyrune: Nitro, call: str, error: int | str, at: str = "device") -> None:
    pyrune.machine.control("mend")
    pyrune.machine.control("fault", fault={"call": call, "error": error, "at": at})


def _check(message: str, call: str, attempt: str, error: int | str) -> None:
    number = error if isinstance(error, int) else getattr(errno, error)
    if call == "NE_ADD_VCPU" and number in _USED_UP:
        assert message.startswith("the enclave is given 2 vCPUs, but only 0 are free in the enclave CPU pool")
        assert f"error {number}" in message
    else:
        meaning = EXPLANATIONS[NeError(error)].meaning if isinstance(error, int) else DEVICE_ERRORS[error]
        assert message.startswith(f"{attempt} ({call}): ")
        assert meaning in message
        assert f"(error {number}); " in message
    assert not [phrase for phrase in MISREAD if phrase in message.lower()]


def _errors(call: str) -> list[int | str]:
    """Those of the driver at every call; those that the device passes on where the most depends on them."""
    through: tuple[str, ...] = tuple(DEVICE_ERRORS) if call in ("NE_CREATE_VM", "NE_START_ENCLAVE") else ("ETIMEDOUT",)
    return [*NE_ERRORS, *through]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("call", AT_CREATE)
def test_an_error_during_create_is_told_and_nothing_stays_taken(nitro: NitroMaker, image: Path, call: str) -> None:
    pyrune = nitro()
    bundle = str(pyrune.nitro_bundle(image))
    for error in _errors(call):
        _fail(pyrune, call, error)
        _check(pyrune.refused("create", "--bundle", bundle, "one"), call, AT_CREATE[call], error)
        assert pyrune.machine.leaks() == []
        assert not (pyrune.root / "one").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_error_of_the_start_is_told_and_nothing_stays_taken(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    bundle = str(pyrune.nitro_bundle(image))
    for error in _errors("NE_START_ENCLAVE"):
        _fail(pyrune, "NE_START_ENCLAVE", error)
        message = pyrune.refused("run", "--bundle", bundle, "one")
        _check(message, "NE_START_ENCLAVE", "the enclave cannot be started", error)
        assert pyrune.machine.leaks() == []
        assert not (pyrune.root / "one").exists()


def test_a_start_that_fails_leaves_a_stopped_container(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    _fail(pyrune, "NE_START_ENCLAVE", int(NeError.FULL_CORES_NOT_USED))
    pyrune.create("one", pyrune.nitro_bundle(image))
    message = pyrune.refused("start", "one")
    assert message.startswith("the enclave cannot be started (NE_START_ENCLAVE): the enclave has only one of two CPUs")
    assert pyrune.status("one") == "stopped"
    assert pyrune.machine.leaks() == []
    pyrune.ok("delete", "one")


@pytest.mark.parametrize("error", ["ENODEV", "EACCES", "EPERM", "EBUSY", "EMFILE"])
def test_a_device_that_does_not_open_is_told(nitro: NitroMaker, image: Path, error: str) -> None:
    pyrune = nitro()
    _fail(pyrune, "open", error, at="call")
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    assert message.startswith("/dev/nitro_enclaves cannot be opened: ")
    assert f"(error {getattr(errno, error)}); " in message
    assert not [phrase for phrase in MISREAD if phrase in message.lower()]
    assert pyrune.machine.leaks() == []


def test_a_second_cpu_that_is_refused_returns_the_first(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.machine.control("fault", fault={"call": "NE_ADD_VCPU", "nth": 2, "error": 272, "at": "device"})
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    assert message.startswith("the enclave is given 2 vCPUs, but only 1 are free in the enclave CPU pool")
    assert pyrune.machine.leaks() == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("socket", "EAFNOSUPPORT", "a vsock socket cannot be made"),
        ("bind", "EADDRNOTAVAIL", "port 9000 of vsock cannot be listened on"),
        ("listen", "EOPNOTSUPP", "port 9000 of vsock cannot be listened on"),
    ],
)
def test_vsock_that_does_not_work_is_told(nitro: NitroMaker, image: Path, call: str, error: str, message: str) -> None:
    pyrune = nitro()
    _fail(pyrune, call, error, at="call")
    bundle = str(pyrune.nitro_bundle(image))
    if call == "socket":
        found = pyrune.refused("create", "--bundle", bundle, "one")
    else:
        pyrune.ok("create", "--bundle", bundle, "one")
        found = pyrune.refused("start", "one")
    assert found.startswith(message)
    assert pyrune.machine.leaks() == []


def test_a_console_that_does_not_answer_ends_no_enclave(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    _fail(pyrune, "connect", "ETIMEDOUT", at="call")
    pyrune.create("one", pyrune.nitro_bundle(image, more="debug=true"))
    pyrune.ok("start", "one")
    assert pyrune.status("one") == "running"


# A device that takes its time


def test_state_and_kill_answer_while_the_device_keeps_the_start(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.machine.control("fault", fault={"call": "NE_START_ENCLAVE", "hold": True, "at": "device"})
    start = pyrune.machine.start(super(Nitro, pyrune).argv("start", "one"))
    pyrune.machine.wait_for_held("NE_START_ENCLAVE")
    assert pyrune.status("one") == "created"
    pyrune.ok("kill", "one", "TERM", timeout_s=20)
    assert pyrune.status("one") == "created"
    assert start.poll() is None
    pyrune.machine.control("release")
    done = pyrune.machine.finish(start)
    assert done.returncode == 1
    assert "ended by signal 15 before it had booted" in done.stderr
    pyrune.wait_for_status("one", "stopped")
    assert pyrune.machine.leaks() == []


@pytest.mark.parametrize("call", ["NE_CREATE_VM", "NE_SET_USER_MEMORY_REGION", "NE_ADD_VCPU"])
def test_state_and_delete_answer_while_the_device_keeps_a_create(nitro: NitroMaker, image: Path, call: str) -> None:
    pyrune = nitro()
    pyrune.machine.control("fault", fault={"call": call, "hold": True, "at": "device"})
    create = pyrune.machine.start(
        super(Nitro, pyrune).argv("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    )
    pyrune.machine.wait_for_held(call)
    assert pyrune.status("one") == "creating"
    pyrune.ok("delete", "--force", "one", timeout_s=20)
    assert pyrune.machine.finish(create).returncode == 1
    assert not (pyrune.root / "one").exists()
    pyrune.machine.control("mend")
    assert pyrune.machine.leaks() == []


def test_a_boot_deadline_waits_for_the_device(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    bundle = pyrune.nitro_bundle(image)
    config = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(
        config.replace('"annotations": {', '"annotations": {"enclave.boot.timeout": "1", ')
    )
    pyrune.create("one", bundle)
    pyrune.machine.control("fault", fault={"call": "NE_START_ENCLAVE", "delay_s": 2, "at": "return"})
    assert pyrune.refused("start", "one") == "the enclave has not booted within 1 s"
    assert pyrune.machine.leaks() == []
