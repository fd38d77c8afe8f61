"""The one question that is asked of every bundle: does it want an enclave, and of which kind.

Separate from `pyrune.annotations`, where everything else about these keys is, because the entry point asks it before
anything costly is imported. A bundle that mentions enclaves without being a well-formed request for one is an error,
never an ordinary container: what was meant to be confidential must not run in the clear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from pyrune.document import shortened
from pyrune.errors import AnnotationError

NITRO: Final = "AwsNitroEnclaves"
PREFIX: Final = "enclave."
TYPE: Final = "enclave.type"
PATH: Final = "enclave.runtime.path"
ARGS: Final = "enclave.runtime.args"
LOGLEVEL: Final = "enclave.runtime.loglevel"
BOOT_TIMEOUT: Final = "enclave.boot.timeout"
RA_TYPE: Final = "enclave.attestation.ra_type"
RA_EPID_SPID: Final = "enclave.attestation.ra_epid_spid"
RA_EPID_SUBSCRIPTION_KEY: Final = "enclave.attestation.ra_epid_subscription_key"

# rune's variables, for engines that cannot pass annotations (Docker before 24). None for boot.timeout: it is ours.
VARIABLES: Final = {
    TYPE: "ENCLAVE_TYPE",
    PATH: "ENCLAVE_RUNTIME_PATH",
    ARGS: "ENCLAVE_RUNTIME_ARGS",
    LOGLEVEL: "ENCLAVE_RUNTIME_LOGLEVEL",
    RA_TYPE: "ENCLAVE_RA_TYPE",
    RA_EPID_SPID: "ENCLAVE_RA_EPID_SPID",
    RA_EPID_SUBSCRIPTION_KEY: "ENCLAVE_RA_EPID_SUB_KEY",
}
_KNOWN: Final = frozenset([*VARIABLES, BOOT_TIMEOUT])
# Names under which `state` reports, so never anything to ask with.
_REPORTED_PREFIX: Final = "enclave.state."


class Setting(NamedTuple):
    """A value and who gave it. `name` is the annotation's or the variable's; a variable's value is never quoted,
    because an environment may hold secrets, even under a wrong name."""

    name: str
    value: str
    from_variable: bool

    def quoted(self) -> str:
        return "the value" if self.from_variable else repr(shortened(self.value))


def enclave_type(annotations: Mapping[str, str], env: Iterable[str]) -> str:
    """`AwsNitroEnclaves`, or "" for an ordinary bundle.

    Raises AnnotationError for another type, and for any part of a request without a type.
    """
    found = settings(annotations, env)
    asked = found.pop(TYPE, None)
    if asked is None or not asked.value:
        for setting in found.values():
            raise AnnotationError(setting.name, f"given without {TYPE}", remedy=f"set {TYPE} to {NITRO} or remove it")
        return ""
    if asked.value != NITRO:
        problem = f"{asked.quoted()} is no type of enclave that pyrune runs"
        raise AnnotationError(asked.name, problem, remedy=f"use {NITRO}, spelled exactly so")
    return asked.value


def settings(annotations: Mapping[str, str], env: Iterable[str]) -> dict[str, Setting]:
    """What the annotations and variables say, by annotation key.

    Raises AnnotationError for unknown keys below `enclave.`, and where two sources differ.
    """
    variables = _variables(env)
    found = {}
    for key, value in annotations.items():
        if key.casefold().startswith(PREFIX):
            _refuse_unknown(key)
            found[key] = Setting(key, value, from_variable=False)
    for key, name in VARIABLES.items():
        if name not in variables:
            continue
        given = found.setdefault(key, Setting(name, variables[name], from_variable=True))
        if given.value != variables[name]:
            raise AnnotationError(name, f"differs from the annotation {key}", remedy="remove one of the two")
    return found


def is_ours(entry: str) -> bool:
    """Whether an entry of process.env is one of the variables read here."""
    return entry.partition("=")[0] in _VARIABLE_NAMES


_VARIABLE_NAMES: Final = frozenset(VARIABLES.values())


def _variables(env: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in filter(is_ours, env):
        name, _, value = entry.partition("=")
        if found.setdefault(name, value) != value:
            raise AnnotationError(name, "given twice, with different values", remedy="remove one of the two")
    return found


def _refuse_unknown(key: str) -> None:
    if key in _KNOWN:
        return
    if key.startswith(_REPORTED_PREFIX):
        raise AnnotationError(shortened(key), "a name that pyrune reports under, not one to set", remedy="remove it")
    raise AnnotationError(shortened(key), "unknown annotation", remedy="see the README's table, or remove it")
