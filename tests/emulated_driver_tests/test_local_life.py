"""Images that boot from the memory they were put into. Each test boots one virtual machine."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.process import find_program
from tests.emulated_driver.fixtures import MachineMaker
from tests.emulated_driver.machine import NitroMachine
from tests.emulated_driver.scenario import Behaviour, Boot
from tests.emulated_driver_tests.conftest import Client
from tests.emulated_driver_tests.programs import booting
from tests.needs import missing
from tests.support.images import Images

SIZE = 256 << 20
HANG_UP = 16

BootingMachineMaker = Callable[[Path], NitroMachine]


@pytest.fixture
def booting_machine(nitro_machine: MachineMaker) -> BootingMachineMaker:
    """Makes machines whose enclaves really boot, when the memory is this image's bytes."""
    if find_program("qemu-system-x86_64") is None:
        missing("qemu", "qemu-system-x86_64 is not installed")

    def make(image: Path) -> NitroMachine:
        return nitro_machine(image=str(image), enclaves=(Behaviour(boot=Boot.LOCAL),), huge_pages_wanted=SIZE >> 21)

    return make


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_image_lives_from_its_heartbeat_to_its_hang_up(
    booting_machine: BootingMachineMaker, client: Client, images: Images
) -> None:
    image = images.application("print", "3", architecture=Architecture.X86_64)
    machine = booting_machine(image)
    found = client(machine, booting.live_to_the_end, str(image), SIZE)
    assert isinstance(found, dict)
    assert (found["beat"], found["poll"]) == (True, HANG_UP)
    assert len(found["lines"]) >= 3
    assert machine.events("image")[0]["compared_bytes"] == image.stat().st_size
    assert machine.events("heartbeat")[0]["answered"] is True
    machine.wait_for_event("closed")
    assert machine.leaks() == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_parent_reaches_its_ports(booting_machine: BootingMachineMaker, client: Client, images: Images) -> None:
    image = images.application("echo", "5000", architecture=Architecture.X86_64)
    machine = booting_machine(image)
    assert client(machine, booting.echo_with, str(image), SIZE, 5000) == ["there and back", errno.ECONNRESET]
    assert machine.wait_for_event("closed")["enclave"] == 1


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_ends_when_nobody_takes_its_heartbeat(
    booting_machine: BootingMachineMaker, client: Client, images: Images
) -> None:
    image = images.application("sleep", architecture=Architecture.X86_64)
    machine = booting_machine(image)
    assert client(machine, booting.boot_without_listener, str(image), SIZE) == HANG_UP
    assert machine.events("exit")[0]["reason"] == "heartbeat refused"
