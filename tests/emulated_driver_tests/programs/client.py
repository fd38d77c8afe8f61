"""What the small programs are made of: an enclave by its ioctls, huge pages, a heartbeat's listener.

Nothing here knows of the emulation.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable

DEVICE = "/dev/nitro_enclaves"
CREATE_VM = 0x8008AE20
ADD_VCPU = 0xC004AE21
GET_IMAGE_LOAD_INFO = 0xC010AE22
SET_USER_MEMORY_REGION = 0x4018AE23
START_ENCLAVE = 0xC010AE24

MIB = 1 << 20
HUGE = 2 * MIB
MAP_HUGETLB = 0x40000
MAP_NORESERVE = 0x4000
MAP_HUGE_1GB = 30 << 26
ENOUGH = 64 * MIB


def attempt(call: Callable[[], object]) -> int:
    """0, or the errno."""
    try:
        call()
    except OSError as exc:
        return exc.errno or -1
    return 0


def in_child(work: Callable[[], int]) -> int:
    """What `work` returns (0 to 255) in a forked child."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, struct.pack("=i", work()))
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as result:
        return int(struct.unpack("=i", result.read(4))[0])


class Enclave:
    """A descriptor that NE_CREATE_VM gives, or gave: then `fd`."""

    def __init__(self, fd: int | None = None) -> None:
        self.slot = 0
        self.fd = self._create() if fd is None else fd
        self.maps: list[mmap.mmap] = []

    def _create(self) -> int:
        device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
        slot = bytearray(8)
        try:
            fd = int(fcntl.ioctl(device, CREATE_VM, slot))
        finally:
            os.close(device)
        self.slot = int.from_bytes(slot, "little")
        return fd

    def add_vcpu(self, vcpu: int = 0) -> int:
        argument = bytearray(struct.pack("=I", vcpu))
        fcntl.ioctl(self.fd, ADD_VCPU, argument)
        return int(struct.unpack("=I", argument)[0])

    def add_core(self) -> list[int]:
        return [self.add_vcpu(), self.add_vcpu()]

    def load_info(self, flags: int = 1) -> int:
        argument = bytearray(struct.pack("=QQ", flags, 0))
        fcntl.ioctl(self.fd, GET_IMAGE_LOAD_INFO, argument)
        return int(struct.unpack("=QQ", argument)[1])

    def add_memory(self, address: int, size: int, flags: int = 0) -> None:
        fcntl.ioctl(self.fd, SET_USER_MEMORY_REGION, bytearray(struct.pack("=QQQ", flags, size, address)))

    def add_map(self, memory: mmap.mmap) -> None:
        self.maps.append(memory)
        self.add_memory(address_of(memory), len(memory))

    def start(self, cid: int = 0, flags: int = 0) -> int:
        argument = bytearray(struct.pack("=QQ", flags, cid))
        fcntl.ioctl(self.fd, START_ENCLAVE, argument)
        return int(struct.unpack("=QQ", argument)[1])

    def poll(self, timeout_s: float = 0.0, events: int = 0) -> int:
        """The events that poll gives; 0 for none."""
        poll = select.poll()
        poll.register(self.fd, events)
        return sum(event for _, event in poll.poll(timeout_s * 1000))

    def close(self) -> None:
        os.close(self.fd)


def complete(size: int = ENOUGH) -> Enclave:
    """An enclave that can be started."""
    enclave = Enclave()
    enclave.add_core()
    enclave.add_map(huge_map(size))
    return enclave


def huge_map(size: int, flags: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    return mmap.mmap(-1, size, flags | mmap.MAP_ANONYMOUS | MAP_HUGETLB)


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def answer_heartbeat(listener: socket.socket) -> tuple[int, int]:
    """Take one connection and give the byte back; who it was."""
    peer, address = listener.accept()
    with peer:
        peer.sendall(peer.recv(1))
    return int(address[0]), int(address[1])


def heartbeat_listener() -> socket.socket:
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, 9000))
    listener.listen()
    return listener
