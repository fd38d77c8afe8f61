"""What create hands to a monitor, and what it hears from it."""

from __future__ import annotations

import os
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.backend import BackendName
from pyrune.errors import MonitorError, ReportedError
from pyrune.monitor.launch import launch
from pyrune.monitor.order import MonitorOrder, await_report, report_error, report_ready
from tests.support.programs import open_descriptors

any_text = st.text(st.characters(exclude_categories=[]))
orders = st.builds(
    MonitorOrder,
    directory_fd=st.integers(3, 99),
    report_fd=st.integers(3, 99),
    image_fd=st.integers(3, 99),
    console_socket_fd=st.none() | st.integers(3, 99),
    backend=st.sampled_from(BackendName),
    image_name=any_text,
    memory_mib=st.none() | st.integers(),
    vcpus=st.integers(),
    enclave_cid=st.none() | st.integers(),
    debug=st.booleans(),
    boot_timeout_s=st.none() | st.floats(0, 1e9),
    log_level=any_text,
    notes=st.lists(any_text).map(tuple),
)


@given(orders)
def test_an_order_arrives_as_it_was_given(order: MonitorOrder) -> None:
    before = open_descriptors()
    fd = order.to_memory_file()
    assert not os.get_inheritable(fd)
    arrived = MonitorOrder.from_memory_file(fd)
    assert arrived == order
    assert [type(getattr(arrived, field.name)) for field in fields(order)] == [
        type(getattr(order, field.name)) for field in fields(order)
    ]
    assert open_descriptors() == before


@given(orders)
def test_an_order_names_every_descriptor_that_it_needs(order: MonitorOrder) -> None:
    named = {getattr(order, field.name) for field in fields(order) if field.name.endswith("_fd")} - {None}
    assert set(order.descriptors()) == named


def reported(content: bytes) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, content)
    os.close(write_end)
    try:
        await_report(read_end)
    finally:
        os.close(read_end)


def test_ready_is_ready() -> None:
    read_end, write_end = os.pipe()
    report_ready(write_end)
    await_report(read_end)
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        report_ready(write_end)
    os.close(write_end)


def test_an_error_arrives_in_its_own_words() -> None:
    read_end, write_end = os.pipe()
    report_error(write_end, "it\nfailed é \udcff")
    with pytest.raises(ReportedError) as caught:
        await_report(read_end)
    assert str(caught.value) == "it\nfailed é \udcff"
    os.close(read_end)
    os.close(write_end)


@pytest.mark.parametrize("content", [b"", b'{"ready": true', b'{"err'])
def test_a_monitor_that_died_is_named(content: bytes) -> None:
    with pytest.raises(MonitorError, match=r"^the container's monitor ended before it was ready$"):
        reported(content)


@pytest.mark.parametrize("content", [b"\n", b"garbage\n", b"[]\n", b"7\n", b"\xff\n", b'{"error": 7}\n', b"{}\n"])
def test_what_is_no_report_is_an_error(content: bytes) -> None:
    with pytest.raises(MonitorError, match=r"^the container's monitor made no sense$"):
        reported(content)


def test_a_launch_that_fails_before_it_begins_leaves_nothing() -> None:
    def fail(_report_fd: int) -> MonitorOrder:
        raise ZeroDivisionError

    before = open_descriptors()
    with pytest.raises(ZeroDivisionError):
        launch(fail)
    assert open_descriptors() == before
