"""What the emulated machine is like, what goes wrong on it, and how enclaves behave. Read from JSON; all is optional.

    {
      "cpus": 8, "threads_per_core": 2, "pool": "1-2,5-6", "numa_node": 0,
      "slots": 4, "device": true, "device_mode": "0660",
      "image": "eif",
      "faults": [{"call": "NE_ADD_VCPU", "nth": 2, "error": 257, "at": "device"}],
      "enclaves": [{"heartbeat": "before", "console": "booting\\n", "exit_after_s": 1.5}]
    }

Siblings are CPU i and CPU i + cpus / threads_per_core, as on EC2. The n-th enclave to start behaves as the n-th entry
of `enclaves` says, and those after the last as the last one does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar, get_type_hints

from tests.emulated_driver.journal import error_number


class Point(StrEnum):
    """Where in a call a fault strikes."""

    # Before anything was looked at.
    CALL = "call"
    # After the driver's own checks and bookkeeping, as if the device behind it had refused. For ioctls only.
    DEVICE = "device"
    # When the call has had its effect, and its caller has not heard of it.
    RETURN = "return"


class Heartbeat(StrEnum):
    """When an enclave's init says that it is up, seen from the return of NE_START_ENCLAVE."""

    BEFORE = "before"
    AFTER = "after"
    NEVER = "never"


class Boot(StrEnum):
    """What becomes of the image in an enclave's memory."""

    # It is compared; what the enclave does then is in the scenario.
    PRETEND = "pretend"
    # It boots in a local virtual machine, whose console and heartbeat are the enclave's.
    LOCAL = "local"


# What `image` says beside a path. EIF: the memory must hold an enclave image whose checksum is right.
UNCHECKED = "unchecked"
EIF = "eif"


@dataclass(frozen=True, slots=True)
class Fault:
    """Strikes the `nth` call of this name (0: every one, counted from 1 over the whole machine) at the point `at`.

    First it waits `delay_s`, then, if `hold`, for the control command `release`, then fails with `error`, a name or a
    number, unless that is empty. An `uninterruptible` hold survives SIGKILL, as a call that waits for the device does:
    the caller dies of it only when it is released (where freezer.py can do that).
    """

    call: str
    nth: int = 0
    at: Point = Point.CALL
    error: str | int = ""
    delay_s: float = 0.0
    hold: bool = False
    uninterruptible: bool = False

    def __post_init__(self) -> None:
        if self.error != "":
            error_number(self.error)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What an enclave does. `console` is printed when it boots; other things on the control socket's word.

    An enclave whose heartbeat nobody takes, or whose image is not what it should be, exits as AWS's init does.
    """

    boot: Boot = Boot.PRETEND
    heartbeat: Heartbeat = Heartbeat.AFTER
    heartbeat_delay_s: float = 0.0
    heartbeat_byte: int = 0xB7
    console: str = ""
    exit_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """See the module. `image` is UNCHECKED, EIF, or the path of the file whose bytes the memory must hold."""

    cpus: int = 8
    threads_per_core: int = 2
    pool: str = "1-2,5-6"
    numa_node: int = 0
    slots: int = 4
    device: bool = True
    device_mode: str = "0660"
    image: str = EIF
    console_kept_bytes: int = 1 << 20
    faults: tuple[Fault, ...] = ()
    enclaves: tuple[Behaviour, ...] = (Behaviour(),)

    @classmethod
    def load(cls, path: Path) -> Scenario:
        """Raises ValueError for what is not a scenario."""
        return _built(cls, json.loads(path.read_text()))

    def behaviour(self, start: int) -> Behaviour:
        """Of the enclave that is the `start`-th to start, counted from 0."""
        return self.enclaves[min(start, len(self.enclaves) - 1)]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


_Part = TypeVar("_Part")
_LISTS: Mapping[str, type[object]] = {"faults": Fault, "enclaves": Behaviour}


def _built(kind: type[_Part], raw: object) -> _Part:
    if not isinstance(raw, dict):
        raise ValueError(f"{kind.__name__} is no object")
    hints = get_type_hints(kind)
    if unknown := raw.keys() - hints.keys():
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    values: dict[str, object] = {}
    for name, value in raw.items():
        if name in _LISTS:
            values[name] = tuple(_built(_LISTS[name], item) for item in value)
        elif isinstance(hints[name], type) and issubclass(hints[name], StrEnum):
            values[name] = hints[name](value)
        else:
            values[name] = value
    make: Callable[..., _Part] = kind
    return make(**values)


def fault_from(raw: object) -> Fault:
    """A fault as the control socket gives it."""
    return _built(Fault, raw)
