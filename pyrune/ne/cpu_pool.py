"""The enclave CPU pool: CPUs that the operator has taken from the parent, for the driver to give to enclaves.

The driver gives away full cores only: the first CPU of a core reserves its siblings, too, and an enclave cannot start
until it has all of them. CPUs of the pool are offline, so sysfs knows little about them. All of them are on one NUMA
node. The parameter says which CPUs are in the pool, not which of them are free: only asking the driver tells.

Source: drivers/virt/nitro_enclaves/ne_misc_dev.c and the kernel's Documentation/admin-guide/cputopology.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyrune.errors import BackendError
from pyrune.ne.device import EnclaveVm, NitroDeviceError
from pyrune.ne.hugepages import SYSFS, online_nodes
from pyrune.ne.uapi import ALLOCATOR_FILE, ALLOCATOR_SERVICE, NeError

_PARAMETER: Final = "module/nitro_enclaves/parameters/ne_cpus"
_ENLARGE: Final = f"raise cpu_count in {ALLOCATOR_FILE} and restart {ALLOCATOR_SERVICE}"
_MAX_CPU: Final = 1 << 16
_USED_UP: Final = (NeError.NO_CPUS_AVAIL_IN_POOL, NeError.VCPU_NOT_IN_CPU_POOL)


@dataclass(frozen=True, slots=True)
class CpuPool:
    """What sysfs says of the pool. `cpus` is None where it says nothing, `node` likewise."""

    cpus: tuple[int, ...] | None
    threads_per_core: int
    node: int | None

    @classmethod
    def read(cls, sysfs: Path = SYSFS) -> CpuPool:
        """The pool as it is now."""
        cpus = _read_cpu_list(sysfs / _PARAMETER)
        # CPU 0 never goes into the pool, and on these machines every core has as many threads as another.
        siblings = _read_cpu_list(sysfs / "devices/system/cpu/cpu0/topology/thread_siblings_list")
        return cls(cpus, len(siblings or (0,)), _node_of(cpus or (), sysfs))

    @property
    def described(self) -> str:
        """The pool in a sentence."""
        if self.cpus is None:
            return "the enclave CPU pool"
        if not self.cpus:
            return "the enclave CPU pool, which is empty"
        return f"the enclave CPU pool of {len(self.cpus)} CPUs ({format_cpu_list(self.cpus)})"

    def full_cores(self, count: int) -> int:
        """`count` CPUs, rounded up to full cores."""
        return -(-count // self.threads_per_core) * self.threads_per_core

    def require(self, count: int, cpu_ids: tuple[int, ...]) -> None:
        """Raise BackendError for a wish that the pool cannot fulfil even when nothing of it is taken."""
        if self.cpus is None:
            return
        if missing := [cpu for cpu in cpu_ids if cpu not in self.cpus]:
            raise BackendError(
                f"the enclave is to have CPU {format_cpu_list(missing)}, which is not in {self.described}",
                remedy="name CPUs of the pool",
            )
        if count > len(self.cpus):
            raise BackendError(
                f"the enclave is given {count} vCPUs, more than {self.described} has",
                remedy=f"say vcpus={len(self.cpus)} or less, or {_ENLARGE}" if self.cpus else _ENLARGE,
            )


def add_vcpus(vm: EnclaveVm, pool: CpuPool, count: int, cpu_ids: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Give the enclave these CPUs, or `count` that the driver chooses. Returns their numbers. Raises BackendError."""
    taken: list[int] = []
    for cpu_id in cpu_ids or (0,) * count:
        try:
            taken.append(vm.add_vcpu(cpu_id))
        except NitroDeviceError as exc:
            if cpu_id or exc.number not in _USED_UP:
                raise
            raise BackendError(
                f"the enclave is given {count} vCPUs, but only {len(taken)} are free in {pool.described} "
                f"(NE_ADD_VCPU, error {exc.number})",
                remedy=f"stop another enclave, or {_ENLARGE}",
            ) from exc
    return tuple(taken)


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The CPUs of a list in the kernel's form, such as "1-3,8". Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        matched = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", part)
        if matched is None:
            raise ValueError(f"{part!r} is no CPU and no range of CPUs")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if last < first or last > _MAX_CPU:
            raise ValueError(f"{part!r} is no range of CPUs")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_cpu_list(cpus: tuple[int, ...] | list[int]) -> str:
    """The kernel's form of a list of CPUs, with ranges."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and cpu == ranges[-1][-1] + 1:
            ranges[-1][1:] = [cpu]
        else:
            ranges.append([cpu])
    return ",".join("-".join(map(str, ends)) for ends in ranges)


def _read_cpu_list(file: Path) -> tuple[int, ...] | None:
    try:
        return parse_cpu_list(file.read_text())
    except (OSError, ValueError):
        return None


def _node_of(cpus: tuple[int, ...], sysfs: Path) -> int | None:
    """The pool's NUMA node; None where sysfs does not tell, and then the driver has to."""
    nodes = online_nodes(sysfs)
    if len(nodes) == 1:
        return nodes[0]
    for cpu in cpus:
        for link in (sysfs / f"devices/system/cpu/cpu{cpu}").glob("node[0-9]*"):
            return int(link.name[4:])
    return None
