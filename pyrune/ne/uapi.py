"""The Nitro Enclaves driver's interface: ioctl numbers, argument layouts, error numbers. No I/O.

The numbers are composed as the kernel composes them (asm-generic/ioctl.h, the same on x86_64 and aarch64), so that a
test can compare them with the literal ones. Arguments are in the machine's byte order, without padding; all of them
are multiples of their alignment.

Source: the kernel's include/uapi/linux/nitro_enclaves.h and drivers/virt/nitro_enclaves/ne_misc_dev.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_WRITE, _READ = 1, 2
_MAGIC: Final = 0xAE

SLOT_ID: Final = struct.Struct("=Q")
VCPU_ID: Final = struct.Struct("=I")
IMAGE_LOAD_INFO: Final = struct.Struct("=QQ")
"""flags in, offset in enclave memory out"""
USER_MEMORY_REGION: Final = struct.Struct("=QQQ")
"""flags, size in bytes, address in the caller's memory"""
ENCLAVE_START_INFO: Final = struct.Struct("=QQ")
"""flags in; CID in and out, 0 to have one chosen"""


def _ioctl(direction: int, number: int, argument: struct.Struct) -> int:
    """_IOR, _IOW and _IOWR of asm-generic/ioctl.h."""
    return direction << 30 | argument.size << 16 | _MAGIC << 8 | number


NE_CREATE_VM: Final = _ioctl(_READ, 0x20, SLOT_ID)
NE_ADD_VCPU: Final = _ioctl(_READ | _WRITE, 0x21, VCPU_ID)
NE_GET_IMAGE_LOAD_INFO: Final = _ioctl(_READ | _WRITE, 0x22, IMAGE_LOAD_INFO)
NE_SET_USER_MEMORY_REGION: Final = _ioctl(_WRITE, 0x23, USER_MEMORY_REGION)
NE_START_ENCLAVE: Final = _ioctl(_READ | _WRITE, 0x24, ENCLAVE_START_INFO)

NE_EIF_IMAGE: Final = 1
"""The flag of NE_GET_IMAGE_LOAD_INFO: the image is an EIF."""
NE_ENCLAVE_DEBUG_MODE: Final = 1
"""The flag of NE_START_ENCLAVE."""

MIN_REGION_BYTES: Final = 2 << 20
"""NE_MIN_MEM_REGION_SIZE: sizes and addresses of regions are multiples of it."""
MIN_ENCLAVE_BYTES: Final = 64 << 20
"""NE_MIN_ENCLAVE_MEM_SIZE."""


class NeError(IntEnum):
    """The driver's own error numbers, which arrive as errno."""

    VCPU_ALREADY_USED = 256
    VCPU_NOT_IN_CPU_POOL = 257
    VCPU_INVALID_CPU_CORE = 258
    INVALID_MEM_REGION_SIZE = 259
    INVALID_MEM_REGION_ADDR = 260
    UNALIGNED_MEM_REGION_ADDR = 261
    MEM_REGION_ALREADY_USED = 262
    MEM_NOT_HUGE_PAGE = 263
    MEM_DIFFERENT_NUMA_NODE = 264
    MEM_MAX_REGIONS = 265
    NO_MEM_REGIONS_ADDED = 266
    NO_VCPUS_ADDED = 267
    ENCLAVE_MEM_MIN_SIZE = 268
    FULL_CORES_NOT_USED = 269
    NOT_IN_INIT_STATE = 270
    INVALID_VCPU = 271
    NO_CPUS_AVAIL_IN_POOL = 272
    INVALID_PAGE_SIZE = 273
    INVALID_FLAG_VALUE = 274
    INVALID_ENCLAVE_CID = 275


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an error number means, and what the operator can do; the remedy may be empty."""

    meaning: str
    remedy: str


ALLOCATOR_FILE: Final = "/etc/nitro_enclaves/allocator.yaml"
ALLOCATOR_SERVICE: Final = "nitro-enclaves-allocator.service"
_ENLARGE_CPU_POOL: Final = (
    f"raise cpu_count in {ALLOCATOR_FILE} and restart {ALLOCATOR_SERVICE}, or stop another enclave"
)
_OUR_BUG: Final = "this is a bug in pyrune: please report it"
_CHECK_POOL: Final = "see /sys/module/nitro_enclaves/parameters/ne_cpus for what the pool holds"

EXPLANATIONS: Final[dict[NeError, Explanation]] = {
    NeError.VCPU_ALREADY_USED: Explanation("the enclave already has that CPU", "name each CPU once"),
    NeError.VCPU_NOT_IN_CPU_POOL: Explanation(
        "that CPU is not free in the enclave CPU pool: it lies outside, or another enclave has its core", _CHECK_POOL
    ),
    NeError.VCPU_INVALID_CPU_CORE: Explanation("that CPU belongs to no core of the enclave CPU pool", _CHECK_POOL),
    NeError.INVALID_MEM_REGION_SIZE: Explanation("the size of a region is no multiple of 2 MiB", _OUR_BUG),
    NeError.INVALID_MEM_REGION_ADDR: Explanation("the address of a region cannot be read", _OUR_BUG),
    NeError.UNALIGNED_MEM_REGION_ADDR: Explanation("the address of a region is not aligned to 2 MiB", _OUR_BUG),
    NeError.MEM_REGION_ALREADY_USED: Explanation("a region overlaps another one of the enclave", _OUR_BUG),
    NeError.MEM_NOT_HUGE_PAGE: Explanation("a region does not consist of huge pages", _OUR_BUG),
    NeError.MEM_DIFFERENT_NUMA_NODE: Explanation(
        "a region lies on another NUMA node than the CPUs of the enclave CPU pool",
        f"reserve huge pages on the pool's node: restart {ALLOCATOR_SERVICE}, which does that",
    ),
    NeError.MEM_MAX_REGIONS: Explanation(
        "the memory lies in more separate pieces than the device takes for one enclave",
        "reserve huge pages of 1 GiB, or give the enclave less memory; "
        f"restarting {ALLOCATOR_SERVICE} soon after the instance's boot finds memory in larger pieces",
    ),
    NeError.NO_MEM_REGIONS_ADDED: Explanation("the enclave has been given no memory", _OUR_BUG),
    NeError.NO_VCPUS_ADDED: Explanation("the enclave has been given no CPU", _OUR_BUG),
    NeError.ENCLAVE_MEM_MIN_SIZE: Explanation("the enclave has been given less than 64 MiB", "say memory=64 or more"),
    NeError.FULL_CORES_NOT_USED: Explanation(
        "the enclave has only one of two CPUs of a core", "give it both: an even number of CPUs, or whole cores by id"
    ),
    NeError.NOT_IN_INIT_STATE: Explanation("the enclave has been started before", _OUR_BUG),
    NeError.INVALID_VCPU: Explanation("there is no CPU with that number", "give the number of a CPU of this machine"),
    NeError.NO_CPUS_AVAIL_IN_POOL: Explanation("the enclave CPU pool has no free CPU", _ENLARGE_CPU_POOL),
    NeError.INVALID_PAGE_SIZE: Explanation("a region begins inside a larger huge page", _OUR_BUG),
    NeError.INVALID_FLAG_VALUE: Explanation("a flag is unknown to this driver", _OUR_BUG),
    NeError.INVALID_ENCLAVE_CID: Explanation(
        "that CID cannot be an enclave's", "say cid= with a number from 4 to 4294967294, or leave it out"
    ),
}
