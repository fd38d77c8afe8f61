"""A device process, and who talks to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.local.virtio_vsock.guest import DeviceProcess, Guest, HostProgram


@pytest.fixture
def device(tmp_path: Path) -> Iterator[DeviceProcess]:
    process = DeviceProcess(tmp_path)
    yield process
    process.close()


@pytest.fixture(params=[False, True], ids=["one-buffer", "separate-headers"])
def guest(device: DeviceProcess, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """For what may depend on how the guest cuts its packets."""
    driver = Guest(device.sock, separate_headers=request.param)
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
def plain_guest(device: DeviceProcess) -> Iterator[Guest]:
    driver = Guest(device.sock)
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
def host(device: DeviceProcess) -> Iterator[HostProgram]:
    program = HostProgram(device.directory)
    yield program
    program.close()
