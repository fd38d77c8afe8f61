"""What is known of the containers: one directory each, below the root that --root names.

    <root>/<id>/enclave.json     the record, replaced atomically
    <root>/<id>/control          the monitor's socket, and the other files of the monitor and its enclave

A directory appears under its id when its record is whole, and disappears from it by one rename, so whatever is
killed in between leaves an id either untouched or usable. Half-made and half-removed directories have names with
an @, which no id can have; whoever finds one whose maker is gone removes it.

Calls that change a container hold a lock (flock) on its directory. The record's writer is the creating call until
the monitor has announced itself, and the monitor from then on. Reading needs no lock: whether a container runs is
decided by whether its monitor does, not by what was last written. A root may be shared with runc, whose own record
has another name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from pyrune.backend import BackendName, EnclaveFacts
from pyrune.errors import ContainerExists, ContainerNotFound, InvalidContainerId, StateDirectoryError
from pyrune.linux import ProcessIdentity

RECORD_NAME = "enclave.json"
_NEW, _OLD = "@new-", "@old-"
# NAME_MAX of limits.h: an id is the name of a directory.
_ID_LIMIT = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Status(StrEnum):
    """The statuses of the OCI runtime specification (runtime.md, State)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"

    @property
    def can_start(self) -> bool:
        return self is Status.CREATED

    @property
    def can_kill(self) -> bool:
        return self in (Status.CREATED, Status.RUNNING)

    @property
    def can_delete(self) -> bool:
        """Without --force. A created container may be deleted, as with runc: nothing of it has run."""
        return self in (Status.STOPPED, Status.CREATED)


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """What is kept of one container. `written_status` is the last that its writer knew: see `status`."""

    oci_version: str
    id: str
    bundle: str
    rootfs: str
    created: str
    annotations: Mapping[str, str]
    written_status: Status
    creator: ProcessIdentity
    monitor: ProcessIdentity | None = None
    facts: EnclaveFacts | None = None
    exit_status: int | None = None
    reason: str = ""

    @property
    def status(self) -> Status:
        """The truth: a container whose process is gone has stopped, whatever was written before."""
        if self.written_status is Status.STOPPED:
            return Status.STOPPED
        return self.written_status if (self.monitor or self.creator).is_alive() else Status.STOPPED

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ContainerRecord:
        """Raises ValueError, KeyError or TypeError for what `to_json` did not write."""
        raw = json.loads(text)
        facts = raw["facts"]
        return cls(
            **{
                **raw,
                "written_status": Status(raw["written_status"]),
                "creator": ProcessIdentity(**raw["creator"]),
                "monitor": ProcessIdentity(**raw["monitor"]) if raw["monitor"] else None,
                "facts": EnclaveFacts(**{**facts, "backend": BackendName(facts["backend"])}) if facts else None,
            }
        )


def check_id(container_id: str) -> None:
    """Refuse what runc refuses (libcontainer's validateID): other than letters, digits, _ + - . and the dot names."""
    valid = re.fullmatch(r"[0-9A-Za-z_+.\-]+", container_id) and container_id not in (".", "..")
    if not valid or len(container_id) > _ID_LIMIT:
        raise InvalidContainerId(container_id)


class ContainerDirectory:
    """An open container directory. `fd` stays valid whatever happens to the name. Close it, or use it in a with."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd

    @property
    def id(self) -> str:
        return self.path.name

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> ContainerDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def another_fd(self) -> int:
        """A descriptor for another process, which does not share this one's lock. The caller closes it."""
        with _translated(self.path, "cannot be opened"):
            return os.open(".", _DIRECTORY, dir_fd=self.fd)

    def read(self) -> ContainerRecord:
        """The record as it stands.

        Raises ContainerNotFound where the directory was removed meanwhile, StateDirectoryError for a damaged record.
        """
        return _read_record(self.fd, self.path)

    def write(self, record: ContainerRecord) -> None:
        """Replace the record in one step. Raises StateDirectoryError, with the old record in its place."""
        with _translated(self.path, "cannot be written"):
            write_file_atomically(self.fd, RECORD_NAME, record.to_json().encode())

    def lock(self) -> None:
        """Wait for, and take, the right to change this container; it goes with `close` or the process.

        Raises ContainerNotFound when the container was removed while waiting.
        """
        with _translated(self.path, "cannot be locked"):
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            if not _is_same_directory(self.path, self.fd):
                raise ContainerNotFound(self.id)

    def remove(self) -> None:
        """Take the container out of the root, then delete its files. No matter if somebody has removed it by hand."""
        doomed = self.path.with_name(_OLD + os.urandom(8).hex())
        with _translated(self.path, "cannot be removed"), contextlib.suppress(FileNotFoundError):
            os.rename(self.path, doomed)
        # What cannot be deleted now is left for the next sweep.
        shutil.rmtree(doomed, ignore_errors=True)


class ContainerStore:
    """All containers below one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, container_id: str) -> ContainerDirectory:
        """Raises InvalidContainerId or ContainerNotFound.

        A directory without our record is not a container of ours, nor is one that another user made or could write to:
        a record there may name any process to be killed.
        """
        check_id(container_id)
        path = self.root / container_id
        with _translated(path, "cannot be opened"), contextlib.ExitStack() as undo:
            try:
                fd = os.open(path, _DIRECTORY | os.O_NOFOLLOW)
                undo.callback(os.close, fd)
                os.stat(RECORD_NAME, dir_fd=fd)
                _require_ours(fd, container_id)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise ContainerNotFound(container_id) from exc
                raise
            undo.pop_all()
        return ContainerDirectory(path, fd)

    def create(self, record: ContainerRecord) -> ContainerDirectory:
        """Make the directory of a new container and return it locked. Raises ContainerExists, StateDirectoryError."""
        check_id(record.id)
        self._make_root()
        self.sweep()
        final = self.root / record.id
        if os.path.lexists(final):
            raise ContainerExists(record.id)
        fresh = self.root / (_NEW + os.urandom(8).hex())
        directory = self._make_locked(fresh, final)
        try:
            directory.write(record)
            with _translated(final, "cannot be made"):
                _rename_to_new(fresh, final)
        except BaseException:
            directory.close()
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        return directory

    def records(self) -> Iterator[ContainerRecord]:
        """Every container's record, by id. What is removed meanwhile is left out, and what cannot be read is logged."""
        for name in self._names():
            with contextlib.suppress(ContainerNotFound, InvalidContainerId):
                try:
                    with self.open(name) as directory:
                        record = directory.read()
                except StateDirectoryError as exc:
                    _warn(exc)
                else:
                    yield record

    def sweep(self) -> None:
        """Delete what calls that were killed left half-made or half-removed."""
        left = [name for name in self._names() if name.startswith((_NEW, _OLD))]
        if not left:
            return
        with _translated(self.root, "cannot be locked"), self._root_lock():
            for name in left:
                _remove_if_abandoned(self.root / name)

    def _make_locked(self, fresh: Path, final: Path) -> ContainerDirectory:
        # Under the root's lock: a sweep must not find the new directory before its own lock is taken.
        with _translated(self.root, "cannot be written"), self._root_lock(), contextlib.ExitStack() as undo:
            os.mkdir(fresh, 0o700)
            undo.callback(shutil.rmtree, fresh, ignore_errors=True)
            # The umask may have taken bits away from us as well.
            os.chmod(fresh, 0o700)
            directory = undo.enter_context(ContainerDirectory(final, os.open(fresh, _DIRECTORY)))
            fcntl.flock(directory.fd, fcntl.LOCK_EX)
            undo.pop_all()
        return directory

    @contextlib.contextmanager
    def _root_lock(self) -> Iterator[None]:
        fd = os.open(self.root, _DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _names(self) -> list[str]:
        with _translated(self.root, "cannot be read"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self.root))
        return []

    def _make_root(self) -> None:
        with _translated(self.root, "cannot be made"):
            # Parents that are missing get the same mode, as with runc: a caller's umask may be 0.
            for path in [*reversed(self.root.parents), self.root]:
                if not path.is_dir():
                    path.mkdir(exist_ok=True)
                    path.chmod(0o700)


def write_file_atomically(directory_fd: int, name: str, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in a directory, so that every reader sees the old or the new content, whole. Raises OSError."""
    fresh = f"{name}.{os.urandom(4).hex()}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory_fd)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(content)
        os.rename(fresh, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh, dir_fd=directory_fd)
        raise


def _read_record(directory_fd: int, path: Path) -> ContainerRecord:
    with _translated(path, "cannot be read"):
        try:
            fd = os.open(RECORD_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        except FileNotFoundError as exc:
            raise ContainerNotFound(path.name) from exc
        with os.fdopen(fd, "rb") as file:
            content = file.read()
    try:
        record = ContainerRecord.from_json(content.decode())
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise StateDirectoryError(str(path), f"has a damaged {RECORD_NAME}") from exc
    return replace(record, id=path.name)


@contextlib.contextmanager
def _translated(path: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StateDirectoryError(str(path), problem, exc.errno) from exc


def _rename_to_new(fresh: Path, final: Path) -> None:
    """Raises ContainerExists if another call has made the same id meanwhile: only an empty directory is replaced."""
    try:
        os.rename(fresh, final)
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise ContainerExists(final.name) from exc
        raise


def _warn(problem: StateDirectoryError) -> None:
    import logging

    logging.getLogger(__name__).warning("%s", problem)


def _require_ours(fd: int, container_id: str) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ContainerNotFound(container_id)


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.open(path, _DIRECTORY | os.O_NOFOLLOW)
        try:
            # Its maker holds the lock for as long as it lives.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)


def _is_same_directory(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(fd))
    return False
