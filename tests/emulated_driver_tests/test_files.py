from __future__ import annotations

import errno

import pytest

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver_tests.conftest import Client, client_argv
from tests.emulated_driver_tests.programs import creating, files, vcpus

PARAMETER = "/sys/module/nitro_enclaves/parameters/ne_cpus"
TOP = "/sys/devices/system/cpu"


def test_device_parameters_and_cpus_are_there_for_every_kind_of_look(
    nitro_machine: MachineMaker, client: Client
) -> None:
    assert client(nitro_machine(), files.look_at_files) == {
        "is a device": True,
        "major": 10,
        "mode": "0o660",
        "lstat": True,
        "readable": True,
        "opened is a device": True,
        "cpus": 8,
        "relative": "3,7\n",
        "node": "../../node/node0",
        "pages": True,
        "write": errno.EACCES,
        "absent": errno.ENOENT,
        "others": True,
    }


def test_cpus_of_the_pool_are_offline_and_have_no_topology(nitro_machine: MachineMaker, client: Client) -> None:
    core_1, core_3 = f"{TOP}/cpu1/topology/core_id", f"{TOP}/cpu3/topology/core_id"
    paths = [PARAMETER, f"{TOP}/online", f"{TOP}/offline", f"{TOP}/possible", f"{TOP}/cpu1/online", core_1, core_3]
    paths.append("/sys/devices/system/node/node0/cpulist")
    assert client(nitro_machine(), files.read_files, *paths) == {
        PARAMETER: "1-2,5-6\n",
        f"{TOP}/online": "0,3-4,7\n",
        f"{TOP}/offline": "1-2,5-6\n",
        f"{TOP}/possible": "0-7\n",
        f"{TOP}/cpu1/online": "0\n",
        core_1: errno.ENOENT,
        core_3: "3\n",
        "/sys/devices/system/node/node0/cpulist": "0,3-4,7\n",
    }


def test_a_pointer_to_nowhere_is_efault(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    assert client(machine, files.open_with_bad_pointers) == [errno.EFAULT, errno.EFAULT]
    assert client(machine, creating.open_device) == 0


def test_without_the_device_its_module_is_not_there_either(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(device=False), files.read_files, PARAMETER) == {PARAMETER: errno.ENOENT}


@pytest.mark.parametrize(
    ("cpus", "error"), [("0,4", "EINVAL"), ("1", "EINVAL"), ("1-x", "EINVAL"), ("3,7,8", "ERANGE")]
)
def test_a_wrong_pool_is_refused_and_leaves_none(
    nitro_machine: MachineMaker, client: Client, cpus: str, error: str
) -> None:
    machine = nitro_machine()
    with pytest.raises(ValueError, match=error):
        machine.control("pool", cpus=cpus)
    assert client(machine, creating.create_many, 1) == [272]
    online = f"{TOP}/online"
    # The parameter still reads as it was last set well.
    assert client(machine, files.read_files, PARAMETER, online) == {PARAMETER: "1-2,5-6\n", online: "0-7\n"}


def test_the_pool_changes_only_while_no_enclave_is_open(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine()
    running = machine.start(client_argv(creating.hold_enclave))
    machine.wait_for_enclaves(1)
    with pytest.raises(ValueError, match="EPERM"):
        machine.control("pool", cpus="3,7")
    running.kill()
    running.wait()
    machine.control("pool", cpus="3,7")
    assert client(machine, vcpus.choose_vcpus, 2) == [3, 7]
