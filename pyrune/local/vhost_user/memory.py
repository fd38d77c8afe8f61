"""The guest's memory, mapped from the descriptors that QEMU sent, and addresses in it.

A region is known by two addresses: the guest's physical one, which stands in descriptors, and QEMU's own virtual one
(*user address*), which says where rings are. Every access goes through `at_guest_address` or `at_user_address`, and
both give a memoryview of exactly the bytes asked for, or refuse. A view keeps its mapping alive, so a table that QEMU
replaces never pulls memory away under anyone.

Source: QEMU's docs/interop/vhost-user.rst, "Memory regions description".
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import NamedTuple

from pyrune.local.vhost_user.message import MEMORY_REGION, MEMORY_TABLE, Message, ProtocolError

_ADDRESS_END = 1 << 64


class BadAddress(Exception):
    """An address range that is not, or not wholly, in one region. Always the guest's doing."""


class Region(NamedTuple):
    """`view` holds the bytes [guest_start, guest_end)."""

    guest_start: int
    guest_end: int
    user_start: int
    user_end: int
    view: memoryview


class GuestMemory:
    """All regions; the largest first, as most addresses are in it."""

    __slots__ = ("_regions",)

    def __init__(self, regions: list[Region]) -> None:
        self._regions = sorted(regions, key=lambda region: len(region.view), reverse=True)

    def at_guest_address(self, address: int, length: int) -> memoryview:
        """`length` bytes at a guest physical address. Raises BadAddress."""
        for start, end, _, _, view in self._regions:
            if start <= address and address + length <= end:
                offset = address - start
                return view[offset : offset + length]
        raise BadAddress(f"{length} bytes at {address:#x} are not in the guest's memory")

    def at_user_address(self, address: int, length: int) -> memoryview:
        """`length` bytes at an address of QEMU's. Raises BadAddress."""
        for _, _, start, end, view in self._regions:
            if start <= address and address + length <= end:
                offset = address - start
                return view[offset : offset + length]
        raise BadAddress(f"{length} bytes at user address {address:#x} are not in shared memory")


def map_memory_table(message: Message) -> GuestMemory:
    """Map what SET_MEM_TABLE describes. The message keeps its descriptors. Raises ProtocolError."""
    payload = message.payload
    if len(payload) < MEMORY_TABLE.size:
        raise ProtocolError(f"SET_MEM_TABLE came with {len(payload)} bytes")
    count, _ = MEMORY_TABLE.unpack_from(payload)
    if len(payload) != MEMORY_TABLE.size + count * MEMORY_REGION.size or len(message.fds) != count:
        raise ProtocolError(
            f"SET_MEM_TABLE says {count} regions and came with {len(payload)} bytes and {len(message.fds)} descriptors"
        )
    layouts = MEMORY_REGION.iter_unpack(payload[MEMORY_TABLE.size :])
    return GuestMemory([_map_region(layout, fd) for layout, fd in zip(layouts, message.fds, strict=True)])


def _map_region(layout: tuple[int, ...], fd: int) -> Region:
    """Map from the file's start, as other back ends do: a huge page file then needs no thought about alignment."""
    guest_address, size, user_address, offset = layout
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError("a memory region is not shared from a file")
    if not 0 < size <= status.st_size - offset:
        raise ProtocolError(f"a memory region ends at {offset + size:#x}, its file at {status.st_size:#x}")
    if guest_address + size > _ADDRESS_END or user_address + size > _ADDRESS_END:
        raise ProtocolError("a memory region ends beyond the address space")
    try:
        mapping = mmap.mmap(fd, offset + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"a memory region of {size} bytes cannot be mapped") from exc
    view = memoryview(mapping)[offset : offset + size]
    return Region(guest_address, guest_address + size, user_address, user_address + size, view)
