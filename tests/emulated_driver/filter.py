"""Which system calls go to the supervisor: a BPF program for seccomp.

A filter sees numbers, never what pointers point to. So every opening of a file goes to the supervisor, which lets most
of them through, but calls on descriptors only where an argument says that they may be meant: ioctl by its command,
socket by its family. 32-bit calls on a 64-bit machine pass unseen.

Source: seccomp(2), include/uapi/linux/bpf_common.h.
"""

from __future__ import annotations

import struct
from typing import Final

from tests.emulated_driver.kernel import AF_VSOCK, NATIVE, VM_SOCKETS_GET_LOCAL_CID, Architecture

_INSTRUCTION: Final = struct.Struct("=HBBI")
_LOAD: Final = 0x20
_AND: Final = 0x54
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
_NOTIFY: Final = _INSTRUCTION.pack(_RETURN, 0, 0, 0x7FC00000)
_ALLOW: Final = _INSTRUCTION.pack(_RETURN, 0, 0, 0x7FFF0000)

# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits
_NUMBER_OFFSET: Final = 0
_ARCHITECTURE_OFFSET: Final = 4
_ARGUMENTS_OFFSET: Final = 16

_NITRO_IOCTLS: Final = range(0xAE20, 0xAE25)
_AT_EMPTY_PATH: Final = 0x1000
_SOL_SOCKET: Final = 1
SO_ERROR: Final = 4
SO_DOMAIN: Final = 39

ALWAYS: Final = (
    *("open", "stat", "lstat", "access", "readlink", "openat", "openat2", "readlinkat", "faccessat", "faccessat2"),
    *("bind", "listen", "connect", "accept", "accept4", "getsockname", "getpeername"),
)

Block = list[bytes]


def _load(offset: int) -> bytes:
    return _INSTRUCTION.pack(_LOAD, 0, 0, offset)


def _argument(index: int) -> bytes:
    """The lower half of an argument: all that the ones looked at here have."""
    return _load(_ARGUMENTS_OFFSET + 8 * index)


def _if_equal(value: int, block: Block) -> Block:
    """Run `block`, which must end in a return, if the accumulator is `value`."""
    return [_INSTRUCTION.pack(_JUMP_EQUAL, 0, len(block), value), *block]


def _notify_if_one_of(*values: int) -> Block:
    return [instruction for value in values for instruction in _if_equal(value, [_NOTIFY])]


def _unless_set(bits: int) -> Block:
    return [_INSTRUCTION.pack(_JUMP_SET, 0, 1, bits), _ALLOW, _NOTIFY]


def _ioctl() -> Block:
    lower_half = [_INSTRUCTION.pack(_AND, 0, 0, 0xFFFF), *_notify_if_one_of(*_NITRO_IOCTLS), _ALLOW]
    return [_argument(1), *_notify_if_one_of(VM_SOCKETS_GET_LOCAL_CID), *lower_half]


def _getsockopt() -> Block:
    option = [_argument(2), *_notify_if_one_of(SO_ERROR, SO_DOMAIN), _ALLOW]
    return [_argument(1), *_notify_if_one_of(AF_VSOCK), *_if_equal(_SOL_SOCKET, option), _ALLOW]


def filter_program(architecture: Architecture = NATIVE) -> bytes:
    """The program's instructions, 8 bytes each."""
    numbers = architecture.numbers
    blocks: dict[str, Block] = {name: [_NOTIFY] for name in ALWAYS}
    blocks["ioctl"] = _ioctl()
    blocks["socket"] = [_argument(0), *_notify_if_one_of(AF_VSOCK), _ALLOW]
    blocks["setsockopt"] = [_argument(1), *_notify_if_one_of(AF_VSOCK), _ALLOW]
    blocks["getsockopt"] = _getsockopt()
    # Without a path these are about a descriptor, which the kernel knows best.
    blocks["newfstatat"] = [_argument(3), *_unless_set(_AT_EMPTY_PATH)]
    blocks["statx"] = [_argument(2), *_unless_set(_AT_EMPTY_PATH)]
    body = [_load(_NUMBER_OFFSET)]
    for name, block in blocks.items():
        if name in numbers:
            body += _if_equal(numbers[name], block)
    body.append(_ALLOW)
    known = _INSTRUCTION.pack(_JUMP_EQUAL, 1, 0, architecture.audit)
    return b"".join([_load(_ARCHITECTURE_OFFSET), known, _ALLOW, *body])
