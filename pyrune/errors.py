"""The one exception tree.

Every failure that a user can meet is a `PyruneError`. Its text is made here, in `__init__`, from facts that stay
readable as attributes: one line, lower case, what was tried on what, and what to do about it. Callers such as
containerd match some of these texts, so they are an interface; the tests pin them.
"""

from __future__ import annotations

from typing import ClassVar


def printable(text: str) -> str:
    """`text` with every control character escaped, so that foreign bytes cannot write to a terminal or break a log.

    For text whose author is not the operator: guests, images, config files.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class PyruneError(Exception):
    """The root of the tree. `exit_status` is what the command line exits with."""

    exit_status: ClassVar[int] = 1


class EifError(PyruneError):
    """An enclave image that is not one. `offset` is where in the file, in bytes, if it has a place."""

    def __init__(self, problem: str, *, offset: int | None = None) -> None:
        self.problem = problem
        self.offset = offset
        super().__init__(problem if offset is None else f"{problem} (at offset {offset})")


class BundleError(PyruneError):
    """A bundle that cannot be used. `file` as the user named it; `json_path` such as `process.args[0]`."""

    def __init__(self, file: str, problem: str, *, json_path: str = "", remedy: str = "") -> None:
        self.file = file
        self.json_path = json_path
        self.problem = problem
        self.remedy = remedy
        where = f"{file}: {json_path}" if json_path else file
        text = f"{where}: {problem}"
        super().__init__(printable(f"{text}; {remedy}" if remedy else text))


class AnnotationError(PyruneError):
    """An enclave.* annotation or ENCLAVE_* variable that cannot be obeyed. Values of variables are never quoted."""

    def __init__(self, key: str, problem: str, *, remedy: str = "") -> None:
        self.key = key
        self.problem = problem
        self.remedy = remedy
        text = f"{key}: {problem}"
        super().__init__(printable(f"{text}; {remedy}" if remedy else text))


class BackendError(PyruneError):
    """A back end that could not do what was asked of it. `remedy` says what the operator can do."""

    def __init__(self, problem: str, *, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class BootError(BackendError):
    """An enclave that did not come up. `console_tail` is the end of what its console printed, escaped."""

    def __init__(self, problem: str, *, console_tail: str = "", remedy: str = "") -> None:
        self.console_tail = console_tail
        if console_tail:
            problem = f"{problem}; its console ended with: {console_tail}"
        super().__init__(problem, remedy=remedy)


class InvalidContainerId(PyruneError):
    """An id that cannot be one. The texts are runc's."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        super().__init__("invalid container ID format" if container_id else "container id cannot be empty")


class ContainerNotFound(PyruneError):
    """No such container. containerd and dockerd match "container does not exist"."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        super().__init__("container does not exist")


class ContainerExists(PyruneError):
    """The id is taken."""

    def __init__(self, container_id: str) -> None:
        self.container_id = container_id
        super().__init__("container with given ID already exists")


class ContainerStateError(PyruneError):
    """The container is in no state for the operation. The texts are runc's; containerd matches some."""


class StateDirectoryError(PyruneError):
    """The state directory does not do what it should. `number` is the errno, 0 if there is none."""

    def __init__(self, path: str, problem: str, number: int | None = 0) -> None:
        self.path = path
        self.problem = problem
        self.number = number or 0
        text = f"state directory {path} {problem}"
        super().__init__(f"{text} (error {number}); give another one with --root" if number else text)


class UsageError(PyruneError):
    """Options that do not fit each other."""


class MonitorError(PyruneError):
    """The container's monitor failed, or does not answer."""


class ReportedError(PyruneError):
    """An error that happened in another process of pyrune, in its own words."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
