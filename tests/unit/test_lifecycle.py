"""What the operations do to a container's process, with a small real process in the monitor's place."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyrune import lifecycle
from pyrune.errors import ContainerNotFound, ContainerStateError, MonitorError, StateDirectoryError
from pyrune.linux import ProcessIdentity, bind_unix
from pyrune.monitor.control import SOCKET_NAME
from pyrune.state import RECORD_NAME, ContainerStore, Status
from tests.support.command import is_alive
from tests.support.containers import new_record
from tests.support.programs import TIMEOUT_S, next_line, open_descriptors, running

SLEEP = "print(flush=True); import signal; signal.pause()"


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return ContainerStore(tmp_path / "root")


@pytest.fixture
def monitor() -> Iterator[subprocess.Popen[str]]:
    with running(SLEEP) as process:
        next_line(process)
        yield process


def make(store: ContainerStore, status: Status, monitor_pid: int, exit_status: int | None = None) -> None:
    """The container c1, with that process as its monitor."""
    record = new_record()
    with store.create(record) as directory:
        identity = ProcessIdentity.of(monitor_pid)
        directory.write(replace(record, written_status=status, monitor=identity, exit_status=exit_status))


def test_kill_ends_the_monitor_and_keeps_no_descriptor(store: ContainerStore, monitor: subprocess.Popen[str]) -> None:
    make(store, Status.RUNNING, monitor.pid)
    before = open_descriptors()
    lifecycle.kill(store, "c1", signal.SIGKILL)
    assert monitor.wait(TIMEOUT_S) == -signal.SIGKILL
    assert open_descriptors() == before
    for all_processes in (False, True):
        if all_processes:
            lifecycle.kill(store, "c1", signal.SIGKILL, all_processes=True)
        else:
            with pytest.raises(ContainerStateError, match=r"^container not running$"):
                lifecycle.kill(store, "c1", signal.SIGKILL)


def test_another_process_with_the_monitors_pid_is_left_alone(
    store: ContainerStore, monitor: subprocess.Popen[str]
) -> None:
    make(store, Status.RUNNING, monitor.pid)
    with store.open("c1") as directory:
        record = directory.read()
        assert record.monitor is not None
        stranger = replace(record.monitor, start_time_ticks=record.monitor.start_time_ticks - 1)
        directory.write(replace(record, monitor=stranger))
    with pytest.raises(ContainerStateError, match=r"^container not running$"):
        lifecycle.kill(store, "c1", signal.SIGKILL)
    lifecycle.delete(store, "c1", force=True)
    assert is_alive(monitor.pid)


def test_a_kill_that_meets_the_monitors_end_finds_no_running_container(
    store: ContainerStore, monitor: subprocess.Popen[str]
) -> None:
    make(store, Status.RUNNING, monitor.pid)
    with store.open("c1") as directory, bind_unix(directory.fd, SOCKET_NAME) as listener:

        def end_without_an_answer() -> None:
            peer, _ = listener.accept()
            directory.write(replace(directory.read(), written_status=Status.STOPPED))
            peer.close()

        thread = threading.Thread(target=end_without_an_answer)
        thread.start()
        with pytest.raises(ContainerStateError, match=r"^container not running$"):
            lifecycle.kill(store, "c1", signal.SIGTERM)
        thread.join()


def test_a_monitor_that_does_not_answer_is_another_error(store: ContainerStore, monitor: subprocess.Popen[str]) -> None:
    make(store, Status.RUNNING, monitor.pid)
    with store.open("c1") as directory, bind_unix(directory.fd, SOCKET_NAME) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(MonitorError):
            lifecycle.kill(store, "c1", signal.SIGTERM)
        thread.join()


def test_delete_lets_a_monitor_end_with_its_own_status(store: ContainerStore) -> None:
    code = "import os, sys; print(flush=True); sys.stdin.readline(); os._exit(7)"
    with running(code) as monitor:
        next_line(monitor)
        make(store, Status.STOPPED, monitor.pid, exit_status=7)
        assert monitor.stdin is not None
        later = threading.Timer(0.1, lambda: print(file=monitor.stdin, flush=True))
        later.start()
        lifecycle.delete(store, "c1")
        later.join()
        assert monitor.wait(TIMEOUT_S) == 7
    assert os.listdir(store.root) == []


def test_delete_does_not_wait_for_ever(
    store: ContainerStore, monitor: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_GOODBYE_PATIENCE_S", 0.01)
    make(store, Status.STOPPED, monitor.pid)
    lifecycle.delete(store, "c1")
    assert monitor.wait(TIMEOUT_S) == -signal.SIGKILL
    assert os.listdir(store.root) == []


def test_what_runs_is_deleted_by_force_only(store: ContainerStore, monitor: subprocess.Popen[str]) -> None:
    make(store, Status.RUNNING, monitor.pid)
    with pytest.raises(ContainerStateError, match=r"^cannot delete container c1 that is not stopped: running$"):
        lifecycle.delete(store, "c1")
    lifecycle.delete(store, "c1", force=True)
    assert monitor.wait(TIMEOUT_S) == -signal.SIGKILL
    with pytest.raises(ContainerNotFound):
        lifecycle.delete(store, "c1", force=True)


def test_a_damaged_record_is_deleted_by_force_only(store: ContainerStore, monitor: subprocess.Popen[str]) -> None:
    make(store, Status.STOPPED, monitor.pid)
    (store.root / "c1" / RECORD_NAME).write_text("{")
    with pytest.raises(StateDirectoryError, match="damaged"):
        lifecycle.delete(store, "c1")
    lifecycle.delete(store, "c1", force=True)
    assert os.listdir(store.root) == []


@pytest.mark.parametrize("status", Status)
def test_only_what_was_created_and_not_started_can_be_started(
    status: Status, store: ContainerStore, monitor: subprocess.Popen[str]
) -> None:
    make(store, status, monitor.pid)
    problem = {Status.STOPPED: "cannot start a container that has stopped", Status.CREATED: "container not running"}
    with pytest.raises(ContainerStateError) as caught:
        lifecycle.start(store, "c1")
    assert str(caught.value) == problem.get(status, "cannot start an already running container")


def test_the_state_document_is_runcs_with_facts_as_annotations(
    store: ContainerStore, monitor: subprocess.Popen[str]
) -> None:
    make(store, Status.RUNNING, monitor.pid)
    document = lifecycle.state_document(lifecycle.state(store, "c1"))
    assert list(document) == [
        *("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"),
    ]
    assert (document["id"], document["pid"], document["status"]) == ("c1", monitor.pid, "running")
    monitor.kill()
    monitor.wait()
    document = lifecycle.state_document(lifecycle.state(store, "c1"))
    assert (document["pid"], document["status"]) == (0, "stopped")
    assert lifecycle.process_ids(store, "c1") == []


LISTEN = """
import os, sys, time
from pyrune.linux import bind_unix
listener = bind_unix(os.open(sys.argv[1], os.O_DIRECTORY), "control")
print(flush=True)
time.sleep(600)
"""


def test_a_damaged_record_does_not_hide_the_monitor_from_delete_force(store: ContainerStore) -> None:
    make(store, Status.RUNNING, os.getpid())
    (store.root / "c1" / RECORD_NAME).write_text("{")
    with running(LISTEN, str(store.root / "c1")) as listening:
        next_line(listening)
        with pytest.raises(StateDirectoryError):
            lifecycle.delete(store, "c1")
        lifecycle.delete(store, "c1", force=True)
        assert listening.wait(TIMEOUT_S) == -signal.SIGKILL
    assert not (store.root / "c1").exists()
