"""Starting a monitor, as `create` sees it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from pyrune.errors import MonitorError
from pyrune.monitor.order import MonitorOrder, await_report
from pyrune.process import spawn_detached


def launch(make_order: Callable[[int], MonitorOrder]) -> None:
    """Start a monitor and wait until it holds its enclave, ready to start.

    `make_order` is given the descriptor that the report will be written to. Raises ReportedError with the monitor's
    reason, MonitorError if it died without one; in both cases it is gone, and what it took with it.
    """
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            _start(make_order(report_write))
        finally:
            # The monitor's end is then the last: the pipe ends with it.
            os.close(report_write)
        await_report(report_read)
    finally:
        os.close(report_read)


def _start(order: MonitorOrder) -> None:
    try:
        order_fd = order.to_memory_file()
        try:
            argv = [sys.executable, "-I", "-m", "pyrune.monitor", str(order_fd)]
            spawn_detached(argv, keep_fds=[order_fd, *order.descriptors()])
        finally:
            os.close(order_fd)
    except OSError as exc:
        raise MonitorError(f"the container's monitor cannot be started (error {exc.errno})") from exc
