"""The CPUs that enclaves may have, as the driver's parameter ne_cpus sets them aside, in whole cores."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable

ERR_VCPU_ALREADY_USED = 256
ERR_VCPU_NOT_IN_CPU_POOL = 257
ERR_INVALID_VCPU = 271
ERR_NO_CPUS_AVAIL_IN_POOL = 272


def parse_cpu_list(text: str) -> list[int]:
    """`1-3,6` as numbers. Raises OSError EINVAL."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise OSError(errno.EINVAL, "no list of CPUs")
        found.update(range(int(first), int(last if dash else first) + 1))
    return sorted(found)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The other way round, as the kernel prints it."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


class CpuPool:
    """Cores of the pool that no enclave has. A core is known by its number; `cpus` counts the parent's threads."""

    def __init__(self, cpus: int, threads_per_core: int, pool: str) -> None:
        self.cpus = cpus
        self.cores = cpus // threads_per_core
        self.text = pool
        self._members: set[int] = set()
        self._free: dict[int, set[int]] = {}
        self.lock = threading.Lock()
        self._fill(pool)

    def core_of(self, cpu: int) -> int:
        return cpu % self.cores

    def siblings(self, core: int) -> set[int]:
        return set(range(core, self.cpus, self.cores))

    @property
    def members(self) -> set[int]:
        """The CPUs that are in the pool, taken or not: offline for the parent."""
        return set(self._members)

    @property
    def free(self) -> set[int]:
        return set().union(*self._free.values())

    def lowest_free_core(self) -> int | None:
        return min(self._free, default=None)

    def take(self, core: int) -> set[int]:
        """The CPUs of a free core, which is then no longer free."""
        return self._free.pop(core)

    def is_free(self, cpu: int) -> bool:
        return cpu in self._free.get(self.core_of(cpu), ())

    def put_back(self, cores: Iterable[int]) -> None:
        for core in cores:
            self._free[core] = self.siblings(core)

    def write(self, text: str, enclaves: int) -> None:
        """What writing to the parameter does. Raises OSError.

        After a failed write the pool is empty, and reading the parameter still gives the old text [src].
        """
        if enclaves:
            raise OSError(errno.EPERM, "enclaves are open")
        self._fill("")
        self._fill(text)
        self.text = text

    def _fill(self, text: str) -> None:
        wanted = set(parse_cpu_list(text))
        if any(cpu >= self.cpus for cpu in wanted):
            raise OSError(errno.ERANGE, "no such CPU")
        cores = {self.core_of(cpu) for cpu in wanted}
        # CPU 0 and its siblings stay with the parent, and no core is shared.
        if 0 in cores or any(not self.siblings(core) <= wanted for core in cores):
            raise OSError(errno.EINVAL, "not whole cores, or that of CPU 0")
        self._members = wanted
        self._free = {core: self.siblings(core) for core in cores}
