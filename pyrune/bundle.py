"""An OCI bundle: its directory, its config.json as typed objects, and the checks that an enclave's bundle must pass.

`load_bundle` reads and costs little; `validate` costs about 0.1 s, nearly all of it the import of jsonschema, and is
for bundles of enclaves at create. Ordinary bundles are runc's to judge.

An error names the file, the place in it and the remedy, and never quotes a value: an environment holds secrets. Where
runc 1.1.5 reports the same failure, its words (measured) begin the problem, because people and programs know them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from pyrune import config
from pyrune.config import Config, Process, Root
from pyrune.document import CONFIG_NAME, Document, Json, Node, read_config
from pyrune.errors import BundleError, UsageError

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

OCI_CONFIG_SCHEMA: Final = "oci-config.schema.json"
ANNOTATIONS_SCHEMA: Final = "enclave-annotations.schema.json"

# config-linux.md, "Namespaces".
NAMESPACES: Final = frozenset(["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"])


@dataclass(frozen=True, slots=True)
class Bundle:
    """`path` is absolute and without symbolic links. The document is kept for `validate`."""

    path: str
    config: Config
    document: Document = field(repr=False, compare=False)

    @property
    def process(self) -> Process:
        """config.process; BundleError if there is none."""
        if self.config.process is None:
            raise self.place("process").error("process property must not be empty", "add it; `pyrune spec` writes one")
        return self.config.process

    @property
    def root(self) -> Root:
        """config.root; BundleError if there is none."""
        if self.config.root is None:
            raise self.place("root").error("root must be specified", "add it; `pyrune spec` writes one")
        return self.config.root

    @property
    def rootfs(self) -> str:
        """The absolute path of the root file system; BundleError if none is named."""
        return os.path.join(self.path, self.root.path)

    def place(self, path: str) -> Node:
        """An empty place named `path`, for an error about it."""
        return Node(self.document.root.file, path, None)


def load_bundle(path: str) -> Bundle:
    """Read the bundle in the directory `path`. Raises BundleError."""
    document = read_config(path)
    return Bundle(document.bundle_path, config.read(document), document)


def validate(bundle: Bundle) -> None:
    """Check the bundle of an enclave: our schemas, then what runc checks. Raises BundleError for the gravest fault."""
    tree = bundle.document.root
    _check_schema(tree, OCI_CONFIG_SCHEMA)
    _check_schema(tree.member("annotations"), ANNOTATIONS_SCHEMA)
    _check_process(bundle)
    _check_namespaces(bundle)
    _check_rootfs(bundle)


def check_terminal(terminal: bool, detached: bool, console_socket: str | None) -> None:
    """Check that the bundle's terminal and the console socket fit each other. The texts are runc's, but for its name.

    Raises BundleError or UsageError.
    """
    if detached and terminal and not console_socket:
        problem = "cannot allocate tty if pyrune will detach without setting console socket"
        raise BundleError(
            CONFIG_NAME, problem, json_path="process.terminal", remedy="give --console-socket or make it false"
        )
    if console_socket and not (detached and terminal):
        raise UsageError(
            "cannot use console socket if pyrune will not detach or allocate tty; leave --console-socket out"
        )


def schema_path(name: str) -> Path:
    """Where a schema lies: in the package as installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "schemas" / name
    return installed if installed.is_file() else package.parent / "schemas" / name


# Schemas look no deeper than process.capabilities.bounding[0].
_SCHEMA_DEPTH: Final = 8
# An upper bound for documents that are wrong in a million places.
_FAULTS_COMPARED: Final = 100


def _check_schema(place: Node, schema_name: str) -> None:
    import jsonschema

    schema = json.loads(schema_path(schema_name).read_bytes())
    tree = _without_nulls({} if place.value is None else place.value, _SCHEMA_DEPTH)
    faults = islice(jsonschema.Draft202012Validator(schema).iter_errors(tree), _FAULTS_COMPARED)
    gravest = jsonschema.exceptions.best_match(faults)
    if gravest is not None:
        # The library's own text quotes the value, which may be of an environment, and a traceback would show it.
        raise _fault(place, gravest) from None


def _without_nulls(value: Json, depth: int) -> Json:
    """`value` without members that are null, which mean absent, and without what lies below `depth`.

    jsonschema makes a text of what it refuses, and a text of a deeply nested value would end in RecursionError.
    """
    if depth == 0 and isinstance(value, dict | list):
        return None
    if isinstance(value, dict):
        return {key: _without_nulls(item, depth - 1) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item, depth - 1) for item in value]
    return value


_PROBLEMS: Final = {
    "type": "a value of the wrong kind",
    "required": "missing",
    "pattern": "not of the form that is needed",
    "minLength": "must not be empty",
    "enum": "not one of the known values",
    "minimum": "the number is out of range",
    "maximum": "the number is out of range",
    "not": "unknown",
}


def _fault(place: Node, fault: ValidationError) -> BundleError:
    """`fault` in our words. Its schema says the remedy, under the key x-remedy."""
    keyword = str(fault.validator)
    for step in fault.absolute_path:
        place = place.elements()[step] if isinstance(step, int) else place.member(step)
    if keyword == "required":
        place = place.member(_missing_property(fault))
    schema = fault.schema if isinstance(fault.schema, Mapping) else {}
    return place.error(_PROBLEMS.get(keyword, f"breaks the rule {keyword!r}"), str(schema.get("x-remedy", "")))


def _missing_property(fault: ValidationError) -> str:
    wanted, given = cast("list[str]", fault.validator_value), cast("dict[str, Json]", fault.instance)
    return next(name for name in wanted if name not in given)


def _check_process(bundle: Bundle) -> None:
    """As runc's validateProcessSpec, in its order."""
    process = bundle.process
    if not process.cwd:
        raise bundle.place("process.cwd").error("Cwd property must not be empty", "`/` will do")
    if not process.cwd.startswith("/"):
        raise bundle.place("process.cwd").error("Cwd must be an absolute path", "begin it with a slash")
    if not process.args:
        raise bundle.place("process.args").error("args must not be empty", "name a program")


def _check_namespaces(bundle: Bundle) -> None:
    seen = set()
    for index, namespace in enumerate(bundle.config.linux.namespaces):
        place = bundle.place(f"linux.namespaces[{index}].type")
        if namespace.type not in NAMESPACES:
            raise place.error("no kind of namespace", f"known are {', '.join(sorted(NAMESPACES))}")
        if namespace.type in seen:
            raise place.error(f"malformed spec file: duplicated ns {namespace.type}", "remove one of the two")
        seen.add(namespace.type)


def _check_rootfs(bundle: Bundle) -> None:
    # Not "no such file or directory", as runc has it: Docker would say that the command was missing.
    if not os.path.isdir(bundle.rootfs):
        problem = "invalid rootfs: no directory of this name"
        raise bundle.place("root.path").error(problem, "make it, or name another; a relative path begins at the bundle")
