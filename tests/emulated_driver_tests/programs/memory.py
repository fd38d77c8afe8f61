"""NE_SET_USER_MEMORY_REGION, and what the enclave finds."""

from __future__ import annotations

import ctypes
import mmap
import os

from tests.emulated_driver_tests.programs.client import (
    ENOUGH,
    HUGE,
    MAP_HUGE_1GB,
    MAP_NORESERVE,
    MIB,
    Enclave,
    address_of,
    attempt,
    huge_map,
)


def refuse_sizes_and_addresses() -> object:
    enclave = Enclave()
    memory = huge_map(2 * HUGE)
    address = address_of(memory)
    hole = mmap.mmap(-1, 4 * HUGE)
    above = (address_of(hole) + HUGE) & -HUGE
    ctypes.CDLL(None).munmap(ctypes.c_void_p(above), ctypes.c_size_t(HUGE))
    return {
        "half a page": attempt(lambda: enclave.add_memory(address, MIB)),
        "odd": attempt(lambda: enclave.add_memory(address, HUGE + 4096)),
        "nothing": attempt(lambda: enclave.add_memory(address, 0)),
        "unaligned": attempt(lambda: enclave.add_memory(address + 4096, HUGE)),
        "flags": attempt(lambda: enclave.add_memory(address, HUGE, flags=1)),
        "kernel": attempt(lambda: enclave.add_memory(-(1 << 40) & (2**64 - 1), HUGE)),
        "unmapped": attempt(lambda: enclave.add_memory(above, HUGE)),
        "fine": attempt(lambda: enclave.add_memory(address, 2 * HUGE)),
    }


def refuse_small_pages() -> object:
    enclave = Enclave()
    plain = mmap.mmap(-1, 4 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    aligned = (address_of(plain) + HUGE - 1) & -HUGE
    plain.write(b"x" * len(plain))
    transparent = mmap.mmap(-1, 4 * HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    transparent.madvise(mmap.MADV_HUGEPAGE)
    transparent.write(b"x" * len(transparent))
    transparent_aligned = (address_of(transparent) + HUGE - 1) & -HUGE
    return [
        attempt(lambda: enclave.add_memory(aligned, HUGE)),
        attempt(lambda: enclave.add_memory(transparent_aligned, HUGE)),
    ]


def accept_untouched_and_shared() -> object:
    enclave = Enclave()
    memory_file = os.memfd_create("shared", os.MFD_HUGETLB)
    os.ftruncate(memory_file, HUGE)
    shared = mmap.mmap(memory_file, HUGE, mmap.MAP_SHARED)
    return [attempt(lambda: enclave.add_map(huge_map(2 * HUGE))), attempt(lambda: enclave.add_map(shared))]


def overlap() -> object:
    enclave = Enclave()
    memory = huge_map(4 * HUGE)
    address = address_of(memory)
    enclave.add_memory(address + HUGE, HUGE)
    outcomes = {
        "same": attempt(lambda: enclave.add_memory(address + HUGE, HUGE)),
        "around": attempt(lambda: enclave.add_memory(address, 3 * HUGE)),
        "tail": attempt(lambda: enclave.add_memory(address, 2 * HUGE)),
        "beside": attempt(lambda: enclave.add_memory(address + 2 * HUGE, HUGE)),
    }
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address + HUGE), ctypes.c_size_t(HUGE))
    outcomes["after munmap"] = attempt(lambda: enclave.add_memory(address + HUGE, HUGE))
    # The same pages in another enclave are no overlap: every enclave has its own list.
    return outcomes


def register_twice() -> object:
    enclave = Enclave()
    memory = huge_map(HUGE)
    return [attempt(lambda: enclave.add_map(memory)) for _ in range(2)]


def register_one() -> object:
    enclave = Enclave()
    return attempt(lambda: enclave.add_map(huge_map(HUGE)))


def register_without_pages() -> object:
    """More memory than there is: refused by mmap, or, with MAP_NORESERVE, by the registration."""
    enclave = Enclave()
    size = 64 << 30
    reserved = attempt(lambda: huge_map(size))
    unreserved = huge_map(size, mmap.MAP_PRIVATE | MAP_NORESERVE)
    return [reserved, attempt(lambda: enclave.add_map(unreserved))]


def register_parts_of_gigantic_page() -> object:
    """2 MiB inside a page of 1 GiB, and its first 2 MiB."""
    enclave = Enclave()
    memory = huge_map(1 << 30, mmap.MAP_PRIVATE | MAP_HUGE_1GB)
    address = address_of(memory)
    inside = attempt(lambda: enclave.add_memory(address + HUGE, HUGE))
    return [inside, attempt(lambda: enclave.add_memory(address, HUGE))]


def place_image_beside_gigantic_page(path: str) -> object:
    """An image that begins in pages of 2 MiB, ends in one of 1 GiB."""
    enclave = Enclave()
    enclave.add_core()
    with open(path, "rb") as file:
        image = file.read()
    small, large = huge_map(6 * HUGE), huge_map(1 << 30, mmap.MAP_PRIVATE | MAP_HUGE_1GB)
    room = len(small) - enclave.load_info()
    small[len(small) - room :] = image[:room]
    large[: len(image) - room] = image[room:]
    enclave.add_map(small)
    enclave.add_map(large)
    return enclave.start()


def place_image(path: str, *sizes_mib: int) -> object:
    """Write a file at the load offset of regions of these sizes, register them in order, start."""
    enclave = Enclave()
    enclave.add_core()
    with open(path, "rb") as file:
        image = file.read()
    offset = enclave.load_info()
    begin = 0
    # The first region lies above the others: the order of registration counts, not that of addresses.
    for memory in reversed([huge_map(size * MIB) for size in sizes_mib]):
        for position in range(begin, begin + len(memory), HUGE):
            part = image[max(0, position - offset) : max(0, position - offset + HUGE)]
            if part:
                memory[position - begin : position - begin + len(part)] = part
        enclave.add_map(memory)
        begin += len(memory)
    enclave.start()
    return enclave.poll(1.0) if sizes_mib else 0


def write_after_registration(image_hex: str) -> object:
    """Pages that were never touched before they were registered."""
    enclave = Enclave()
    enclave.add_core()
    memory = huge_map(ENOUGH)
    enclave.add_map(memory)
    image = bytes.fromhex(image_hex)
    memory[8 * MIB : 8 * MIB + len(image)] = image
    return enclave.start()


def write_after_fork(flags: int, image_hex: str) -> object:
    """The hazard: memory registered, then a fork, then written."""
    enclave = Enclave()
    enclave.add_core()
    memory = huge_map(ENOUGH, flags)
    enclave.add_map(memory)
    stop_r, stop_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stop_w)
        os.read(stop_r, 1)
        os._exit(0)
    image = bytes.fromhex(image_hex)
    memory[8 * MIB : 8 * MIB + len(image)] = image
    enclave.start()
    os.close(stop_w)
    os.waitpid(child, 0)
    return None
