"""What `pyrune check` finds out about a machine: what is ready to run enclaves, what is missing, and what mends it.

It only looks: nothing is opened for writing, made or changed, and no vsock is opened. Every question goes to files
below a root directory, so that tests ask them of a directory tree.

Sources: the kernel's Documentation/virt/ne_overview.rst; the package aws-nitro-enclaves-cli (allocator, blobs).
"""

from __future__ import annotations

import json
import os
import platform
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pyrune.backend import BackendName
from pyrune.eif.format import Architecture
from pyrune.local.machine import kvm_works, program_name
from pyrune.ne.cpu_pool import CpuPool, format_cpu_list
from pyrune.ne.hugepages import free_pages, in_words, online_nodes
from pyrune.ne.uapi import ALLOCATOR_FILE, ALLOCATOR_SERVICE, MIN_ENCLAVE_BYTES
from pyrune.process import find_program

BLOBS = "usr/share/nitro_enclaves/blobs"
_RESTART = f"sudo systemctl restart {ALLOCATOR_SERVICE}"


class Verdict(StrEnum):
    """`missing` is what a back end cannot do without; `noted` is worth knowing."""

    READY = "ready"
    MISSING = "missing"
    NOTED = "noted"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer. `remedy` is a command where there is one; `backend` is whom it concerns, None for all."""

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""
    backend: BackendName | None = None


def look_over(root: Path = Path("/")) -> list[Finding]:
    """Everything there is to say about the machine below `root`."""
    nitro: list[Callable[[Path], Iterator[Finding]]] = [_device, _module, _cpu_pool, _huge_pages, _allocator, _vsock]
    findings = [_of(BackendName.NITRO, finding) for question in nitro for finding in question(root)]
    findings += [_of(BackendName.LOCAL, finding) for finding in (*_qemu(), *_kvm(root))]
    return [*findings, *_blobs(root), *_docker(root)]


def can_run(backend: BackendName, findings: list[Finding]) -> bool:
    """Whether nothing that this back end needs is missing."""
    return not any(f.verdict is Verdict.MISSING and f.backend in (backend, None) for f in findings)


def _of(backend: BackendName, finding: Finding) -> Finding:
    return Finding(finding.subject, finding.verdict, finding.text, finding.remedy, backend)


def _device(root: Path) -> Iterator[Finding]:
    path = root / "dev/nitro_enclaves"
    try:
        is_device = stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        is_device = False
    if not is_device:
        yield Finding(
            "device",
            Verdict.MISSING,
            "/dev/nitro_enclaves is missing: this is no EC2 instance with Nitro Enclaves enabled, or its driver is "
            "not loaded",
            "launch the instance with: aws ec2 run-instances --enclave-options Enabled=true ...; "
            "then: sudo modprobe nitro_enclaves",
        )
    elif not os.access(path, os.R_OK):
        yield Finding(
            "device", Verdict.MISSING, "this user may not open /dev/nitro_enclaves", "sudo usermod -aG ne $USER"
        )
    else:
        yield Finding("device", Verdict.READY, "/dev/nitro_enclaves can be opened")


def _module(root: Path) -> Iterator[Finding]:
    if (root / "sys/module/nitro_enclaves").is_dir():
        yield Finding("driver", Verdict.READY, "the module nitro_enclaves is loaded")
    else:
        yield Finding(
            "driver", Verdict.MISSING, "the module nitro_enclaves is not loaded", "sudo modprobe nitro_enclaves"
        )


def _cpu_pool(root: Path) -> Iterator[Finding]:
    pool = CpuPool.read(root / "sys")
    raise_it = f"set cpu_count in {ALLOCATOR_FILE}, then: {_RESTART}"
    if not pool.cpus:
        yield Finding("cpu pool", Verdict.MISSING, "no CPU is set aside for enclaves", raise_it)
        return
    node = "" if pool.node is None else f" on NUMA node {pool.node}"
    yield Finding("cpu pool", Verdict.READY, f"{len(pool.cpus)} CPUs ({format_cpu_list(pool.cpus)}){node}")
    if len(pool.cpus) % pool.threads_per_core:
        yield Finding(
            "cpu pool",
            Verdict.MISSING,
            f"the pool is not made of full cores, which have {pool.threads_per_core} threads each",
            raise_it,
        )


def _huge_pages(root: Path) -> Iterator[Finding]:
    """The pages of the pool's node are those that count; the others are for the record."""
    sysfs = root / "sys"
    wanted_node = CpuPool.read(sysfs).node
    for node in online_nodes(sysfs) or (None,):
        free = free_pages(node, sysfs)
        counts = ", ".join(f"{count} of {in_words(size)}" for size, count in sorted(free.items()) if count)
        where = "the machine" if node is None else f"NUMA node {node}"
        enough = sum(size * count for size, count in free.items()) >= MIN_ENCLAVE_BYTES
        if enough or node != wanted_node:
            verdict = Verdict.READY if enough else Verdict.NOTED
            yield Finding("huge pages", verdict, f"free on {where}: {counts or 'none'}")
        else:
            yield Finding(
                "huge pages",
                Verdict.MISSING,
                f"free on {where}: {counts or 'none'}; an enclave needs {in_words(MIN_ENCLAVE_BYTES)} or more",
                f"set memory_mib in {ALLOCATOR_FILE}, then: {_RESTART}",
            )


def _allocator(root: Path) -> Iterator[Finding]:
    try:
        text = (root / ALLOCATOR_FILE.lstrip("/")).read_text(errors="replace")
    except OSError:
        yield Finding(
            "allocator",
            Verdict.NOTED,
            f"{ALLOCATOR_FILE} is not there: AWS's allocator, which sets CPUs and memory aside, is not installed",
            "on Amazon Linux: sudo dnf install aws-nitro-enclaves-cli; "
            f"sudo systemctl enable --now {ALLOCATOR_SERVICE}",
        )
        return
    # The file is YAML, of which only flat `key: value` lines matter.
    settings = dict(re.findall(r"^(memory_mib|cpu_count|cpu_pool)\s*:\s*([0-9,\-]+)\s*(?:#.*)?$", text, re.MULTILINE))
    said = ", ".join(f"{key} {value}" for key, value in settings.items()) or "nothing"
    yield Finding("allocator", Verdict.READY, f"{ALLOCATOR_FILE} sets aside: {said}")
    if "cpu_count" in settings and "cpu_pool" in settings:
        yield Finding(
            "allocator",
            Verdict.NOTED,
            "both cpu_count and cpu_pool are set; the allocator takes only one of them",
            f"remove one from {ALLOCATOR_FILE}, then: {_RESTART}",
        )


def _vsock(root: Path) -> Iterator[Finding]:
    if (root / "dev/vsock").exists() or (root / "sys/module/vsock").is_dir():
        yield Finding("vsock", Verdict.READY, "this kernel speaks vsock")
    else:
        yield Finding("vsock", Verdict.MISSING, "this kernel does not speak vsock", "sudo modprobe vsock")


_QEMU_PACKAGES = {Architecture.X86_64: "qemu-system-x86", Architecture.AARCH64: "qemu-system-arm"}


def _qemu() -> Iterator[Finding]:
    """The host's own architecture is what most images are for; the other one can be emulated."""
    for architecture in Architecture:
        own = platform.machine() == architecture.value
        path = find_program(program_name(architecture))
        if path:
            yield Finding("qemu", Verdict.READY, f"{architecture.value} images run in {path}")
        else:
            yield Finding(
                "qemu",
                Verdict.MISSING if own else Verdict.NOTED,
                f"{architecture.value} images need {program_name(architecture)}, which is not installed",
                f"sudo apt-get install --no-install-recommends {_QEMU_PACKAGES[architecture]}",
            )


def _kvm(root: Path) -> Iterator[Finding]:
    if any(kvm_works(architecture) for architecture in Architecture):
        yield Finding("kvm", Verdict.READY, "the local virtual machine runs at the processor's speed")
    else:
        device = root / "dev/kvm"
        barred = device.exists() and not os.access(device, os.R_OK | os.W_OK)
        why = "this user may not open /dev/kvm" if barred else "KVM does not work here"
        remedy = "sudo usermod -aG kvm $USER" if barred else ""
        yield Finding("kvm", Verdict.NOTED, f"{why}: the local virtual machine is emulated, which is slower", remedy)


def _blobs(root: Path) -> Iterator[Finding]:
    found = sorted(path.name for path in (root / BLOBS).glob("*"))
    if any(name.startswith(("bzImage", "Image")) for name in found):
        yield Finding("kernel blobs", Verdict.READY, f"AWS's enclave kernel and init are in /{BLOBS}")
    else:
        yield Finding(
            "kernel blobs",
            Verdict.NOTED,
            f"AWS's enclave kernel, of which images for Nitro are built, is not in /{BLOBS}",
            "on Amazon Linux: sudo dnf install aws-nitro-enclaves-cli-devel",
        )


def _docker(root: Path) -> Iterator[Finding]:
    file = root / "etc/docker/daemon.json"
    try:
        document = json.loads(file.read_bytes())
        runtimes = document.get("runtimes") or {}
        paths = {name: str(runtime.get("path", "")) for name, runtime in runtimes.items()}
    except FileNotFoundError:
        paths = {}
    except (OSError, ValueError, AttributeError):
        yield Finding("docker", Verdict.NOTED, "/etc/docker/daemon.json cannot be read", "mend that file")
        return
    ours = [f"{name} ({path})" for name, path in paths.items() if os.path.basename(path) == "pyrune"]
    if ours:
        yield Finding("docker", Verdict.READY, f"dockerd knows pyrune as {', '.join(ours)}")
    else:
        yield Finding("docker", Verdict.NOTED, "dockerd does not know pyrune")
