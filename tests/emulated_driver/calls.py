"""What each intercepted call comes to: whose it is, what the log says of it, which fault strikes it.

Calls on files are answered at once; calls on the device and on vsock sockets, which may have to wait, each in a thread
of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.emulated_driver import kernel
from tests.emulated_driver.driver import Driver, Enclave
from tests.emulated_driver.faults import Faults
from tests.emulated_driver.files import DEVICE, PATH_ARGUMENT, Files, open_flags
from tests.emulated_driver.journal import Fact, Journal, error_name
from tests.emulated_driver.notification import (
    LET_THROUGH,
    Answer,
    CallerGone,
    Failure,
    NewDescriptor,
    Notification,
    Value,
)
from tests.emulated_driver.scenario import Point
from tests.emulated_driver.task import Task
from tests.emulated_driver.vsock import PARENT_CID, VsockSpace, address_of

Facts = dict[str, Fact]
# Carries a call out and adds to what the log says of it. Raises OSError.
Work = Callable[[Facts], Answer]
Ioctl = Callable[[Enclave, Task, int, Callable[[], None]], int]

_IOCTL_NAMES: Final = {
    kernel.NE_CREATE_VM: "NE_CREATE_VM",
    kernel.NE_ADD_VCPU: "NE_ADD_VCPU",
    kernel.NE_GET_IMAGE_LOAD_INFO: "NE_GET_IMAGE_LOAD_INFO",
    kernel.NE_SET_USER_MEMORY_REGION: "NE_SET_USER_MEMORY_REGION",
    kernel.NE_START_ENCLAVE: "NE_START_ENCLAVE",
}
# Calls on a vsock socket that neither wait nor are worth a line in the log.
_SMALL_SOCKET_CALLS: Final = frozenset({"getsockname", "getpeername", "getsockopt", "setsockopt"})


@dataclass(frozen=True, slots=True)
class Calls:
    """See the module."""

    files: Files
    driver: Driver
    space: VsockSpace
    faults: Faults
    journal: Journal

    def take(self, note: Notification) -> None:
        """Answer a call, now or later. Raises CallerGone."""
        try:
            self._take(note, Task(note.task))
        except OSError as exc:
            # Either the caller is gone, or it gave a pointer to nowhere.
            note.require_waiting()
            note.answer(Failure(exc.errno or errno.EIO))

    def _take(self, note: Notification, task: Task) -> None:
        if note.name in PATH_ARGUMENT:
            self._on_path(note, task)
        elif note.name == "ioctl":
            self._on_ioctl(note, task)
        elif note.name == "socket":
            facts: Facts = {"type": note.arguments[1], "host_network": task.is_in_own_network}
            self._serve(note, "socket", facts, lambda _: self.space.open(note.arguments[1]))
        else:
            self._on_socket(note, task)

    def _on_path(self, note: Notification, task: Task) -> None:
        try:
            path = self.files.resolve(task, note)
        except OSError:
            # What the kernel will say about such a path is right.
            path = None
        note.require_waiting()
        if path is None:
            note.answer(LET_THROUGH)
        elif path == DEVICE and note.name.startswith("open"):
            flags = open_flags(task, note)
            self._serve(note, "open", {"flags": flags}, lambda _: self.files.open_device(flags))
        else:
            note.answer(_tried(lambda: self.files.carry_out(task, note, path)))

    def _on_ioctl(self, note: Notification, task: Task) -> None:
        fd, command, argument = note.arguments[0], note.arguments[1] & 0xFFFFFFFF, note.arguments[2]
        identity = task.identify(fd)
        note.require_waiting()
        is_device = self.files.is_device(identity)
        if command == kernel.VM_SOCKETS_GET_LOCAL_CID and (is_device or self.space.is_ours(identity)):
            note.answer(_tried(lambda: _write_u32(task, argument, PARENT_CID)))
        elif (enclave := self.driver.enclave(identity)) is not None:
            self._on_enclave_ioctl(note, task, enclave, command)
        elif is_device:
            self._on_device_ioctl(note, task, command)
        else:
            note.answer(LET_THROUGH)

    def _on_device_ioctl(self, note: Notification, task: Task, command: int) -> None:
        if command != kernel.NE_CREATE_VM:
            self._serve(note, "ioctl", {"command": command}, _refuse)
            return

        def create(facts: Facts, device: Callable[[], None]) -> Answer:
            fd, facts["enclave"] = self.driver.create_vm(task, note.arguments[2], device)
            return NewDescriptor(fd, close_on_exec=True)

        self._serve_with_device(note, "NE_CREATE_VM", {}, create)

    def _on_enclave_ioctl(self, note: Notification, task: Task, enclave: Enclave, command: int) -> None:
        methods: dict[int, tuple[Ioctl, str]] = {
            kernel.NE_ADD_VCPU: (self.driver.add_vcpu, "vcpu_id"),
            kernel.NE_GET_IMAGE_LOAD_INFO: (self.driver.get_image_load_info, "memory_offset"),
            kernel.NE_SET_USER_MEMORY_REGION: (self.driver.set_user_memory_region, "pages"),
            kernel.NE_START_ENCLAVE: (self.driver.start_enclave, "enclave_cid"),
        }
        facts: Facts = {"enclave": enclave.number}
        if command not in methods:
            self._serve(note, "ioctl", facts | {"command": command}, _refuse)
            return
        method, outcome = methods[command]
        name = _IOCTL_NAMES[command]
        with contextlib.suppress(OSError):
            facts["arguments"] = self.driver.describe_argument(name, task, note.arguments[2])
        # As in the kernel, the file is not closed while a call on it is under way.
        held = task.copy(note.arguments[0])

        def work(facts: Facts, device: Callable[[], None]) -> Answer:
            facts[outcome] = method(enclave, task, note.arguments[2], device)
            return Value()

        self._serve_with_device(note, name, facts, work, held)

    def _on_socket(self, note: Notification, task: Task) -> None:
        identity = task.identify(note.arguments[0])
        note.require_waiting()
        if not self.space.is_ours(identity):
            note.answer(LET_THROUGH)
        elif note.name in _SMALL_SOCKET_CALLS:
            note.answer(_tried(lambda: self._socket_call(note, task)))
        else:
            facts: Facts = {}
            if note.name in ("bind", "connect"):
                with contextlib.suppress(OSError):
                    address = address_of(task.read(note.arguments[1], min(note.arguments[2] & 0xFFFFFFFF, 16)))
                    facts["arguments"] = {"cid": address.cid, "port": address.port}
            self._serve(note, note.name.rstrip("4"), facts, lambda _: self._socket_call(note, task))

    def _socket_call(self, note: Notification, task: Task) -> Answer:
        fd = task.copy(note.arguments[0])
        try:
            return self.space.carry_out(task, note, fd)
        finally:
            os.close(fd)

    def _serve_with_device(
        self,
        note: Notification,
        name: str,
        facts: Facts,
        work: Callable[[Facts, Callable[[], None]], Answer],
        held: int = -1,
    ) -> None:
        number = self.faults.number(name)

        def device() -> None:
            self.faults.strike(name, number, Point.DEVICE, note)

        self._serve(note, name, facts, lambda facts: work(facts, device), number, held)

    def _serve(self, note: Notification, name: str, facts: Facts, work: Work, number: int = 0, held: int = -1) -> None:
        """Carry a call out in a thread, with the faults that strike it, and log it. `held` is closed before the end."""
        number = number or self.faults.number(name)

        def serve() -> None:
            facts["pid"] = facts["tid"] = note.task
            answer = None
            try:
                with contextlib.suppress(OSError):
                    facts["pid"] = Task(note.task).pid
                try:
                    answer = self._struck(note, name, number, lambda: work(facts))
                finally:
                    if held >= 0:
                        os.close(held)
            except CallerGone:
                pass
            self._conclude(note, name, number, facts, answer)

        threading.Thread(target=serve, daemon=True).start()

    def _conclude(self, note: Notification, name: str, number: int, facts: Facts, answer: Answer | None) -> None:
        """Log a call and answer it; None, or a caller that is gone, is a call whose caller was killed."""
        if answer is None or not note.is_waiting:
            facts |= {"result": "killed"}
        elif isinstance(answer, Failure):
            facts |= {"result": -1, "error": error_name(answer.number)}
        else:
            facts |= {"result": _result(answer)}
        # The line comes first: who has the answer may look for it.
        self.journal.write(call=name, nth=number, **facts)
        if answer is not None:
            with contextlib.suppress(CallerGone):
                note.answer(answer)

    def _struck(self, note: Notification, name: str, number: int, work: Callable[[], Answer]) -> Answer:
        answer: Answer = LET_THROUGH
        try:
            self.faults.strike(name, number, Point.CALL, note)
            answer = work()
            self.faults.strike(name, number, Point.RETURN, note)
        except (OSError, CallerGone) as exc:
            if isinstance(answer, NewDescriptor):
                os.close(answer.fd)
            if isinstance(exc, CallerGone):
                raise
            return Failure(exc.errno or errno.EIO)
        return answer


def _result(answer: Answer) -> Fact:
    match answer:
        case Value(number):
            return number
        case NewDescriptor():
            return "descriptor"
        case _:
            return "the kernel's"


def _tried(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except OSError as exc:
        return Failure(exc.errno or errno.EIO)


def _refuse(_facts: Facts) -> Answer:
    return Failure(errno.ENOTTY)


def _write_u32(task: Task, address: int, number: int) -> Answer:
    task.write(address, number.to_bytes(4, "little"))
    return Value()
