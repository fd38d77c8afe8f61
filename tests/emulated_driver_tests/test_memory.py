from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.machine import NitroMachine
from tests.emulated_driver.scenario import EIF, UNCHECKED, Behaviour, Fault, Heartbeat, Point
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import ending, memory
from tests.unit.eif.images import Layout

HANG_UP = 16
QUIET = (Behaviour(heartbeat=Heartbeat.NEVER),)


def test_sizes_and_addresses_are_checked_in_the_drivers_order(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(huge_pages_wanted=2)
    assert client(machine, memory.refuse_sizes_and_addresses) == {
        "half a page": 259,
        "odd": 259,
        "nothing": errno.ENOMEM,
        "unaligned": 261,
        "flags": 274,
        "kernel": 260,
        "unmapped": errno.EFAULT,
        "fine": 0,
    }
    assert machine.leaks() == []


def test_small_and_transparent_pages_are_refused(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(), memory.refuse_small_pages) == [263, 263]


def test_untouched_pages_and_shared_ones_are_accepted(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(huge_pages_wanted=3)
    assert client(machine, memory.accept_untouched_and_shared) == [0, 0]
    assert [entry["pages"] for entry in machine.log if entry.get("call") == "NE_SET_USER_MEMORY_REGION"] == [2, 1]


def test_overlaps_are_refused_and_never_forgotten(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(huge_pages_wanted=4), memory.overlap) == {
        "same": 262,
        "around": 262,
        "tail": 262,
        "beside": 0,
        "after munmap": 262,
    }


def test_a_region_that_the_device_refused_is_remembered_too(nitro_machine: MachineMaker, client: Client) -> None:
    fault = Fault("NE_SET_USER_MEMORY_REGION", nth=1, at=Point.DEVICE, error="EINVAL")
    machine = nitro_machine(faults=(fault,), huge_pages_wanted=1)
    assert client(machine, memory.register_twice) == [errno.EINVAL, 262]


def test_pages_must_be_of_the_pools_node(nitro_machine: MachineMaker, client: Client) -> None:
    assert client(nitro_machine(numa_node=7, huge_pages_wanted=1), memory.register_one) == 264


def test_a_shortage_shows_at_mmap_or_without_reservation_at_registration(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine(huge_pages_wanted=2)
    assert client(machine, memory.register_without_pages) == [errno.ENOMEM, errno.EFAULT]
    assert machine.leaks() == []


def test_a_page_of_1_gib_is_given_whole_and_from_its_begin(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(gigantic_pages_wanted=1)
    assert client(machine, memory.register_parts_of_gigantic_page) == [273, 0]
    assert [entry.get("pages") for entry in machine.log if entry.get("call") == "NE_SET_USER_MEMORY_REGION"] == [
        None,
        1,
    ]
    assert machine.leaks() == []


def test_an_image_spreads_over_pages_of_mixed_sizes(
    nitro_machine: MachineMaker, client: Client, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom((9 << 20) + 777))
    machine = nitro_machine(image=str(image), enclaves=QUIET, huge_pages_wanted=6, gigantic_pages_wanted=1)
    client(machine, memory.place_image_beside_gigantic_page, str(image))
    assert machine.wait_for_event("image")["compared_bytes"] == image.stat().st_size
    assert machine.events("image")[0]["good"] is True


def _place(machine: NitroMachine, client: Client, image: Path, *sizes_mib: int) -> dict[str, object]:
    client(machine, memory.place_image, str(image), *sizes_mib)
    return machine.wait_for_event("image")


def test_the_image_is_found_across_regions_in_the_order_of_registration(
    nitro_machine: MachineMaker, client: Client, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom((21 << 20) + 12345))
    machine = nitro_machine(image=str(image), enclaves=QUIET, huge_pages_wanted=38)
    found = _place(machine, client, image, 2, 4, 6, 2, 62)
    assert found["good"] is True
    assert found["compared_bytes"] == image.stat().st_size
    assert found["moved_pages"] == 0


def test_a_wrong_byte_is_found_and_such_an_enclave_exits(
    nitro_machine: MachineMaker, client: Client, tmp_path: Path
) -> None:
    image, other = tmp_path / "image", tmp_path / "other"
    content = bytearray(os.urandom(3 << 20))
    image.write_bytes(content)
    content[2_500_000] ^= 1
    other.write_bytes(content)
    machine = nitro_machine(image=str(image), huge_pages_wanted=32)
    assert client(machine, memory.place_image, str(other), 64) == HANG_UP
    assert machine.events("image")[0]["difference"] == 2_500_000
    assert machine.events("exit")[0]["reason"] == "damaged image"


def test_an_image_is_known_by_its_checksum(nitro_machine: MachineMaker, client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.eif"
    image.write_bytes(Layout().build())
    machine = nitro_machine(image=EIF, enclaves=QUIET, huge_pages_wanted=32)
    assert _place(machine, client, image, 64)["good"] is True


def test_a_damaged_image_is_known_by_its_checksum(nitro_machine: MachineMaker, client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.eif"
    content = bytearray(Layout().build())
    content[-1] ^= 1
    image.write_bytes(content)
    machine = nitro_machine(image=EIF, huge_pages_wanted=32)
    assert client(machine, memory.place_image, str(image), 64) == HANG_UP


def test_private_memory_written_after_a_fork_is_not_what_the_enclave_sees(
    nitro_machine: MachineMaker, client: Client
) -> None:
    private = 2
    machine = nitro_machine(image=EIF, huge_pages_wanted=40)
    client(machine, memory.write_after_fork, private, Layout().build().hex())
    found = machine.wait_for_event("image")
    assert found["good"] is False
    assert found["moved_pages"] != 0


def test_memory_written_after_its_registration_is_what_the_enclave_sees(
    nitro_machine: MachineMaker, client: Client
) -> None:
    machine = nitro_machine(image=EIF, enclaves=QUIET, huge_pages_wanted=32)
    client(machine, memory.write_after_registration, Layout().build().hex())
    found = machine.wait_for_event("image")
    assert (found["good"], found["moved_pages"]) == (True, 0)


def test_shared_memory_written_after_a_fork_is(nitro_machine: MachineMaker, client: Client) -> None:
    shared = 1
    machine = nitro_machine(image=EIF, enclaves=QUIET, huge_pages_wanted=40)
    client(machine, memory.write_after_fork, shared, Layout().build().hex())
    assert machine.wait_for_event("image")["good"] is True


def test_no_huge_page_is_kept(nitro_machine: MachineMaker, client: Client) -> None:
    machine = nitro_machine(image=UNCHECKED, huge_pages_wanted=32)
    client(machine, ending.poll_an_exit)
    machine.wait_for_event("closed")
    assert machine.leaks() == []
