"""What a bundle asks of its enclave: `enclave.*` annotations and rune's ENCLAVE_* variables to an EnclaveRequest.

Operators write annotations; an image's author writes variables. So the two may not contradict each other, and a
variable can neither take the type away nor turn debug mode on, in which an enclave's attestation proves nothing.

Not here: whether the image exists or the machine has the memory. Names and types are inclavare-containers' (rune), the
memory suffixes nitro-cli's. rune's own Nitro library counted `memory` in regions of 2 MiB; here it is MiB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pyrune.document import shortened
from pyrune.enclave_type import (
    ARGS,
    BOOT_TIMEOUT,
    LOGLEVEL,
    NITRO,
    PATH,
    RA_EPID_SPID,
    RA_EPID_SUBSCRIPTION_KEY,
    RA_TYPE,
    TYPE,
    VARIABLES,
    Setting,
    enclave_type,
    is_ours,
    settings,
)
from pyrune.errors import AnnotationError

__all__ = ["ARGUMENTS", "KEYS", "Argument", "EnclaveRequest", "Key", "LogLevel", "enclave_request", "enclave_type"]

MAX_MEMORY_MIB = 1 << 40
MAX_VCPUS = 4096
MIN_CID, MAX_CID = 4, (1 << 32) - 2
MAX_BOOT_TIMEOUT_S = 86400
PATH_MAX = 4096


class LogLevel(StrEnum):
    """rune's levels, which are logrus's, and `off`."""

    TRACE = "trace"
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"
    PANIC = "panic"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the README's table of annotations."""

    annotation: str
    variable: str | None
    meaning: str
    default: str


@dataclass(frozen=True, slots=True)
class Argument:
    """A row of the README's table of what enclave.runtime.args takes."""

    name: str
    meaning: str
    default: str


def _key(annotation: str, meaning: str, default: str) -> Key:
    return Key(annotation, VARIABLES.get(annotation), meaning, default)


KEYS: Final = (
    _key(TYPE, f"{NITRO} for an enclave; empty for an ordinary container", "empty"),
    _key(ARGS, "what to run, as key=value, separated by spaces or commas", "none"),
    _key(LOGLEVEL, "trace, debug, info, warning, error, fatal, panic or off", "info"),
    _key(BOOT_TIMEOUT, f"seconds until a boot has failed, up to {MAX_BOOT_TIMEOUT_S}", "by image and memory size"),
    _key(PATH, "rune's path of its enclave library; accepted and not used", "none"),
    _key(RA_TYPE, "SGX only; must be empty", "empty"),
    _key(RA_EPID_SPID, "SGX only; must be empty", "empty"),
    _key(RA_EPID_SUBSCRIPTION_KEY, "SGX only; must be empty", "empty"),
)

ARGUMENTS: Final = (
    Argument("image", "the enclave image, an absolute path without spaces and commas", "none"),
    Argument("memory", "memory in MiB, or with suffix M, G or T", "512 or what the image needs"),
    Argument("vcpus", f"virtual CPUs, 1 to {MAX_VCPUS}", "2"),
    Argument(
        "cpu_ids", "instead of vcpus: which CPUs of the enclave CPU pool, such as 2-3:6-7; for Nitro alone", "any"
    ),
    Argument("cid", f"the enclave's vsock address, {MIN_CID} to {MAX_CID}", "a free one"),
    Argument("debug", "true for debug mode, which the annotation alone can ask for, or false", "false"),
)
_ARGUMENT_NAMES: Final = frozenset(argument.name for argument in ARGUMENTS)


@dataclass(frozen=True, slots=True)
class EnclaveRequest:
    """What was asked for; None where nothing was said. `env` is process.env without the variables read here.

    `notes` are sentences for the log.
    """

    image: str | None = None
    memory_mib: int | None = None
    vcpus: int | None = None
    cpu_ids: tuple[int, ...] = ()
    cid: int | None = None
    debug: bool = False
    loglevel: LogLevel = LogLevel.INFO
    boot_timeout_s: float | None = None
    notes: tuple[str, ...] = ()
    # Not in repr: no value of an environment may reach a log.
    env: tuple[str, ...] = field(default=(), repr=False)


def enclave_request(annotations: Mapping[str, str], env: Iterable[str]) -> EnclaveRequest | None:
    """The request for an enclave, or None for an ordinary bundle. Raises AnnotationError."""
    env = tuple(env)
    if not enclave_type(annotations, env):
        return None
    found = settings(annotations, env)
    for key in (RA_TYPE, RA_EPID_SPID, RA_EPID_SUBSCRIPTION_KEY):
        _refuse_sgx(found.get(key))
    args = found.get(ARGS)
    values = _split(args) if args else {}
    level, level_note = _loglevel(found.get(LOGLEVEL))
    return EnclaveRequest(
        image=_image(values.get("image")),
        memory_mib=_memory_mib(values.get("memory")),
        vcpus=_number(values.get("vcpus"), "vcpus", 1, MAX_VCPUS, "give a whole number of CPUs"),
        cpu_ids=_cpu_ids(values.get("cpu_ids"), values.get("vcpus")),
        cid=_number(values.get("cid"), "cid", MIN_CID, MAX_CID, "leave it out to have a free one chosen"),
        debug=_debug(values.get("debug")),
        loglevel=level,
        boot_timeout_s=_boot_timeout_s(found.get(BOOT_TIMEOUT)),
        notes=(*_path_note(found.get(PATH)), *level_note),
        env=tuple(entry for entry in env if not is_ours(entry)),
    )


def _split(args: Setting) -> dict[str, Setting]:
    """The arguments by name. Each keeps the name of the annotation or variable that held it."""
    found: dict[str, Setting] = {}
    for word in filter(None, re.split("[ ,]+", args.value)):
        name, equals, value = word.partition("=")
        if not equals:
            shown = "a word" if args.from_variable else repr(shortened(word))
            raise AnnotationError(args.name, f"{shown} is not of the form key=value", remedy="see the README's table")
        if name not in _ARGUMENT_NAMES:
            shown = "a key" if args.from_variable else f"the key {shortened(name)!r}"
            known = ", ".join(argument.name for argument in ARGUMENTS)
            raise AnnotationError(args.name, f"{shown} is unknown", remedy=f"known are {known}")
        if name in found:
            raise AnnotationError(args.name, f"{name}= is given twice", remedy="remove one of the two")
        if not value:
            raise AnnotationError(args.name, f"{name}= has no value", remedy="give one, or leave the key out")
        found[name] = args._replace(value=value)
    return found


def _wrong(setting: Setting, argument: str, problem: str, remedy: str) -> AnnotationError:
    shown = argument if setting.from_variable else f"{argument}={shortened(setting.value)}"
    return AnnotationError(setting.name, f"{shown} {problem}", remedy=remedy)


def _image(setting: Setting | None) -> str | None:
    if setting is None:
        return None
    path = setting.value
    if not path.startswith("/"):
        raise _wrong(setting, "image", "is not an absolute path", "begin it with a slash")
    if not path.isprintable():
        raise _wrong(setting, "image", "holds a control character", "rename the file")
    if len(path.encode()) >= PATH_MAX:
        raise AnnotationError(setting.name, f"image= is longer than {PATH_MAX - 1} bytes", remedy="shorten it")
    return path


# No leading zeros, signs, underscores or digits of other scripts, all of which int() would take.
_DECIMAL: Final = re.compile("0|[1-9][0-9]{0,15}")
_SUFFIX_MIB: Final = {"M": 1, "G": 1 << 10, "T": 1 << 20}


def _number(setting: Setting | None, argument: str, low: int, high: int, remedy: str) -> int | None:
    if setting is None:
        return None
    if not _DECIMAL.fullmatch(setting.value):
        raise _wrong(setting, argument, "is not a plain decimal number", remedy)
    if not low <= int(setting.value) <= high:
        raise _wrong(setting, argument, f"is not from {low} to {high}", remedy)
    return int(setting.value)


def _memory_mib(setting: Setting | None) -> int | None:
    if setting is None:
        return None
    remedy = "give MiB, or a number with suffix M, G or T"
    unit = _SUFFIX_MIB.get(setting.value[-1:], 0)
    digits = setting.value[:-1] if unit else setting.value
    if not _DECIMAL.fullmatch(digits):
        raise _wrong(setting, "memory", "is not a whole number of MiB", remedy)
    mib = int(digits) * (unit or 1)
    if not 1 <= mib <= MAX_MEMORY_MIB:
        raise _wrong(setting, "memory", f"is not from 1 to {MAX_MEMORY_MIB} MiB", remedy)
    return mib


def _cpu_ids(setting: Setting | None, vcpus: Setting | None) -> tuple[int, ...]:
    """CPUs by number, in their order. CPU 0 is never an enclave's."""
    if setting is None:
        return ()
    if vcpus is not None:
        raise AnnotationError(setting.name, "vcpus= and cpu_ids= are both given", remedy="remove one of the two")
    found: list[int] = []
    for part in setting.value.split(":"):
        matched = re.fullmatch("([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?", part)
        if matched is None:
            remedy = "give numbers above 0 or ranges of them, with a colon between, such as 2-3:6-7"
            raise _wrong(setting, "cpu_ids", "is no list of CPUs", remedy)
        found.extend(range(int(matched[1]), int(matched[2] or matched[1]) + 1))
    if not found or len(set(found)) < len(found) or len(found) > MAX_VCPUS:
        remedy = f"name 1 to {MAX_VCPUS} CPUs, each once"
        raise _wrong(setting, "cpu_ids", "names no CPU, one twice, or too many", remedy)
    return tuple(found)


def _debug(setting: Setting | None) -> bool:
    if setting is None:
        return False
    if setting.value not in ("true", "false"):
        raise _wrong(setting, "debug", "is neither true nor false", "use one of the two")
    if setting.value == "true" and setting.from_variable:
        problem = "debug mode cannot be asked for by a variable"
        raise AnnotationError(setting.name, problem, remedy=f"put debug=true into the annotation {ARGS}")
    return setting.value == "true"


def _boot_timeout_s(setting: Setting | None) -> float | None:
    if setting is None:
        return None
    remedy = f"give seconds, above 0 and up to {MAX_BOOT_TIMEOUT_S}, such as 90 or 2.5"
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", setting.value):
        raise AnnotationError(setting.name, f"{setting.quoted()} is not a number of seconds", remedy=remedy)
    seconds = float(setting.value)
    if not 0 < seconds <= MAX_BOOT_TIMEOUT_S:
        raise AnnotationError(setting.name, f"{setting.value} s is out of range", remedy=remedy)
    return seconds


def _loglevel(setting: Setting | None) -> tuple[LogLevel, tuple[str, ...]]:
    if setting is None or not setting.value:
        return LogLevel.INFO, ()
    word = setting.value.lower()
    try:
        # logrus takes both words.
        return LogLevel("warning" if word == "warn" else word), ()
    except ValueError:
        return LogLevel.INFO, (f"{setting.name}: {setting.quoted()} is no log level; info is used",)


def _path_note(setting: Setting | None) -> tuple[str, ...]:
    if setting is None or not setting.value:
        return ()
    return (f"{setting.name} is not needed: pyrune loads no enclave library",)


def _refuse_sgx(setting: Setting | None) -> None:
    if setting is not None and setting.value:
        problem = "is about SGX, and means nothing to a Nitro enclave"
        raise AnnotationError(setting.name, problem, remedy="remove it; Nitro enclaves attest through their own device")
