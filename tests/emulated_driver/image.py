"""Looking for the enclave image in an enclave's memory, byte by byte."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pyrune.eif.format import CRC_OFFSET, HEADER_BYTES, MAGIC, SECTION_HEADER_BYTES, Header
from tests.emulated_driver.memory import EnclaveMemory
from tests.emulated_driver.scenario import EIF, UNCHECKED

LOAD_OFFSET: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. `difference` is the offset in the image of the first byte that is wrong, -1 if there is none."""

    compared_bytes: int
    difference: int
    moved_pages: int

    @property
    def good(self) -> bool:
        return self.difference < 0


def look(memory: EnclaveMemory, expected: str) -> Finding:
    """Compare what is at the load offset with a file, or with its own checksum; `expected` as in a scenario."""
    if expected == UNCHECKED:
        return Finding(0, -1, 0)
    if expected == EIF:
        size, difference = _check_own_checksum(memory)
    else:
        size, difference = _compare(memory, expected)
    return Finding(size, difference, memory.moved_pages)


def pieces(memory: EnclaveMemory) -> Iterator[bytes]:
    """The image, as long as its header says."""
    return memory.read(LOAD_OFFSET, _size(memory))


def _compare(memory: EnclaveMemory, path: str) -> tuple[int, int]:
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        compared = 0
        for piece in memory.read(LOAD_OFFSET, size):
            wanted = os.pread(file.fileno(), len(piece), compared)
            if piece != wanted:
                return compared, compared + _first_difference(piece, wanted)
            compared += len(piece)
    return compared, -1 if compared == size else compared


def _first_difference(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if one[low:middle] != other[low:middle] else (middle, high)
    return low


def _check_own_checksum(memory: EnclaveMemory) -> tuple[int, int]:
    size = _size(memory)
    if not size:
        return 0, 0
    checksum = stated = seen = 0
    for piece in memory.read(LOAD_OFFSET, size):
        data = piece
        if not seen:
            # Regions are larger than the header, and begin where it does: it is whole in the first piece.
            stated = int.from_bytes(piece[CRC_OFFSET:HEADER_BYTES], "big")
            data = piece[:CRC_OFFSET] + piece[HEADER_BYTES:]
        checksum = zlib.crc32(data, checksum)
        seen += len(piece)
    return seen, -1 if seen == size and checksum == stated else CRC_OFFSET


def _size(memory: EnclaveMemory) -> int:
    """The size of the image by its header; 0 where there is none."""
    raw = b"".join(memory.read(LOAD_OFFSET, HEADER_BYTES))
    if len(raw) < HEADER_BYTES or not raw.startswith(MAGIC):
        return 0
    header = Header.unpack(raw)
    count = min(header.section_count, len(header.section_offsets))
    ends = zip(header.section_offsets[:count], header.section_sizes[:count], strict=True)
    return max((offset + SECTION_HEADER_BYTES + size for offset, size in ends), default=0)
