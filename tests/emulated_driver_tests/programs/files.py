"""Files, children, and what else a program meets."""

from __future__ import annotations

import ctypes
import os
import time

from tests.emulated_driver_tests.programs.client import DEVICE, attempt


def read_files(*paths: str) -> object:
    found: dict[str, str | int] = {}
    for path in paths:
        try:
            with open(path) as file:
                found[path] = file.read()
        except OSError as exc:
            found[path] = exc.errno or -1
    return found


def look_at_files() -> object:
    import stat

    status = os.stat(DEVICE)
    cpus = [name for name in os.listdir("/sys/devices/system/cpu") if name[3:].isdecimal()]
    top = os.open("/sys/devices/system/cpu", os.O_RDONLY | os.O_DIRECTORY)
    relative = os.open("cpu3/topology/thread_siblings_list", os.O_RDONLY, dir_fd=top)
    return {
        "is a device": stat.S_ISCHR(status.st_mode),
        "major": os.major(status.st_rdev),
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "lstat": os.lstat(DEVICE).st_rdev == status.st_rdev,
        "readable": os.access(DEVICE, os.R_OK | os.W_OK),
        "opened is a device": stat.S_ISCHR(os.fstat(os.open(DEVICE, os.O_RDONLY)).st_mode),
        "cpus": len(cpus),
        "relative": os.read(relative, 100).decode(),
        "node": os.readlink("/sys/devices/system/cpu/cpu5/node0"),
        "pages": os.path.exists("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages"),
        "write": attempt(lambda: os.open("/sys/module/nitro_enclaves/parameters/ne_cpus", os.O_WRONLY)),
        "absent": attempt(lambda: os.stat("/sys/module/nitro_enclaves/absent")),
        "others": os.path.exists("/etc/passwd") and open("/proc/self/comm").read().strip() != "",
    }


def open_with_bad_pointers() -> object:
    """A path at address 8, and how to open it there."""
    libc = ctypes.CDLL(None, use_errno=True)
    errors = []
    for path, how in ((ctypes.c_void_p(8), ctypes.create_string_buffer(24)), (DEVICE.encode(), ctypes.c_void_p(8))):
        assert libc.syscall(ctypes.c_long(437), ctypes.c_long(-100), path, how, ctypes.c_size_t(24)) == -1
        errors.append(ctypes.get_errno())
    return errors


def status_and_streams(status: int) -> object:
    os.write(1, b"out")
    os.write(2, b"err")
    os._exit(status)


def open_in_grandchild() -> object:
    """Children inherit the machine, also those that exec."""
    import subprocess

    done = subprocess.run(["cat", "/sys/module/nitro_enclaves/parameters/ne_cpus"], stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def leave_behind(delay_s: float) -> object:
    """A child that opens the device later."""
    if os.fork() == 0:
        time.sleep(delay_s)
        os.close(os.open(DEVICE, os.O_RDONLY))
        os._exit(0)
    return None


def open_many(count: int) -> object:
    """Seconds for so many opens and closes of an ordinary file."""
    begin = time.monotonic()
    for _ in range(count):
        os.close(os.open("/etc/passwd", os.O_RDONLY))
    return time.monotonic() - begin
