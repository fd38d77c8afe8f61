"""The operations of the OCI runtime specification on enclaves: what happens in which order.

Texts of errors are runc's where runc has the error: callers match them. What belongs to the command line (options,
output) is not here, and what belongs to the running enclave is the monitor's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pyrune.annotations import EnclaveRequest
from pyrune.backend import BackendName, EnclaveFacts
from pyrune.bundle import Bundle, check_terminal, validate
from pyrune.document import OCI_VERSION
from pyrune.eif.reader import EifImage
from pyrune.enclave_type import ARGS
from pyrune.errors import (
    AnnotationError,
    BackendError,
    ContainerNotFound,
    ContainerStateError,
    MonitorError,
    PyruneError,
    ReportedError,
    StateDirectoryError,
    UsageError,
)
from pyrune.linux import ProcessIdentity, descendants, wait_for_exit
from pyrune.log import rfc3339
from pyrune.monitor.control import Request, ask, server_pid
from pyrune.monitor.launch import launch
from pyrune.monitor.order import MonitorOrder
from pyrune.process import adopt_orphans
from pyrune.state import ContainerDirectory, ContainerRecord, ContainerStore, Status, check_id, write_file_atomically
from pyrune.terminal import (
    FORWARDED_SIGNALS,
    connect_console_socket,
    copy_window_size,
    raw_terminal,
    receive_master,
    relay,
)

DEFAULT_VCPUS = 2
_KILL_PATIENCE_S = 4.0
# A monitor that has written its container's end exits next, with a status that somebody may wait for.
_GOODBYE_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What `create` and `run` share."""

    backend: BackendName
    pid_file: str | None = None
    console_socket: str | None = None
    pidfd_socket: str | None = None


def create(
    store: ContainerStore, container_id: str, bundle: Bundle, request: EnclaveRequest, options: CreateOptions
) -> None:
    """Make a container whose enclave is ready to start. Raises PyruneError; then nothing of it is left."""
    _check_new(container_id, bundle)
    check_terminal(bundle.process.terminal, True, options.console_socket)
    with contextlib.ExitStack() as undo:
        console_socket = None
        if options.console_socket:
            console_socket = undo.enter_context(connect_console_socket(options.console_socket))
        _create(store, container_id, bundle, request, options, console_socket)


def _check_new(container_id: str, bundle: Bundle) -> None:
    check_id(container_id)
    validate(bundle)


def _create(
    store: ContainerStore,
    container_id: str,
    bundle: Bundle,
    request: EnclaveRequest,
    options: CreateOptions,
    console_socket: socket.socket | None,
) -> None:
    with _open_image(request) as image, store.create(_new_record(container_id, bundle)) as directory:
        try:
            _launch_monitor(directory, image, request, options.backend, console_socket)
            monitor = directory.read().monitor
            if monitor is None:
                raise MonitorError("the container's monitor has not announced itself")
            _tell_pid(monitor, options)
        except BaseException:
            # What fails here as well must not hide why the container was not made.
            with contextlib.suppress(PyruneError):
                _end_monitor(directory.read())
            with contextlib.suppress(PyruneError):
                directory.remove()
            raise


def _open_image(request: EnclaveRequest) -> EifImage:
    if request.image is None:
        raise AnnotationError(ARGS, "names no enclave image", remedy="say image= and the absolute path of an EIF file")
    image = EifImage.open(request.image)
    try:
        image.require_bootable()
        image.require_unambiguous()
    except BaseException:
        image.close()
        raise
    return image


def _new_record(container_id: str, bundle: Bundle) -> ContainerRecord:
    return ContainerRecord(
        oci_version=OCI_VERSION,
        id=container_id,
        bundle=bundle.path,
        rootfs=bundle.rootfs,
        created=rfc3339(datetime.now(UTC), "microseconds"),
        annotations=dict(bundle.config.annotations),
        written_status=Status.CREATING,
        creator=ProcessIdentity.of(os.getpid()),
    )


def _launch_monitor(
    directory: ContainerDirectory,
    image: EifImage,
    request: EnclaveRequest,
    backend: BackendName,
    console_socket: socket.socket | None,
) -> None:
    # A descriptor of its own for the monitor: one that it shared would keep this process's lock alive.
    monitor_directory_fd = directory.another_fd()

    def make_order(report_fd: int) -> MonitorOrder:
        return MonitorOrder(
            directory_fd=monitor_directory_fd,
            report_fd=report_fd,
            image_fd=image.fd,
            console_socket_fd=console_socket.fileno() if console_socket else None,
            backend=backend,
            image_name=image.name,
            memory_mib=request.memory_mib,
            vcpus=len(request.cpu_ids) or request.vcpus or DEFAULT_VCPUS,
            cpu_ids=request.cpu_ids,
            enclave_cid=request.cid,
            debug=request.debug,
            boot_timeout_s=request.boot_timeout_s,
            log_level=request.loglevel.value,
            notes=request.notes,
        )

    try:
        launch(make_order)
    finally:
        os.close(monitor_directory_fd)


def _tell_pid(monitor: ProcessIdentity, options: CreateOptions) -> None:
    """Say which process stands for the container, where the caller asked for it."""
    place = options.pid_file
    try:
        if options.pid_file:
            _write_pid_file(Path(options.pid_file), monitor.pid)
        place = options.pidfd_socket
        if options.pidfd_socket:
            _send_pidfd(options.pidfd_socket, monitor)
    except OSError as exc:
        raise UsageError(f"the container's pid cannot be written to {place} (error {exc.errno})") from exc


def _write_pid_file(path: Path, pid: int) -> None:
    parent_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # conmon and the shim read it as soon as it is there: no newline, and never half of it.
        write_file_atomically(parent_fd, path.name, str(pid).encode(), 0o644)
    finally:
        os.close(parent_fd)


def _send_pidfd(socket_path: str, monitor: ProcessIdentity) -> None:
    pidfd = monitor.open_pidfd()
    if pidfd is None:
        raise MonitorError("the container's monitor ended at once")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(socket_path)
            socket.send_fds(sock, [b"pidfd"], [pidfd])
    finally:
        os.close(pidfd)


def start(store: ContainerStore, container_id: str) -> None:
    """Boot the enclave; returns when it has said that it is up. Raises PyruneError; then it has stopped."""
    with store.open(container_id) as directory:
        status = directory.read().status
        if status is Status.STOPPED:
            raise ContainerStateError("cannot start a container that has stopped")
        if not status.can_start:
            raise ContainerStateError("cannot start an already running container")
        ask(directory.fd, Request("start"))


def kill(store: ContainerStore, container_id: str, number: int, *, all_processes: bool = False) -> None:
    """Send a signal. Raises ContainerStateError for a container that has stopped, unless `all_processes`."""
    with store.open(container_id) as directory:
        record = directory.read()
        if not record.status.can_kill:
            if all_processes and record.status is Status.STOPPED:
                return
            raise ContainerStateError("container not running")
        if number == signal.SIGKILL:
            if (pidfd := _kill(record.monitor, patience_s=0)) is not None:
                os.close(pidfd)
        else:
            _ask_to_end(directory, number)


def _ask_to_end(directory: ContainerDirectory, number: int) -> None:
    try:
        ask(directory.fd, Request("kill", number))
    except MonitorError as exc:
        if directory.read().status.can_kill:
            raise
        # It ended by itself during the call.
        raise ContainerStateError("container not running") from exc


def delete(store: ContainerStore, container_id: str, *, force: bool = False) -> None:
    """Remove a container that has stopped or never ran, or with `force` any. Raises ContainerNotFound."""
    store.sweep()
    with store.open(container_id) as directory:
        try:
            _delete(directory, force)
        except ContainerNotFound:
            # Another call removed it meanwhile.
            if not force:
                raise


def _delete(directory: ContainerDirectory, force: bool) -> None:
    record = _read_if_whole(directory, force)
    if record is not None and not force and not record.status.can_delete:
        raise ContainerStateError(f"cannot delete container {directory.id} that is not stopped: {record.status}")
    _end_whoever_holds(directory, record)
    directory.lock()
    # A create that held the lock may have gone on until here, and have made a monitor.
    _end_whoever_holds(directory, _read_if_whole(directory, force))
    directory.remove()


def _end_whoever_holds(directory: ContainerDirectory, record: ContainerRecord | None) -> None:
    """End the monitor that the record names; where that is damaged, the one that listens there."""
    if record is not None:
        _end_monitor(record)
    elif (pid := server_pid(directory.fd)) is not None:
        with contextlib.suppress(ProcessLookupError):
            _end_process(ProcessIdentity.of(pid), patience_s=0)


def _read_if_whole(directory: ContainerDirectory, force: bool) -> ContainerRecord | None:
    try:
        return directory.read()
    except StateDirectoryError:
        if not force:
            raise
        return None


def _end_monitor(record: ContainerRecord) -> None:
    """As `_end_process`; a monitor that is about to end may end with its own status."""
    if record.monitor is not None:
        _end_process(record.monitor, _GOODBYE_PATIENCE_S if record.written_status is Status.STOPPED else 0)


def _kill(monitor: ProcessIdentity | None, patience_s: float) -> int | None:
    """SIGKILL to the monitor if it has not ended within `patience_s`, never to another process with its pid.

    Returns its pidfd, which the caller closes, or None if it is gone.
    """
    pidfd = monitor.open_pidfd() if monitor else None
    if pidfd is not None:
        wait_for_exit(pidfd, patience_s)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            os.close(pidfd)
            return None
    return pidfd


def _end_process(monitor: ProcessIdentity, patience_s: float) -> None:
    """Kill the monitor and wait for its end, and for that of what it started. Raises BackendError if it hangs."""
    children = _identities(descendants(monitor.pid))
    pidfd = _kill(monitor, patience_s)
    if pidfd is None:
        return
    try:
        if not wait_for_exit(pidfd, _KILL_PATIENCE_S):
            raise BackendError(
                f"the monitor (pid {monitor.pid}) is killed but has not ended: a call into the kernel is pending",
                remedy="call delete --force again later",
            )
    finally:
        os.close(pidfd)
    _await_ends(children)


def _identities(pids: list[int]) -> list[ProcessIdentity]:
    found = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            found.append(ProcessIdentity.of(pid))
    return found


def _await_ends(processes: list[ProcessIdentity]) -> None:
    """Wait until all have ended: the kernel kills them with the monitor, but not in the same instant."""
    deadline = time.monotonic() + _KILL_PATIENCE_S
    for process in processes:
        if (pidfd := process.open_pidfd()) is not None:
            wait_for_exit(pidfd, deadline - time.monotonic())
            os.close(pidfd)


def state(store: ContainerStore, container_id: str) -> ContainerRecord:
    """What is known of a container. Raises ContainerNotFound."""
    with store.open(container_id) as directory:
        return directory.read()


def process_ids(store: ContainerStore, container_id: str) -> list[int]:
    """The pids of a container's processes on this machine: its monitor, then what that has started; none if stopped."""
    record = state(store, container_id)
    if record.monitor is None or not record.status.can_kill:
        return []
    return [record.monitor.pid, *descendants(record.monitor.pid)]


def state_document(record: ContainerRecord) -> dict[str, object]:
    """The state of the OCI specification, with runc's additions, in runc's order."""
    status = record.status
    annotations = {**record.annotations, **_facts_as_annotations(record.facts)}
    return {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": record.monitor.pid if record.monitor and status.can_kill else 0,
        "status": status.value,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        **({"annotations": annotations} if annotations else {}),
        "owner": "",
    }


def _facts_as_annotations(facts: EnclaveFacts | None) -> Mapping[str, str]:
    if facts is None:
        return {}
    named = {
        "backend": facts.backend.value,
        "cid": None if facts.enclave_cid is None else str(facts.enclave_cid),
        "memory_mib": str(facts.memory_mib),
        "vcpus": str(facts.vcpus),
        "debug": "true" if facts.debug else None,
    }
    pcrs = {"pcr0": facts.pcr0, "pcr1": facts.pcr1, "pcr2": facts.pcr2, "pcr8": facts.pcr8}
    for name, value in pcrs.items():
        if value is not None and facts.debug:
            # What its attestation shows, which proves nothing; and the image's, for whoever compares images.
            named[name], named[f"image_{name}"] = "0" * len(value), value
        else:
            named[name] = value
    return {f"enclave.state.{name}": value for name, value in named.items() if value is not None}


def run(
    store: ContainerStore,
    container_id: str,
    bundle: Bundle,
    request: EnclaveRequest,
    options: CreateOptions,
    *,
    detach: bool = False,
    keep: bool = False,
) -> int:
    """create and start; in the foreground also wait, pass signals on and delete. Returns the exit status."""
    if detach:
        create(store, container_id, bundle, request, options)
        _start_or_remove(store, container_id)
        return 0
    _check_new(container_id, bundle)
    check_terminal(bundle.process.terminal, False, options.console_socket)
    adopt_orphans()
    # A signal must find a container that it can be passed on to, or it would leave one behind: it waits until there is.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED_SIGNALS)
    if bundle.process.terminal:
        return _run_on_terminal(store, container_id, bundle, request, options, keep)
    _create(store, container_id, bundle, request, options, None)
    return _run_in_foreground(store, container_id, keep)


def _run_on_terminal(
    store: ContainerStore,
    container_id: str,
    bundle: Bundle,
    request: EnclaveRequest,
    options: CreateOptions,
    keep: bool,
) -> int:
    ours, monitors = socket.socketpair()
    with ours, monitors:
        _create(store, container_id, bundle, request, options, monitors)
        monitors.close()
        master = receive_master(ours)
    with _wakeup_pipe() as wakeup, raw_terminal(0):
        copy_window_size(0, master)

        def relay_until_closed() -> None:
            def on_wakeup() -> None:
                os.read(wakeup, 4096)
                copy_window_size(0, master)

            relay(master, stdin_fd=0, stdout_fd=1, on_signal_fd=(wakeup, on_wakeup))

        try:
            return _run_in_foreground(store, container_id, keep, relay_until_closed)
        finally:
            os.close(master)


@contextlib.contextmanager
def _wakeup_pipe() -> Iterator[int]:
    """A pipe that becomes readable when a signal arrives, SIGWINCH included."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(previous)
        os.close(read_end)
        os.close(write_end)


def _run_in_foreground(
    store: ContainerStore, container_id: str, keep: bool, attend: Callable[[], None] | None = None
) -> int:
    """Start a created container whose monitor is this process's child now, `attend` to it, and see it to its end."""
    monitor = state(store, container_id).monitor
    if monitor is None:
        raise MonitorError("the container's monitor has not announced itself")
    ended_by = _forward_signals(store, container_id)
    try:
        if attend is None:
            start(store, container_id)
        else:
            _start_while(attend, store, container_id)
    except PyruneError:
        _delete_if_there(store, container_id)
        if not ended_by:
            raise
        # Who ended it during its boot is told so by the exit status, as later on.
        return 128 + ended_by[0]
    status = os.waitstatus_to_exitcode(os.waitpid(monitor.pid, 0)[1])
    if not keep:
        _delete_if_there(store, container_id)
    return status if status >= 0 else 128 - status


def _forward_signals(store: ContainerStore, container_id: str) -> list[int]:
    """Pass signals on, those that have waited included. Returns the list, as it grows, of those that end an enclave."""
    from pyrune.monitor.monitor import ENDING_SIGNALS

    ending: list[int] = []

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ContainerNotFound, ContainerStateError, MonitorError, ReportedError):
            kill(store, container_id, number)
            ending.extend({number} & ENDING_SIGNALS)

    for number in FORWARDED_SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
    return ending


def _start_while(attend: Callable[[], None], store: ContainerStore, container_id: str) -> None:
    """`start`, with `attend` at the same time: a terminal that nobody reads would hold the boot up."""
    failures: list[PyruneError] = []

    def start_or_note() -> None:
        try:
            start(store, container_id)
        except PyruneError as exc:
            failures.append(exc)

    thread = threading.Thread(target=start_or_note, name="start")
    thread.start()
    attend()
    thread.join()
    if failures:
        raise failures[0]


def _start_or_remove(store: ContainerStore, container_id: str) -> None:
    try:
        start(store, container_id)
    except PyruneError:
        _delete_if_there(store, container_id)
        raise


def _delete_if_there(store: ContainerStore, container_id: str) -> None:
    with contextlib.suppress(ContainerNotFound):
        delete(store, container_id, force=True)
