"""The driver's two descriptors, one method per ioctl: /dev/nitro_enclaves, and what NE_CREATE_VM returns.

Whatever they raise is a NitroDeviceError, whose text says what was tried and what to do about it. The calls block, and
a device that does not answer holds the calling thread in an uninterruptible wait for up to 120 s.

Memory and CPUs may only be added by the process that created the enclave, and an enclave lives until the last copy of
its descriptor is closed: the process that creates it has to be the one that stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from pyrune.errors import BackendError
from pyrune.ne.uapi import (
    ALLOCATOR_SERVICE,
    ENCLAVE_START_INFO,
    EXPLANATIONS,
    IMAGE_LOAD_INFO,
    NE_ADD_VCPU,
    NE_CREATE_VM,
    NE_EIF_IMAGE,
    NE_ENCLAVE_DEBUG_MODE,
    NE_GET_IMAGE_LOAD_INFO,
    NE_SET_USER_MEMORY_REGION,
    NE_START_ENCLAVE,
    SLOT_ID,
    USER_MEMORY_REGION,
    VCPU_ID,
    Explanation,
    NeError,
)

DEVICE_PATH: Final = "/dev/nitro_enclaves"
_KERNEL_LOG: Final = "see the kernel's log (dmesg)"
_ENABLE: Final = (
    "launch the instance with --enclave-options Enabled=true, on an instance type that has Nitro Enclaves, "
    "and load the driver: modprobe nitro_enclaves"
)
_JOIN: Final = "run as root, or as a member of the group of that device (ne)"

_OPEN_ERRORS: Final = {
    errno.ENOENT: Explanation("the device is missing", _ENABLE),
    errno.ENOTDIR: Explanation("the device is missing", _ENABLE),
    errno.ENODEV: Explanation("there is no driver behind it", _ENABLE),
    errno.ENXIO: Explanation("there is no driver behind it", _ENABLE),
    errno.EACCES: Explanation("this user may not open it", _JOIN),
    errno.EPERM: Explanation(
        "this process may not open it", f"{_JOIN}, and let the container it runs in use the device"
    ),
    errno.EBUSY: Explanation("it is in use", "stop what uses it, and try again"),
    errno.EMFILE: Explanation("this process has too many files open", "raise the limit on open files"),
    errno.ENFILE: Explanation("this machine has too many files open", "raise fs.file-max"),
}

# The driver passes on what its PCI device answers, as ordinary error numbers.
_IOCTL_ERRORS: Final = {
    errno.EIO: Explanation("the enclave belongs to another process", "this is a bug in pyrune: please report it"),
    errno.EINTR: Explanation("the call was interrupted", "try again"),
    errno.EAGAIN: Explanation("the device is busy", "try again"),
    errno.EBUSY: Explanation("the device is busy", "try again"),
    errno.ENOMEM: Explanation(
        "the kernel or the device has no memory for it", "stop another enclave or program, and try again"
    ),
    errno.EFAULT: Explanation(
        "the memory named in the call cannot be used",
        f"see that the huge pages are not used up, on the enclave's NUMA node and in the hugetlb cgroup; "
        f"{ALLOCATOR_SERVICE} reserves them",
    ),
    errno.EINVAL: Explanation("the device refuses the values", _KERNEL_LOG),
    errno.ENOTTY: Explanation(
        "what is there is not the Nitro Enclaves driver, or one of another version", "load the driver nitro_enclaves"
    ),
    errno.ENODEV: Explanation("the device is gone", _KERNEL_LOG),
    errno.ENXIO: Explanation("the device has no such enclave", _KERNEL_LOG),
    errno.ETIMEDOUT: Explanation(
        "the device has not answered within 120 s", f"{_KERNEL_LOG}; stop and start the instance if it stays so"
    ),
    errno.EPERM: Explanation("this process may not do that", "run as root"),
    errno.EACCES: Explanation("this process may not do that", "run as root"),
    errno.EMFILE: Explanation("this process has too many files open", "raise the limit on open files"),
    errno.ENFILE: Explanation("this machine has too many files open", "raise fs.file-max"),
    errno.EEXIST: Explanation("it is taken already", "stop another enclave, or leave cid= out"),
    errno.EADDRINUSE: Explanation("it is taken already", "stop another enclave, or leave cid= out"),
    errno.ENOSPC: Explanation("the device has no room for another one", "stop another enclave"),
}


class NitroDeviceError(BackendError):
    """The driver or the device refused. `number` is the errno, a NeError among them."""

    def __init__(self, attempt: str, number: int, table: dict[int, Explanation]) -> None:
        self.number = number
        explanation = _explain(number, table)
        super().__init__(f"{attempt}: {explanation.meaning} (error {number})", remedy=explanation.remedy)


def _explain(number: int, table: dict[int, Explanation]) -> Explanation:
    if number in table:
        return table[number]
    try:
        return EXPLANATIONS[NeError(number)]
    except ValueError:
        name = errno.errorcode.get(number, "a number that is not known")
        return Explanation(f"the answer is {name}", _KERNEL_LOG)


def open_error(number: int, path: str = DEVICE_PATH) -> NitroDeviceError:
    """The error for an open of the device that failed with `number`."""
    return NitroDeviceError(f"{path} cannot be opened", number, _OPEN_ERRORS)


def ioctl_error(attempt: str, number: int) -> NitroDeviceError:
    """The error for an ioctl that failed with `number`."""
    return NitroDeviceError(attempt, number, _IOCTL_ERRORS)


class NitroDevice:
    """/dev/nitro_enclaves, open. It is needed no longer than for `create_vm`."""

    def __init__(self, path: str = DEVICE_PATH) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise open_error(exc.errno or 0, path) from exc

    def create_vm(self) -> EnclaveVm:
        """A slot for one enclave. No CPU and no memory are taken yet."""
        slot = bytearray(SLOT_ID.size)
        try:
            # With an immutable buffer Python would return its copy, and the descriptor would be lost.
            fd = fcntl.ioctl(self._fd, NE_CREATE_VM, slot)
        except OSError as exc:
            raise ioctl_error("an enclave cannot be created (NE_CREATE_VM)", exc.errno or 0) from exc
        return EnclaveVm(fd, SLOT_ID.unpack(slot)[0])

    def close(self) -> None:
        """May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> NitroDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EnclaveVm:
    """An enclave's descriptor, which the object owns. It shows POLLHUP, and nothing else, once the enclave has ended.

    Closing it stops the enclave and frees CPUs and slot; memory goes back when its mappings are gone, too.
    """

    def __init__(self, fd: int, slot_id: int) -> None:
        self.fd = fd
        self.slot_id = slot_id

    def image_load_offset(self) -> int:
        """Where in enclave memory the driver wants the EIF, in bytes."""
        info = bytearray(IMAGE_LOAD_INFO.pack(NE_EIF_IMAGE, 0))
        self._ioctl(NE_GET_IMAGE_LOAD_INFO, info, "the place for the image is unknown (NE_GET_IMAGE_LOAD_INFO)")
        offset: int = IMAGE_LOAD_INFO.unpack(info)[1]
        return offset

    def set_user_memory_region(self, address: int, size_bytes: int) -> None:
        """Give the enclave a region of this process's huge pages, after what it was given before."""
        region = bytearray(USER_MEMORY_REGION.pack(0, size_bytes, address))
        attempt = f"{size_bytes >> 20} MiB of memory cannot be given to the enclave (NE_SET_USER_MEMORY_REGION)"
        self._ioctl(NE_SET_USER_MEMORY_REGION, region, attempt)

    def add_vcpu(self, cpu_id: int = 0) -> int:
        """Give the enclave a CPU of the pool; 0 lets the driver choose. Returns its number.

        The first CPU of a core reserves the whole core.
        """
        vcpu = bytearray(VCPU_ID.pack(cpu_id))
        which = f"CPU {cpu_id}" if cpu_id else "a CPU"
        self._ioctl(NE_ADD_VCPU, vcpu, f"{which} cannot be given to the enclave (NE_ADD_VCPU)")
        chosen: int = VCPU_ID.unpack(vcpu)[0]
        return chosen

    def start(self, enclave_cid: int, *, debug: bool) -> int:
        """Boot the enclave; `enclave_cid` 0 lets the driver choose. Returns its CID.

        The enclave may be up, and its heartbeat here, before this returns.
        """
        info = bytearray(ENCLAVE_START_INFO.pack(NE_ENCLAVE_DEBUG_MODE if debug else 0, enclave_cid))
        as_cid = f" as CID {enclave_cid}" if enclave_cid else ""
        self._ioctl(NE_START_ENCLAVE, info, f"the enclave cannot be started{as_cid} (NE_START_ENCLAVE)")
        chosen: int = ENCLAVE_START_INFO.unpack(info)[1]
        return chosen

    def close(self) -> None:
        """Stop the enclave if it runs; may block as long as the device takes. May be called again."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _ioctl(self, request: int, argument: bytearray, attempt: str) -> None:
        try:
            fcntl.ioctl(self.fd, request, argument)
        except OSError as exc:
            raise ioctl_error(attempt, exc.errno or 0) from exc
