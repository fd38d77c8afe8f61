from __future__ import annotations

import errno

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.scenario import UNCHECKED, Behaviour, Fault, Heartbeat, Point
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import starting

HANG_UP = 16
QUIET = (Behaviour(heartbeat=Heartbeat.NEVER),)


def test_a_start_is_checked_in_the_drivers_order(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    assert client(machine, starting.order_of_checks) == [274, 275, 266, 268, 267, 269, 0]


def test_well_known_and_impossible_cids_are_refused(nitro_machine: MachineMaker, client: Client) -> None:
    cids = [1, 2, 3, 2**32 - 1, 2**32, 2**32 + 16]
    assert client(nitro_machine(), starting.refuse_cids, *cids, 4) == [275] * 6 + [266]


def test_the_driver_chooses_cids_from_16_on(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=64)
    assert client(machine, starting.start_twice, 0, 0) == [16, 17]


def test_a_cid_is_taken_only_once(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=64)
    assert client(machine, starting.start_twice, 16, 16) == [16, -errno.EINVAL]
    assert client(machine, starting.start_twice, 4, 0) == [4, 16]


def test_a_running_enclave_takes_no_ioctl(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, huge_pages_wanted=33)
    assert client(machine, starting.every_ioctl_once_running) == [270] * 4


def test_an_exited_enclave_takes_none_either(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(
        image=UNCHECKED, enclaves=(Behaviour(heartbeat=Heartbeat.NEVER, exit_after_s=0.1),), huge_pages_wanted=33
    )
    assert client(machine, starting.every_ioctl_once_exited) == [HANG_UP] + [270] * 4


def test_after_a_device_error_it_may_be_started_again(nitro_machine: MachineMaker, client: Client) -> None:
    fault = Fault("NE_START_ENCLAVE", nth=1, at=Point.DEVICE, error="EIO")
    machine = nitro_machine(image=UNCHECKED, enclaves=QUIET, faults=(fault,), huge_pages_wanted=32)
    assert client(machine, starting.start_again_after_device_error) == [errno.EIO, 0]


def test_the_image_goes_to_8_mib(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), starting.load_info) == [8 << 20, 274, 274, 274]
