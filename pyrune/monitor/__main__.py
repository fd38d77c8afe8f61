"""The monitor's program: `python -I -m pyrune.monitor ORDER_FD`, started by `create` and by nobody else.

It begins as an orphan in a session of its own, with the container's standard input and outputs as descriptors 0 to 2
and the order on the descriptor that its argument names. It ends with the container's exit status.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

from pyrune import log
from pyrune.backend import BackendName, EnclaveSpec
from pyrune.backends import load_backend
from pyrune.errors import PyruneError, printable
from pyrune.linux import set_comm
from pyrune.monitor.monitor import FAILED_STATUS, Monitor
from pyrune.monitor.order import MonitorOrder, report_error, report_ready
from pyrune.reactor import READ, Reactor
from pyrune.state import ContainerDirectory
from pyrune.terminal import open_console

LOG_NAME = "monitor.log"

logger = logging.getLogger(__name__)


def main() -> None:
    """Serve one container; does not return."""
    set_comm("pyrune-monitor")
    # The caller's may be anything; what this process and its children make is its owner's alone.
    os.umask(0o077)
    # It comes when the terminal's other end is closed. Unlike being ignored, a handler is not passed on to children.
    signal.signal(signal.SIGHUP, lambda *_: None)
    order = MonitorOrder.from_memory_file(int(sys.argv[1]))
    for fd in order.descriptors():
        os.set_inheritable(fd, False)
    status = FAILED_STATUS
    try:
        status = _serve(order)
    except PyruneError as exc:
        logger.error("%s", exc)
        _try_to_report(order, str(exc))
    except Exception as exc:
        logger.exception("the monitor failed")
        # The log goes with the container if nobody has heard of it yet.
        _try_to_report(order, printable(f"the container's monitor failed: {type(exc).__name__}: {exc}"))
    # A thread may still be writing to a standard output that nobody reads: it must not keep the process alive.
    logging.shutdown()
    os._exit(status)


def _serve(order: MonitorOrder) -> int:
    directory = ContainerDirectory(Path(os.readlink(f"/proc/self/fd/{order.directory_fd}")), order.directory_fd)
    stdout_fd = os.dup(1)
    _redirect_own_stdio(directory.fd)
    log.configure_monitor(2, order.log_level)
    for note in order.notes:
        logger.info("%s", note)
    reactor = Reactor()
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        reactor.stop()

    output_fd = stdout_fd if order.console_socket_fd is None else _open_terminal(order.console_socket_fd, reactor)
    monitor = Monitor(directory, reactor, output_fd, leave)
    reactor.catch_signals([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], monitor.end_by_signal)
    monitor.announce()
    spec = EnclaveSpec(
        image_fd=order.image_fd,
        image_name=order.image_name,
        memory_mib=order.memory_mib,
        vcpus=order.vcpus,
        enclave_cid=order.enclave_cid,
        debug=order.debug,
        cpu_ids=order.cpu_ids,
    )
    monitor.prepare(load_backend(BackendName(order.backend)), spec, order.boot_timeout_s)
    os.close(order.image_fd)
    try:
        report_ready(order.report_fd)
    except BrokenPipeError:
        # The call that wanted this container was killed: nobody would ever start it.
        monitor.abandon()
        return FAILED_STATUS
    os.close(order.report_fd)
    reactor.run()
    return statuses[0]


def _redirect_own_stdio(directory_fd: int) -> None:
    """Put this process's own complaints into its log: descriptors 0 to 2 were the container's."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log_fd = os.open(LOG_NAME, flags, 0o600, dir_fd=directory_fd)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(null)
    os.close(log_fd)


def _open_terminal(console_socket_fd: int, reactor: Reactor) -> int:
    with socket.socket(fileno=console_socket_fd) as console_socket:
        slave = open_console(console_socket)
    # What is typed must not fill the terminal: nobody inside reads it, but the key for interrupt has to get through.
    typed = os.open(f"/proc/self/fd/{slave}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    reactor.watch(typed, READ, lambda: _discard(typed, reactor))
    return slave


def _discard(fd: int, reactor: Reactor) -> None:
    try:
        if os.read(fd, 4096):
            return
    except BlockingIOError:
        return
    except OSError:
        pass
    # The other side is closed: the container goes on without a terminal.
    reactor.unwatch(fd)


def _try_to_report(order: MonitorOrder, text: str) -> None:
    try:
        report_error(order.report_fd, text)
    except OSError:
        logger.info("nobody waits for the report any more")


if __name__ == "__main__":
    main()
