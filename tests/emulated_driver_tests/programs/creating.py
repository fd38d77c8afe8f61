"""NE_CREATE_VM and the device."""

from __future__ import annotations

import ctypes
import fcntl
import os
import time

from tests.emulated_driver_tests.programs.client import ADD_VCPU, CREATE_VM, DEVICE, Enclave, attempt

_libc = ctypes.CDLL(None, use_errno=True)


def describe_new_enclave() -> object:
    enclave = Enclave()
    flags = fcntl.fcntl(enclave.fd, fcntl.F_GETFD)
    return {"close_on_exec": bool(flags & fcntl.FD_CLOEXEC), "slot": enclave.slot, "poll": enclave.poll()}


def create_many(count: int) -> object:
    """Outcomes of so many creates, with nothing closed in between."""
    kept = []
    outcomes = []
    for _ in range(count):
        outcomes.append(attempt(lambda: kept.append(Enclave())))
    return outcomes


def create_with_bad_pointer() -> object:
    device = os.open(DEVICE, os.O_RDWR)
    result = _libc.ioctl(device, ctypes.c_ulong(CREATE_VM), ctypes.c_void_p(8))
    return [result, ctypes.get_errno()]


def unknown_ioctls() -> object:
    device = os.open(DEVICE, os.O_RDWR)
    enclave = Enclave()
    return [
        attempt(lambda: fcntl.ioctl(device, ADD_VCPU, bytearray(4))),
        attempt(lambda: fcntl.ioctl(enclave.fd, CREATE_VM, bytearray(8))),
        attempt(lambda: fcntl.ioctl(enclave.fd, 0xAE03, 0)),
    ]


def create_beside_all_cores() -> object:
    """While one enclave has the only core, and when it is closed."""
    enclave = Enclave()
    enclave.add_vcpu()
    meanwhile = attempt(lambda: Enclave().close())
    enclave.close()
    return [meanwhile, attempt(lambda: Enclave().close())]


def hold_enclave() -> object:
    enclave = Enclave()
    time.sleep(60)
    return enclave.slot


def open_device() -> object:
    return attempt(lambda: os.close(os.open(DEVICE, os.O_RDONLY)))
