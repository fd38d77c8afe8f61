"""QEMU's command line, golden: each list is what boots in tests/qemu, and a change of it is meant."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.local import machine as machine_module
from pyrune.local.machine import Accelerator, Machine, arguments, kvm_works, program_name, wants_virtio_mmio

X86_64 = Machine(
    name="pyrune-enclave",
    architecture=Architecture.X86_64,
    accelerator=Accelerator.TCG,
    memory_mib=512,
    vcpus=2,
    kernel_fd=10,
    initrd_fd=11,
    cmdline="console=ttyS0 panic=-1",
    console_fd=12,
    vsock_fd=13,
    qmp_fd=14,
)
AARCH64 = replace(X86_64, architecture=Architecture.AARCH64)

COMMON = """
-name pyrune-enclave
-nodefaults -no-user-config -display none -no-reboot -S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-accel tcg
-m 512M -smp 2
-object memory-backend-memfd,id=memory,size=512M,share=on
-chardev socket,id=qmp,fd=14 -mon chardev=qmp,mode=control
-chardev socket,id=vsock,fd=13
-kernel /proc/self/fd/10 -initrd /proc/self/fd/11
"""
Q35 = """
-M q35,memory-backend=memory -append CMDLINE
-device vhost-user-vsock-pci,chardev=vsock
-cpu max -chardev socket,id=console,fd=12 -serial chardev:console
"""
MICROVM = """
-M microvm,memory-backend=memory -append CMDLINE
-device vhost-user-vsock-device,chardev=vsock
-cpu max -chardev socket,id=console,fd=12 -serial chardev:console
"""
VIRT = """
-M virt,gic-version=3,memory-backend=memory -cpu neoverse-n1
-global virtio-mmio.force-legacy=false
-chardev socket,id=console,fd=12,mux=on
-serial chardev:console -device virtio-serial-device -device virtconsole,chardev=console
-append CMDLINE
-device vhost-user-vsock-device,chardev=vsock
"""


def golden(part: str, cmdline: str, accelerator: str = "tcg", cpu: str | None = None) -> list[str]:
    expected = [cmdline if word == "CMDLINE" else word for word in (COMMON + part).split()]
    expected[expected.index("-accel") + 1] = accelerator
    if cpu:
        expected[expected.index("-cpu") + 1] = cpu
    return expected


@pytest.fixture
def tsc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose time stamp counter runs at 2.5 GHz."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine_module, "_cpuinfo", lambda: "processor\t: 0\ncpu MHz\t\t: 2500.125\ncpu MHz\t\t: 1.0\n")


def test_x86_64_is_q35() -> None:
    assert arguments(X86_64) == golden(Q35, "console=ttyS0 panic=-1")


def test_x86_64_with_kvm_has_the_hosts_cpu() -> None:
    kvm = replace(X86_64, accelerator=Accelerator.KVM)
    assert arguments(kvm) == golden(Q35, "console=ttyS0 panic=-1", "kvm", "host")


@pytest.mark.usefixtures("tsc")
def test_a_kernel_without_pci_is_a_microvm_that_knows_its_clock_under_tcg() -> None:
    machine = replace(X86_64, cmdline="pci=off console=ttyS0")
    assert arguments(machine) == golden(MICROVM, "pci=off console=ttyS0 tsc_early_khz=2500125")


@pytest.mark.usefixtures("tsc")
def test_a_microvm_with_kvm_measures_its_clock_itself() -> None:
    machine = replace(X86_64, cmdline="pci=off", accelerator=Accelerator.KVM)
    assert arguments(machine) == golden(MICROVM, "pci=off", "kvm", "host")


@pytest.mark.parametrize("host", ["aarch64", "x86_64"])
def test_a_host_that_tells_no_frequency_has_one_all_the_same(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: host)
    monkeypatch.setattr(machine_module, "_cpuinfo", lambda: "" if host == "x86_64" else "cpu MHz : 3.0\n")
    assert arguments(replace(X86_64, cmdline="pci=off")) == golden(MICROVM, "pci=off tsc_early_khz=1000000")


def test_aarch64_is_virt_with_both_consoles() -> None:
    assert arguments(AARCH64) == golden(VIRT, "console=ttyS0 panic=-1 console=ttyAMA0 console=hvc0")
    kvm = replace(AARCH64, accelerator=Accelerator.KVM, cmdline="pci=off")
    assert arguments(kvm) == golden(VIRT, "pci=off console=ttyAMA0 console=hvc0", "kvm", "host")


def test_a_name_with_commas_is_one_name() -> None:
    given = arguments(replace(X86_64, name="a,debug-threads=on,,b"))
    assert given[given.index("-name") + 1] == "a,,debug-threads=on,,,,b"


@pytest.mark.parametrize("cmdline", ["-version", "a,b=c", '"quoted" \\', "", "x" * 60_000, "é"])
def test_the_command_line_is_one_argument_whatever_it_holds(cmdline: str) -> None:
    given = arguments(replace(X86_64, cmdline=cmdline))
    assert given[given.index("-append") + 1] == cmdline
    assert len(given) == len(arguments(X86_64))


@pytest.mark.parametrize(
    ("cmdline", "wanted"),
    [
        *(("pci=off", True), ("a pci=off b", True), ("a\tpci=off\n", True)),
        *(("", False), ("pci=offb", False), ("xpci=off", False), ("pci=noacpi", False), ("PCI=OFF", False)),
    ],
)
def test_a_kernel_without_pci_says_so_in_a_word_of_its_own(cmdline: str, wanted: bool) -> None:
    assert wants_virtio_mmio(cmdline) is wanted


def test_every_descriptor_in_the_arguments_is_inherited() -> None:
    for machine in (X86_64, AARCH64):
        text = " ".join(arguments(machine))
        named = {fd for fd in range(10, 20) if f"fd={fd}" in text or f"/fd/{fd}" in text}
        assert named == set(machine.descriptors()) == {10, 11, 12, 13, 14}


def test_programs_are_named_after_the_architecture() -> None:
    assert [program_name(a) for a in Architecture] == ["qemu-system-x86_64", "qemu-system-aarch64"]


@pytest.mark.parametrize(
    ("host", "cpuinfo", "works"),
    [
        ("x86_64", "flags\t\t: fpu vmx sse\n", True),
        ("x86_64", "flags\t\t: fpu svm\n", True),
        ("x86_64", "flags\t\t: fpu vmx_preemption\n", False),
        ("x86_64", "model name : vmx\n", False),
        ("aarch64", "flags\t\t: vmx\n", False),
    ],
)
def test_kvm_needs_the_hosts_architecture_and_its_processor(
    host: str, cpuinfo: str, works: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(machine_module, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(platform, "machine", lambda: host)
    monkeypatch.setattr(machine_module, "_cpuinfo", lambda: cpuinfo)
    assert kvm_works(Architecture.X86_64) is works
    monkeypatch.setattr(machine_module, "KVM_DEVICE", tmp_path / "nothing")
    assert not kvm_works(Architecture.X86_64)
