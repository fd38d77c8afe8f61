"""Container directories: they appear and disappear at once, whatever is killed, and never lie about what runs."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.backend import BackendName, EnclaveFacts
from pyrune.errors import ContainerExists, ContainerNotFound, InvalidContainerId, StateDirectoryError
from pyrune.linux import ProcessIdentity, read_stat
from pyrune.state import (
    RECORD_NAME,
    ContainerDirectory,
    ContainerRecord,
    ContainerStore,
    Status,
    check_id,
)
from tests.support.command import wait_until
from tests.support.containers import new_record
from tests.support.programs import TIMEOUT_S, next_line, open_descriptors, output_of, running

ME = ProcessIdentity.of(os.getpid())
SLEEP = "print(flush=True); import signal; signal.pause()"


@pytest.fixture
def store(tmp_path: Path) -> ContainerStore:
    return ContainerStore(tmp_path / "root")


@pytest.fixture
def directory(store: ContainerStore) -> Iterator[ContainerDirectory]:
    """The locked directory of the new container c1."""
    with store.create(new_record()) as made:
        yield made


@contextlib.contextmanager
def no_descriptor_is_lost() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def test_what_others_planted_or_could_write_to_is_no_container(store: ContainerStore) -> None:
    """A record may name a process to be killed: it counts only if nobody else can have written it."""
    with store.create(new_record()) as made:
        os.chmod(made.path, 0o777)
        with pytest.raises(ContainerNotFound):
            store.open("c1")
        os.chmod(made.path, 0o700)
        store.open("c1").close()
        if os.geteuid() == 0:
            os.chown(made.path, 65534, 65534)
            with pytest.raises(ContainerNotFound):
                store.open("c1")
        assert list(store.records()) == [] or os.geteuid() != 0


# Ids


@pytest.mark.parametrize("container_id", ["a", "A-b_c+d.e", "0", "..a", "...", "-f", "+", "_", "x" * 255])
def test_an_id_may_be(container_id: str) -> None:
    check_id(container_id)


@pytest.mark.parametrize(
    "container_id",
    [".", "..", "/", "a/b", "../a", "a b", "a\n", "\n", "a@b", "@new-0", "é", "٣", "a\0b", "a,b", "a:b", "x" * 256],
)
def test_an_id_may_not_be(container_id: str) -> None:
    with pytest.raises(InvalidContainerId, match=r"^invalid container ID format$"):
        check_id(container_id)


def test_an_id_may_not_be_empty() -> None:
    with pytest.raises(InvalidContainerId, match=r"^container id cannot be empty$"):
        check_id("")


@pytest.mark.parametrize("container_id", ["a/b", "..", "x" * 256])
def test_no_call_takes_a_bad_id(container_id: str, store: ContainerStore) -> None:
    with pytest.raises(InvalidContainerId):
        store.open(container_id)
    with pytest.raises(InvalidContainerId):
        store.create(new_record(container_id))
    assert not store.root.exists()


# Records

identities = st.builds(ProcessIdentity, st.integers(1), st.integers(0), st.text())
facts = st.builds(
    EnclaveFacts,
    backend=st.sampled_from(BackendName),
    enclave_cid=st.integers(),
    memory_mib=st.integers(),
    vcpus=st.integers(),
    pcr0=st.text(),
    pcr1=st.text(),
    pcr2=st.text(),
    pcr8=st.none() | st.text(),
)
any_text = st.text(st.characters(exclude_categories=[]))
records = st.builds(
    ContainerRecord,
    oci_version=any_text,
    id=any_text,
    bundle=any_text,
    rootfs=any_text,
    created=any_text,
    annotations=st.dictionaries(any_text, any_text),
    written_status=st.sampled_from(Status),
    creator=identities,
    monitor=st.none() | identities,
    facts=st.none() | facts,
    exit_status=st.none() | st.integers(),
    reason=any_text,
)


@given(records)
def test_a_record_is_read_as_it_was_written(record: ContainerRecord) -> None:
    content = record.to_json().encode()
    assert ContainerRecord.from_json(content.decode()) == record


def test_a_record_without_its_end_is_damaged_at_every_length(directory: ContainerDirectory) -> None:
    content = (directory.path / RECORD_NAME).read_bytes()
    for length in range(len(content)):
        (directory.path / RECORD_NAME).write_bytes(content[:length])
        with pytest.raises(StateDirectoryError, match=r"c1 has a damaged enclave\.json"):
            directory.read()


@pytest.mark.parametrize(
    "content",
    [
        *(b"\0" * 100, b"\xff\xfe", b"{}", b"[]", b"null", b"7", b'"text"', b"[" * 100_000, b"9" * 5000),
        *(b'{"facts": 1}', b'{"facts": null, "written_status": "asleep"}'),
    ],
)
def test_what_is_no_record_is_damaged(content: bytes, directory: ContainerDirectory) -> None:
    (directory.path / RECORD_NAME).write_bytes(content)
    with no_descriptor_is_lost(), pytest.raises(StateDirectoryError, match=r"has a damaged enclave\.json"):
        directory.read()


def test_a_record_with_a_key_too_many_is_damaged(directory: ContainerDirectory) -> None:
    record = json.loads((directory.path / RECORD_NAME).read_text())
    (directory.path / RECORD_NAME).write_text(json.dumps({**record, "colour": "red"}))
    with pytest.raises(StateDirectoryError):
        directory.read()


def test_the_id_of_a_record_is_the_name_of_its_directory(store: ContainerStore) -> None:
    store.create(new_record("old")).close()
    os.rename(store.root / "old", store.root / "new")
    with store.open("new") as directory:
        assert directory.read().id == "new"


def test_a_reader_sees_the_old_or_the_new_record_and_nothing_between(directory: ContainerDirectory) -> None:
    versions = [replace(new_record(), reason=letter * 5000) for letter in "abcdefgh"]
    directory.write(versions[0])
    done = threading.Event()

    def write_all() -> None:
        for _ in range(30):
            for version in versions:
                directory.write(version)
        done.set()

    thread = threading.Thread(target=write_all)
    thread.start()
    while not done.is_set():
        assert directory.read() in versions
    thread.join()
    assert sorted(os.listdir(directory.path)) == [RECORD_NAME]


def test_a_file_that_cannot_be_written_whole_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    code = """
import os, resource, signal, sys
from pyrune.state import write_file_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file_atomically(os.open(sys.argv[1], os.O_RDONLY), "file", b"x" * 2000)
except OSError as exc:
    print(exc.errno, os.listdir(sys.argv[1]))
"""
    with running(code, str(tmp_path)) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert output == "27 ['file']\n"
    assert (tmp_path / "file").read_text() == "old"


# Statuses


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    with running(SLEEP) as sleeper:
        next_line(sleeper)
        yield sleeper


@pytest.mark.parametrize("written", [Status.CREATING, Status.CREATED, Status.RUNNING])
def test_a_container_has_stopped_when_its_monitor_has(written: Status, process: subprocess.Popen[str]) -> None:
    record = replace(new_record(), written_status=written, monitor=ProcessIdentity.of(process.pid))
    assert record.status is written
    process.kill()
    wait_until(lambda: record.status is Status.STOPPED, "the status is wrong")
    process.wait()
    assert record.status is Status.STOPPED


def test_a_container_whose_creator_died_before_there_was_a_monitor_has_stopped(process: subprocess.Popen[str]) -> None:
    record = new_record(creator=ProcessIdentity.of(process.pid))
    statuses = [record.status]
    process.kill()
    process.wait()
    assert [*statuses, record.status] == [Status.CREATING, Status.STOPPED]


def test_a_container_outlives_its_creator(process: subprocess.Popen[str]) -> None:
    record = replace(new_record(creator=ProcessIdentity.of(process.pid)), written_status=Status.CREATED, monitor=ME)
    process.kill()
    process.wait()
    assert record.status is Status.CREATED


def test_a_pid_that_was_given_to_another_process_does_not_count() -> None:
    stranger = replace(ME, start_time_ticks=ME.start_time_ticks - 1)
    assert replace(new_record(), written_status=Status.RUNNING, monitor=stranger).status is Status.STOPPED
    rebooted = replace(ME, boot_id="before")
    assert replace(new_record(), written_status=Status.RUNNING, monitor=rebooted).status is Status.STOPPED


def test_what_has_stopped_stays_so_while_its_monitor_says_goodbye() -> None:
    assert replace(new_record(), written_status=Status.STOPPED, monitor=ME).status is Status.STOPPED


@pytest.mark.parametrize(
    ("status", "start", "kill", "delete"),
    [
        (Status.CREATING, False, False, False),
        (Status.CREATED, True, True, True),
        (Status.RUNNING, False, True, False),
        (Status.STOPPED, False, False, True),
    ],
)
def test_what_a_status_allows(status: Status, start: bool, kill: bool, delete: bool) -> None:
    assert (status.can_start, status.can_kill, status.can_delete) == (start, kill, delete)


# Directories


def test_a_new_container_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o022, 0o077, 0o777):
        store = ContainerStore(tmp_path / f"{umask:o}" / "some" / "root")
        previous = os.umask(umask)
        try:
            store.create(new_record()).close()
        finally:
            os.umask(previous)
        modes = {
            path.relative_to(tmp_path).parts[1:]: stat.S_IMODE(path.stat().st_mode)
            for path in [store.root.parent, store.root, store.root / "c1", store.root / "c1" / RECORD_NAME]
        }
        assert modes == {
            ("some",): 0o700,
            ("some", "root"): 0o700,
            ("some", "root", "c1"): 0o700,
            ("some", "root", "c1", RECORD_NAME): 0o600,
        }


def test_a_container_can_be_opened_read_and_removed(store: ContainerStore, directory: ContainerDirectory) -> None:
    with store.open("c1") as again:
        assert again.read() == new_record()
    directory.remove()
    assert os.listdir(store.root) == []
    with pytest.raises(ContainerNotFound, match=r"^container does not exist$"):
        store.open("c1")
    # Who had it open before sees that it has gone, too.
    with pytest.raises(ContainerNotFound):
        directory.read()


def test_an_id_can_be_used_once_at_a_time(store: ContainerStore, directory: ContainerDirectory) -> None:
    with no_descriptor_is_lost(), pytest.raises(ContainerExists, match=r"^container with given ID already exists$"):
        store.create(new_record())
    assert os.listdir(store.root) == ["c1"]
    directory.remove()
    store.create(new_record()).close()


CREATE_MANY = """
import sys
from pathlib import Path
from pyrune.errors import ContainerExists
from pyrune.state import ContainerStore
from tests.support.containers import new_record
store = ContainerStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    try:
        store.create(new_record(f"c{number}")).close()
        print(number)
    except ContainerExists:
        pass
"""


def test_of_calls_at_once_exactly_one_gets_the_id(store: ContainerStore) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(running(CREATE_MANY, str(store.root))) for _ in range(4)]
        for process in processes:
            assert next_line(process) == "ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        won = [process.communicate(timeout=TIMEOUT_S)[0].split() for process in processes]
        assert [process.returncode for process in processes] == [0] * 4
    assert sorted(int(number) for numbers in won for number in numbers) == list(range(100))
    assert len(os.listdir(store.root)) == 100


# Killed at every step: the process dies before its n-th call that touches the file system or a lock.

# Which calls count as a step: audit events of Python. Each step is tried in a process of its own, forked.
STEPS = '''
import errno, os, signal, sys
from pathlib import Path
from pyrune.errors import ContainerNotFound, PyruneError
from pyrune.state import ContainerStore
from tests.support.containers import new_record

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "os.chmod"}

class AtStep:
    """Calls `act` at the step of that number, if there is one while this is entered."""

    def __init__(self, step, act):
        self.left, self.act, self.armed = step, act, False
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        # Making a file object of an open descriptor is an event, too, but no system call.
        if self.armed and (event == "fcntl.flock" or (event in EVENTS and not isinstance(arguments[0], int))):
            self.left -= 1
            if self.left == -1:
                self.act()

    def __enter__(self):
        self.armed = True

    def __exit__(self, *_):
        self.armed = False

def each_step(work):
    for step in range(100):
        store = ContainerStore(Path(sys.argv[1]) / str(step))
        if (pid := os.fork()) == 0:
            try:
                work(store, step)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        yield store, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.exit("the operation has no end")
'''


KILLED = """
def work(store, step):
    directory = store.create(new_record()) if sys.argv[2] == "remove" else None
    with AtStep(step, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        directory.remove() if directory else store.create(new_record())

for store, status in each_step(work):
    try:
        with store.open("c1") as directory:
            print(directory.read().status)
            directory.lock()
            directory.remove()
    except ContainerNotFound:
        print("untouched")
    store.create(new_record()).close()
    assert os.listdir(store.root) == ["c1"]
    if status == 0:
        break
    assert status == -signal.SIGKILL
"""


@pytest.mark.parametrize("operation", ["create", "remove"])
def test_killed_at_any_step_it_leaves_an_id_untouched_or_usable(operation: str, tmp_path: Path) -> None:
    seen = output_of(STEPS + KILLED, str(tmp_path), operation).split()
    assert len(seen) > 4
    assert set(seen) == {"untouched", "stopped"}


def test_a_sweep_leaves_what_is_just_being_made_or_removed(store: ContainerStore) -> None:
    code = """
import os, sys
from pathlib import Path
from pyrune.state import ContainerStore
from tests.support.containers import new_record
def hook(event, arguments):
    if event == "os.rename" and "@new-" in str(arguments[0]) and "enclave.json" not in str(arguments[0]):
        print("stops before", *arguments, flush=True)
        sys.stdin.readline()
sys.addaudithook(hook)
ContainerStore(Path(sys.argv[1])).create(new_record())
"""
    with running(code, str(store.root)) as process:
        assert "stops before" in next_line(process)
        (half_made,) = os.listdir(store.root)
        store.sweep()
        assert os.listdir(store.root) == [half_made]
        process.communicate("\n", timeout=TIMEOUT_S)
    assert os.listdir(store.root) == ["c1"]


def test_a_sweep_takes_away_what_is_abandoned_and_nothing_else(store: ContainerStore) -> None:
    for name in ("@new-1", "@old-2", "@other", "foreign", "new-1"):
        (store.root / name / "deep").mkdir(parents=True)
    (store.root / "@new-file").touch()
    (store.root / "@old-link").symlink_to("foreign")
    with no_descriptor_is_lost():
        store.sweep()
    assert sorted(os.listdir(store.root)) == ["@new-file", "@old-link", "@other", "foreign", "new-1"]


def test_a_sweep_of_no_root_is_nothing(store: ContainerStore) -> None:
    store.sweep()
    assert list(store.records()) == []
    assert not store.root.exists()


# Locks


def test_a_lock_is_one_callers_at_a_time(store: ContainerStore, directory: ContainerDirectory) -> None:
    taken = threading.Event()

    def take() -> None:
        with store.open("c1") as mine:
            mine.lock()
            taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.1)
    directory.close()
    assert taken.wait(TIMEOUT_S)
    thread.join()


def test_who_waits_for_the_lock_of_a_container_that_is_removed_hears_so(
    store: ContainerStore, directory: ContainerDirectory
) -> None:
    code = """
import sys
from pathlib import Path
from pyrune.errors import ContainerNotFound
from pyrune.state import ContainerStore
with ContainerStore(Path(sys.argv[1])).open("c1") as mine:
    print("waits", flush=True)
    try:
        mine.lock()
    except ContainerNotFound:
        print("gone", flush=True)
"""
    with running(code, str(store.root)) as process:
        assert next_line(process) == "waits"
        wait_until(lambda: _sleeps(process.pid), "it does not wait")
        directory.remove()
        directory.close()
        # Even a new container of the same name is not the one that was waited for.
        store.create(new_record()).close()
        assert next_line(process) == "gone"


def _sleeps(pid: int) -> bool:
    found = read_stat(pid)
    return found is not None and found.state == "S"


def test_the_lock_does_not_go_with_the_descriptor_for_the_monitor(
    store: ContainerStore, directory: ContainerDirectory
) -> None:
    other = directory.another_fd()
    assert os.path.samestat(os.fstat(other), os.fstat(directory.fd))
    assert not os.get_inheritable(other)
    directory.close()
    with store.open("c1") as mine:
        mine.lock()
    os.close(other)


# A root that is shared, or broken


def test_directories_of_others_are_no_containers_of_ours(store: ContainerStore, directory: ContainerDirectory) -> None:
    (store.root / "runcs").mkdir()
    (store.root / "runcs" / "state.json").write_text("{}")
    (store.root / "file").touch()
    (store.root / "link").symlink_to("c1")
    (store.root / "with space").mkdir()
    (store.root / "broken").symlink_to("nowhere")
    for name in ("runcs", "file", "link", "broken"):
        with no_descriptor_is_lost(), pytest.raises(ContainerNotFound):
            store.open(name)
        with no_descriptor_is_lost(), pytest.raises(ContainerExists):
            store.create(new_record(name))
    assert [record.id for record in store.records()] == ["c1"]
    assert (store.root / "runcs" / "state.json").exists()


def test_one_damaged_record_does_not_hide_the_others(store: ContainerStore, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        store.create(new_record(name)).close()
    (store.root / "b" / RECORD_NAME).write_text("{")
    assert [record.id for record in store.records()] == ["a", "c"]
    assert "b has a damaged enclave.json" in caplog.text


def test_a_root_that_is_a_file_is_an_error_of_ours(store: ContainerStore) -> None:
    store.root.touch()
    with (
        no_descriptor_is_lost(),
        pytest.raises(StateDirectoryError, match=r"root cannot be made \(error 17\); give an"),
    ):
        store.create(new_record())
    with pytest.raises(ContainerNotFound):
        store.open("c1")
    assert list(store.records()) == []


def test_a_container_that_was_removed_by_hand_can_be_removed(directory: ContainerDirectory) -> None:
    (directory.path / RECORD_NAME).unlink()
    directory.path.rmdir()
    directory.remove()
    with pytest.raises(ContainerNotFound):
        directory.lock()


FAILING = """
def work(store, step):
    directory = store.create(new_record())
    another_record = new_record("c2")
    (store.root / "@old-1").mkdir()
    operation = {
        "create": lambda: store.create(another_record).close(),
        "write": lambda: directory.write(another_record),
        "read": lambda: directory.read(),
        "lock": lambda: directory.lock(),
        "another": lambda: os.close(directory.another_fd()),
        "remove": lambda: directory.remove(),
        "open": lambda: store.open("c1").close(),
        "records": lambda: list(store.records()),
    }[sys.argv[2]]
    before = os.listdir("/proc/self/fd")
    def fail():
        raise OSError(errno.ENOSPC, "the disk is full")
    failure = AtStep(step, fail)
    try:
        with failure:
            operation()
        print("tolerated" if failure.left < 0 else "worked", flush=True)
    except PyruneError as exc:
        assert "disk" not in str(exc) and "(error 28)" in str(exc), exc
        print("failed", flush=True)
    assert os.listdir("/proc/self/fd") == before
    assert not [name for name in os.listdir(store.root) if name.startswith("@new")]
    os._exit(0 if failure.left < 0 else 77)

for store, status in each_step(work):
    if status == 77:
        break
    assert status == 0
"""


@pytest.mark.parametrize("operation", ["create", "write", "read", "lock", "another", "remove", "open", "records"])
def test_a_call_that_fails_at_any_step_is_an_error_of_ours_and_leaves_nothing(operation: str, tmp_path: Path) -> None:
    words = output_of(STEPS + FAILING, str(tmp_path), operation).split()
    assert words[-1] == "worked"
    assert "failed" in words
