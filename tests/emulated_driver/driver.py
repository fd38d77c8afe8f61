"""The driver: five ioctls, their checks in the driver's order, and what becomes of an enclave when it is closed.

Sources: drivers/virt/nitro_enclaves/ne_misc_dev.c, include/uapi/linux/nitro_enclaves.h, and what the driver was seen
to do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from tests.emulated_driver.cpu_pool import (
    ERR_INVALID_VCPU,
    ERR_NO_CPUS_AVAIL_IN_POOL,
    ERR_VCPU_ALREADY_USED,
    ERR_VCPU_NOT_IN_CPU_POOL,
    CpuPool,
)
from tests.emulated_driver.image import LOAD_OFFSET
from tests.emulated_driver.journal import Journal
from tests.emulated_driver.memory import EnclaveMemory, MemoryMap
from tests.emulated_driver.scenario import Scenario
from tests.emulated_driver.task import FileIdentity, Task, identify_own

ERR_NO_MEM_REGIONS_ADDED: Final = 266
ERR_NO_VCPUS_ADDED: Final = 267
ERR_ENCLAVE_MEM_MIN_SIZE: Final = 268
ERR_FULL_CORES_NOT_USED: Final = 269
ERR_NOT_IN_INIT_STATE: Final = 270
ERR_INVALID_FLAG_VALUE: Final = 274
ERR_INVALID_ENCLAVE_CID: Final = 275

_MIN_ENCLAVE_BYTES: Final = 64 << 20
_EIF_IMAGE: Final = 1
_DEBUG_MODE: Final = 1
_PARENT_CID: Final = 3
_FIRST_CID: Final = 16
_U32_MAX: Final = 0xFFFFFFFF

_VCPU: Final = struct.Struct("=I")
_SLOT: Final = struct.Struct("=Q")
_LOAD_INFO: Final = struct.Struct("=QQ")
_REGION: Final = struct.Struct("=QQQ")
_START: Final = struct.Struct("=QQ")

_ARGUMENTS: Final = {
    "NE_ADD_VCPU": (_VCPU, ("vcpu_id",)),
    "NE_GET_IMAGE_LOAD_INFO": (_LOAD_INFO, ("flags", "memory_offset")),
    "NE_SET_USER_MEMORY_REGION": (_REGION, ("flags", "memory_size", "userspace_addr")),
    "NE_START_ENCLAVE": (_START, ("flags", "enclave_cid")),
}

# The device behind the driver, as one call meets it: it may raise OSError, and it may take its time.
Device = Callable[[], None]


class State(Enum):
    INIT = auto()
    RUNNING = auto()
    EXITED = auto()


class Life(Protocol):
    """An enclave that runs."""

    def begin(self) -> None:
        """Boot. What comes before the return of NE_START_ENCLAVE happens here."""

    def end(self) -> None:
        """Stop, because nobody holds the enclave any more."""

    def exit(self, reason: str) -> None:
        """Have it exit, for a reason that goes into the log."""


@dataclass(slots=True)
class Enclave:
    """One enclave from NE_CREATE_VM to the last close of its descriptor.

    The descriptor is the read end of a pipe. It is locked (flock) before it is handed out, and a lock belongs to an
    open file, however many descriptors of however many processes refer to it: the lock is free when all are closed.
    `watch_fd` is another open file of the same pipe, on which that is tried.
    """

    number: int
    slot: int
    write_fd: int
    watch_fd: int
    memory: EnclaveMemory
    cores: dict[int, set[int]] = field(default_factory=dict)
    vcpus: list[int] = field(default_factory=list)
    state: State = State.INIT
    cid: int = 0
    debug: bool = False
    life: Life | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hang_up(self) -> None:
        """Show on the descriptor that the enclave has exited."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def require_init(self) -> None:
        if self.state is not State.INIT:
            raise OSError(ERR_NOT_IN_INIT_STATE, "state")

    def require_owner(self, task: Task) -> None:
        if not self.memory.map.is_of(task):
            raise OSError(errno.EIO, "not the memory map that created the enclave")


class Driver:
    """All enclaves. Its methods are called by threads of the supervisor, one for each waiting call.

    `make_life` gives what an enclave does once started. All `device` arguments: see Device.
    """

    def __init__(self, scenario: Scenario, journal: Journal, make_life: Callable[[Enclave], Life]) -> None:
        self._scenario = scenario
        self._journal = journal
        self._make_life = make_life
        self.pool = CpuPool(scenario.cpus, scenario.threads_per_core, scenario.pool)
        self._enclaves: dict[FileIdentity, Enclave] = {}
        self._lock = threading.RLock()
        self._created = 0
        self._cids: set[int] = set()
        self._next_cid = _FIRST_CID
        self._cid_lock = threading.Lock()

    def enclave(self, identity: FileIdentity | None) -> Enclave | None:
        """The enclave whose descriptor that is."""
        with self._lock:
            return None if identity is None else self._enclaves.get(identity)

    def enclaves(self) -> list[Enclave]:
        """Those that are open."""
        self.release_closed()
        with self._lock:
            return list(self._enclaves.values())

    # --- the ioctls ------------------------------------------------------------------------------------------------

    def create_vm(self, task: Task, argument: int, device: Device) -> tuple[int, int]:
        """NE_CREATE_VM: a descriptor of the supervisor's own, to be handed to the caller, and the enclave's number."""
        self.release_closed()
        if self.pool.lowest_free_core() is None:
            raise OSError(ERR_NO_CPUS_AVAIL_IN_POOL, "pool")
        device()
        with self._lock:
            slot = self._free_slot()
            task.write(argument, _SLOT.pack(slot))
            self._created += 1
            read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
            memory = EnclaveMemory(MemoryMap(task), self._scenario.numa_node)
            fcntl.flock(read_fd, fcntl.LOCK_EX)
            watch_fd = os.open(f"/proc/self/fd/{read_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            enclave = Enclave(self._created, slot, write_fd, watch_fd, memory)
            self._enclaves[identify_own(read_fd)] = enclave
        threading.Thread(target=self._await_close, args=[os.dup(watch_fd)], daemon=True).start()
        return read_fd, enclave.number

    def add_vcpu(self, enclave: Enclave, task: Task, argument: int, device: Device) -> int:
        """NE_ADD_VCPU. Returns the id that was chosen."""
        self.release_closed()
        (vcpu,) = _VCPU.unpack(task.read(argument, _VCPU.size))
        with enclave.lock:
            enclave.require_init()
            if vcpu >= self.pool.cpus:
                raise OSError(ERR_INVALID_VCPU, "vCPU")
            with self.pool.lock:
                vcpu = self._reserve(enclave, vcpu) if vcpu else self._choose(enclave)
            enclave.require_owner(task)
            device()
            enclave.vcpus.append(vcpu)
            task.write(argument, _VCPU.pack(vcpu))
        return int(vcpu)

    def get_image_load_info(self, enclave: Enclave, task: Task, argument: int, device: Device) -> int:
        """NE_GET_IMAGE_LOAD_INFO. Returns the offset."""
        (flags, _) = _LOAD_INFO.unpack(task.read(argument, _LOAD_INFO.size))
        with enclave.lock:
            enclave.require_init()
            if flags != _EIF_IMAGE:
                raise OSError(ERR_INVALID_FLAG_VALUE, "flags")
            device()
            task.write(argument, _LOAD_INFO.pack(flags, LOAD_OFFSET))
        return LOAD_OFFSET

    def set_user_memory_region(self, enclave: Enclave, task: Task, argument: int, device: Device) -> int:
        """NE_SET_USER_MEMORY_REGION. Returns the number of pages."""
        flags, size, address = _REGION.unpack(task.read(argument, _REGION.size))
        if flags:
            raise OSError(ERR_INVALID_FLAG_VALUE, "flags")
        with enclave.lock:
            enclave.require_init()
            enclave.require_owner(task)
            region = enclave.memory.examine(task, address, size)
            # Remembered before the device is asked, and not forgotten when it refuses.
            enclave.memory.regions.append(region)
            device()
            enclave.memory.donated.append(region)
        return len(region.pages)

    def start_enclave(self, enclave: Enclave, task: Task, argument: int, device: Device) -> int:
        """NE_START_ENCLAVE. Returns the CID."""
        flags, cid = _START.unpack(task.read(argument, _START.size))
        if flags > _DEBUG_MODE:
            raise OSError(ERR_INVALID_FLAG_VALUE, "flags")
        if 0 < cid <= _PARENT_CID or cid >= _U32_MAX:
            raise OSError(ERR_INVALID_ENCLAVE_CID, "CID")
        with enclave.lock:
            enclave.require_init()
            self._require_complete(enclave)
            device()
            enclave.cid = self._settle_cid(cid)
            enclave.debug = bool(flags & _DEBUG_MODE)
            enclave.state = State.RUNNING
            task.write(argument, _START.pack(flags, enclave.cid))
            enclave.life = self._make_life(enclave)
        enclave.life.begin()
        return enclave.cid

    @staticmethod
    def describe_argument(name: str, task: Task, argument: int) -> dict[str, int]:
        """What an ioctl was given, for the log. Raises OSError where it cannot be read."""
        layout, fields = _ARGUMENTS[name]
        return dict(zip(fields, layout.unpack(task.read(argument, layout.size)), strict=True))

    # --- the end ---------------------------------------------------------------------------------------------------

    def exited(self, enclave: Enclave, reason: str) -> None:
        """The enclave runs no longer; whoever holds its descriptor sees a hang-up."""
        with enclave.lock:
            if enclave.state is State.RUNNING:
                enclave.state = State.EXITED
                self._journal.event("exit", enclave=enclave.number, cid=enclave.cid, reason=reason)
                enclave.hang_up()

    def release_closed(self) -> None:
        """Return what enclaves had that nobody holds any more. A caller sees it as done when its close returned."""
        closed = []
        with self._lock:
            for identity, enclave in list(self._enclaves.items()):
                try:
                    fcntl.flock(enclave.watch_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                self._release(identity, enclave)
                closed.append(enclave)
        for enclave in closed:
            if enclave.life is not None:
                enclave.life.end()

    def _await_close(self, waiting_fd: int) -> None:
        fcntl.flock(waiting_fd, fcntl.LOCK_EX)
        os.close(waiting_fd)
        self.release_closed()

    def _release(self, identity: FileIdentity, enclave: Enclave) -> None:
        # No ioctl is under way: it would hold the descriptor.
        del self._enclaves[identity]
        os.close(enclave.watch_fd)
        with enclave.lock:
            enclave.hang_up()
            enclave.state = State.EXITED
        enclave.memory.map.close()
        with self.pool.lock:
            self.pool.put_back(enclave.cores)
        with self._cid_lock:
            self._cids.discard(enclave.cid)
        cpus = sorted(cpu for core in enclave.cores.values() for cpu in core)
        self._journal.event("closed", enclave=enclave.number, cpus=cpus)

    # --- the rules in detail ---------------------------------------------------------------------------------------

    def _free_slot(self) -> int:
        """Raises OSError; which error a device without a free slot gives is not known."""
        if len(self._enclaves) >= self._scenario.slots:
            raise OSError(errno.ENOSPC, "slots")
        return 0x1000_0000_0000_0000 + self._created + 1

    def _choose(self, enclave: Enclave) -> int:
        for cpus in enclave.cores.values():
            if left := cpus - set(enclave.vcpus):
                return min(left)
        core = self.pool.lowest_free_core()
        if core is None:
            raise OSError(ERR_NO_CPUS_AVAIL_IN_POOL, "pool")
        enclave.cores[core] = self.pool.take(core)
        return min(enclave.cores[core])

    def _reserve(self, enclave: Enclave, vcpu: int) -> int:
        if vcpu in enclave.vcpus:
            raise OSError(ERR_VCPU_ALREADY_USED, "vCPU")
        core = self.pool.core_of(vcpu)
        if core not in enclave.cores:
            if not self.pool.is_free(vcpu):
                raise OSError(ERR_VCPU_NOT_IN_CPU_POOL, "vCPU")
            enclave.cores[core] = self.pool.take(core)
        return vcpu

    @staticmethod
    def _require_complete(enclave: Enclave) -> None:
        if not enclave.memory.donated_bytes:
            raise OSError(ERR_NO_MEM_REGIONS_ADDED, "memory")
        if enclave.memory.donated_bytes < _MIN_ENCLAVE_BYTES:
            raise OSError(ERR_ENCLAVE_MEM_MIN_SIZE, "memory")
        if not enclave.vcpus:
            raise OSError(ERR_NO_VCPUS_ADDED, "vCPUs")
        if any(not cpus <= set(enclave.vcpus) for cpus in enclave.cores.values()):
            raise OSError(ERR_FULL_CORES_NOT_USED, "cores")

    def _settle_cid(self, cid: int) -> int:
        """Raises OSError; which error a device gives for a CID that is taken is not known."""
        with self._cid_lock:
            if cid in self._cids:
                raise OSError(errno.EINVAL, "CID")
            if not cid:
                while self._next_cid in self._cids:
                    self._next_cid += 1
                cid = self._next_cid
                self._next_cid += 1
            self._cids.add(cid)
            return cid
