"""Numbers, structures and calls that Python's library lacks: seccomp user notification, kcmp, memory of others.

Sources: include/uapi/linux/{seccomp,kcmp,audit,vm_sockets,nitro_enclaves}.h, the syscall tables of the two
architectures, seccomp_unotify(2), kcmp(2), pidfd_getfd(2), process_vm_readv(2), move_pages(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
RESPONSE: Final = struct.Struct("=QqiI")
ADD_FD: Final = struct.Struct("=QIIII")

NOTIF_RECV: Final = 0xC0502100
NOTIF_SEND: Final = 0xC0182101
NOTIF_ID_VALID: Final = 0x40082102
NOTIF_ADDFD: Final = 0x40182103
RESPONSE_CONTINUE: Final = 1
ADDFD_SEND: Final = 2

NE_CREATE_VM: Final = 0x8008AE20
NE_ADD_VCPU: Final = 0xC004AE21
NE_GET_IMAGE_LOAD_INFO: Final = 0xC010AE22
NE_SET_USER_MEMORY_REGION: Final = 0x4018AE23
NE_START_ENCLAVE: Final = 0xC010AE24
VM_SOCKETS_GET_LOCAL_CID: Final = 0x7B9

AF_VSOCK: Final = 40
CID_ANY: Final = 0xFFFFFFFF
PORT_ANY: Final = 0xFFFFFFFF
# family, reserved, port, cid, flags, three zeros
SOCKADDR_VM: Final = struct.Struct("=HHII4x")

_KCMP_VM: Final = 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """What seccomp calls it, and the numbers of its system calls; those that it lacks are not in the table."""

    audit: int
    numbers: dict[str, int]


_X86_64 = Architecture(
    0xC000003E,
    {
        "open": 2,
        "stat": 4,
        "lstat": 6,
        "ioctl": 16,
        "access": 21,
        "readlink": 89,
        "openat": 257,
        "newfstatat": 262,
        "readlinkat": 267,
        "faccessat": 269,
        "statx": 332,
        "openat2": 437,
        "faccessat2": 439,
        "socket": 41,
        "connect": 42,
        "accept": 43,
        "bind": 49,
        "listen": 50,
        "getsockname": 51,
        "getpeername": 52,
        "setsockopt": 54,
        "getsockopt": 55,
        "accept4": 288,
        "move_pages": 279,
        "kcmp": 312,
        "seccomp": 317,
        "pidfd_getfd": 438,
    },
)
_AARCH64 = Architecture(
    0xC00000B7,
    {
        "ioctl": 29,
        "faccessat": 48,
        "openat": 56,
        "readlinkat": 78,
        "newfstatat": 79,
        "statx": 291,
        "openat2": 437,
        "faccessat2": 439,
        "socket": 198,
        "bind": 200,
        "listen": 201,
        "accept": 202,
        "connect": 203,
        "getsockname": 204,
        "getpeername": 205,
        "setsockopt": 208,
        "getsockopt": 209,
        "accept4": 242,
        "move_pages": 239,
        "kcmp": 272,
        "seccomp": 277,
        "pidfd_getfd": 438,
    },
)
ARCHITECTURES: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}
NATIVE: Final = ARCHITECTURES[platform.machine()]

_libc = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(name: str, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(NATIVE.numbers[name]), *arguments))


def same_memory_map(one: int, other: int) -> bool:
    """Whether two tasks have one memory map. Raises OSError where one of them is no more."""
    zero = ctypes.c_long(0)
    return _syscall("kcmp", ctypes.c_long(one), ctypes.c_long(other), ctypes.c_long(_KCMP_VM), zero, zero) == 0


def copy_descriptor(pid: int, fd: int) -> int:
    """A copy of another process's descriptor; the caller closes it."""
    pidfd = os.pidfd_open(pid)
    try:
        return _syscall("pidfd_getfd", ctypes.c_long(pidfd), ctypes.c_long(fd), ctypes.c_long(0))
    finally:
        os.close(pidfd)


def read_memory(task: int, address: int, size: int) -> bytes:
    """What a task has at `address`. Raises OSError EFAULT unless all of it is readable."""
    found = read_string_bytes(task, address, size)
    if len(found) < size:
        raise OSError(errno.EFAULT, "memory is not readable")
    return found


def read_string_bytes(task: int, address: int, limit: int) -> bytes:
    """As many of `limit` bytes at `address` as are readable, whole pages at a time."""
    buffer = ctypes.create_string_buffer(limit)
    here = _Piece(ctypes.cast(buffer, ctypes.c_void_p), limit)
    # A transfer stops between pieces, not within one: so one piece for each page.
    first = min(limit, 4096 - address % 4096)
    there = [_Piece(address, first)]
    there += [_Piece(address + done, min(4096, limit - done)) for done in range(first, limit, 4096)]
    array = (_Piece * len(there))(*there)
    got = _checked(_libc.process_vm_readv(task, ctypes.byref(here), 1, array, len(there), 0))
    return buffer.raw[:got]


def write_memory(task: int, address: int, data: bytes) -> None:
    """Put `data` where a task could itself have written it. Raises OSError EFAULT where it could not."""
    buffer = ctypes.create_string_buffer(data, len(data))
    here, there = _Piece(ctypes.cast(buffer, ctypes.c_void_p), len(data)), _Piece(address, len(data))
    if _checked(_libc.process_vm_writev(task, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)) < len(data):
        raise OSError(errno.EFAULT, "memory is not writable")


_PIECES_LIMIT = 1024


def fault_in(task: int, addresses: Sequence[int]) -> None:
    """Touch one byte at each address as the task would by reading it. Raises OSError EFAULT at the first that fails."""
    for start in range(0, len(addresses), _PIECES_LIMIT):
        part = addresses[start : start + _PIECES_LIMIT]
        buffer = ctypes.create_string_buffer(len(part))
        here = _Piece(ctypes.cast(buffer, ctypes.c_void_p), len(part))
        there = (_Piece * len(part))(*(_Piece(address, 1) for address in part))
        if _checked(_libc.process_vm_readv(task, ctypes.byref(here), 1, there, len(part), 0)) < len(part):
            raise OSError(errno.EFAULT, "memory is not there")


def nodes_of_pages(pid: int, addresses: Sequence[int]) -> list[int]:
    """The NUMA node of the page at each address; negative errnos for pages that have none."""
    pages = (ctypes.c_void_p * len(addresses))(*addresses)
    status = (ctypes.c_int * len(addresses))()
    nothing = ctypes.c_void_p(None)
    _syscall("move_pages", ctypes.c_long(pid), ctypes.c_ulong(len(addresses)), pages, nothing, status, ctypes.c_long(0))
    return list(status)


def raw_stat(path: str, *, follow: bool) -> bytes:
    """struct stat of a path, as newfstatat(2) fills it in."""
    buffer = ctypes.create_string_buffer(_STAT_BYTES[platform.machine()])
    flags = 0 if follow else _AT_SYMLINK_NOFOLLOW
    _syscall("newfstatat", ctypes.c_long(_AT_FDCWD), os.fsencode(path), buffer, ctypes.c_long(flags))
    return buffer.raw


def raw_statx(path: str, flags: int, mask: int) -> bytes:
    """struct statx of a path, as statx(2) fills it in."""
    buffer = ctypes.create_string_buffer(256)
    _syscall("statx", ctypes.c_long(_AT_FDCWD), os.fsencode(path), ctypes.c_long(flags), ctypes.c_long(mask), buffer)
    return buffer.raw


_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STAT_BYTES: Final = {"x86_64": 144, "aarch64": 128}
