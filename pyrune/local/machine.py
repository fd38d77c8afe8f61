"""QEMU's command line for one enclave image: a pure function from what to boot to a list of arguments.

Which machine, and why (measured with QEMU 7.2 to 11 and the kernels of Debian 12 and 13 and of AWS):

    x86_64   q35, where a distribution's kernel finds its devices on PCI; microvm for a kernel that is told
             `pci=off`, as AWS's are: it finds virtio-mmio devices on its command line, where QEMU puts them for
             microvm. A microvm under TCG hangs in the calibration of its clock more often than not, unless it is
             told the frequency.
    aarch64  virt, with the devices on virtio-mmio, which kernels find by device tree.

Arguments that this file adds to the command line tell the kernel of the machine, never of the workload; they are not
part of what is measured. The console is one character device whatever the kernel calls it.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pyrune.eif.format import Architecture

MAX_VCPUS = 255
KVM_DEVICE = Path("/dev/kvm")


class Accelerator(StrEnum):
    """How QEMU runs the guest's instructions; TCG emulates them, on any machine."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot. The descriptors are ones that QEMU inherits: memory files, and one end of a socket pair each."""

    name: str
    architecture: Architecture
    accelerator: Accelerator
    memory_mib: int
    vcpus: int
    kernel_fd: int
    initrd_fd: int
    cmdline: str
    console_fd: int
    vsock_fd: int
    qmp_fd: int

    def descriptors(self) -> list[int]:
        return [self.kernel_fd, self.initrd_fd, self.console_fd, self.vsock_fd, self.qmp_fd]


def program_name(architecture: Architecture) -> str:
    """The name of the QEMU program that emulates `architecture`."""
    return f"qemu-system-{architecture.value}"


def arguments(machine: Machine) -> list[str]:
    """QEMU's arguments after the program's name. The machine waits for QMP's `cont` before its first instruction."""
    return [
        *("-name", machine.name.replace(",", ",,")),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-accel", machine.accelerator.value),
        *("-m", f"{machine.memory_mib}M", "-smp", str(machine.vcpus)),
        # The vsock device is another process: it must be able to map the guest's memory.
        *("-object", f"memory-backend-memfd,id=memory,size={machine.memory_mib}M,share=on"),
        *("-chardev", f"socket,id=qmp,fd={machine.qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=vsock,fd={machine.vsock_fd}"),
        *("-kernel", f"/proc/self/fd/{machine.kernel_fd}", "-initrd", f"/proc/self/fd/{machine.initrd_fd}"),
        *(_x86_64(machine) if machine.architecture is Architecture.X86_64 else _aarch64(machine)),
    ]


def _x86_64(machine: Machine) -> list[str]:
    cpu = "host" if machine.accelerator is Accelerator.KVM else "max"
    common = ["-cpu", cpu, "-chardev", f"socket,id=console,fd={machine.console_fd}", "-serial", "chardev:console"]
    if wants_virtio_mmio(machine.cmdline):
        cmdline = machine.cmdline
        if machine.accelerator is Accelerator.TCG:
            cmdline = f"{cmdline} tsc_early_khz={_tsc_khz()}"
        return [
            *("-M", "microvm,memory-backend=memory", "-append", cmdline),
            *("-device", "vhost-user-vsock-device,chardev=vsock"),
            *common,
        ]
    return [
        *("-M", "q35,memory-backend=memory", "-append", machine.cmdline),
        *("-device", "vhost-user-vsock-pci,chardev=vsock"),
        *common,
    ]


def _aarch64(machine: Machine) -> list[str]:
    # AWS's programs for Graviton use the atomics of ARMv8.1, which QEMU's older models lack.
    cpu = "host" if machine.accelerator is Accelerator.KVM else "neoverse-n1"
    return [
        *("-M", "virt,gic-version=3,memory-backend=memory", "-cpu", cpu),
        *("-global", "virtio-mmio.force-legacy=false"),
        # No `virt` machine has the ttyS0 that images for Nitro name. A kernel of AWS's has no driver for the PL011, and
        # a distribution's has none built in for virtconsole: each takes the one it knows, the last that it can.
        *("-chardev", f"socket,id=console,fd={machine.console_fd},mux=on"),
        *("-serial", "chardev:console", "-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"),
        *("-append", f"{machine.cmdline} console=ttyAMA0 console=hvc0"),
        *("-device", "vhost-user-vsock-device,chardev=vsock"),
    ]


def wants_virtio_mmio(cmdline: str) -> bool:
    """Whether a kernel with this command line can find no device on PCI."""
    return "pci=off" in cmdline.split()


def _tsc_khz() -> int:
    """The frequency of the time stamp counter that a guest under TCG sees: the host's own, where that has one."""
    if platform.machine() == "x86_64" and (found := re.search(r"^cpu MHz\s*:\s*([0-9.]+)", _cpuinfo(), re.MULTILINE)):
        return round(float(found[1]) * 1000)
    return 1_000_000


def kvm_works(architecture: Architecture) -> bool:
    """Whether KVM can run this architecture here: same as the host's, virtualisation present, the device ours to open.

    /dev/kvm alone proves nothing: there are machines where it opens and every guest ends in an internal error.
    """
    if platform.machine() != architecture.value:
        return False
    if architecture is Architecture.X86_64 and not re.search(r"^flags\s*:.*\b(svm|vmx)\b", _cpuinfo(), re.MULTILINE):
        return False
    try:
        with KVM_DEVICE.open("r+b", buffering=0):
            return True
    except OSError:
        return False


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(errors="replace")
