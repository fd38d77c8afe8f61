"""A bundle's config.json as one checked JSON tree, and a cursor that reads typed values out of it.

The entry point imports this to tell an enclave's bundle from an ordinary one, so there are no dataclasses here (6 ms
for the import, 0.4 ms for each class). What the values mean is not known here: see `pyrune.config`.

A document has one meaning or is refused. Go's decoder, which reads the same file when an ordinary bundle is handed to
runc, lets the last of two equal keys win and takes `Process` for `process`. Were that followed here, or ignored, two
readers could disagree on whether a bundle asks for an enclave. So duplicate keys are refused everywhere, and other
spellings of the properties that decide it; bytes and escapes that are not Unicode, NaN and Infinity are refused too.
Null means absent, as it does for Go. Source: the OCI runtime specification, config.md; encoding/json's documentation.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import TypeAlias

from pyrune.errors import BundleError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# The version of the runtime specification that pyrune follows, for `--version`, `state` and `spec`.
OCI_VERSION = "1.2.0"
CONFIG_NAME = "config.json"
# Docker's configs are 30 KiB. The bound keeps a wrong file from filling the memory.
MAX_CONFIG_BYTES = 16 << 20

# How much of a foreign key or value enters an error.
_SHOWN_CHARACTERS = 100

UINT32_MAX = (1 << 32) - 1
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1


def shortened(text: str) -> str:
    """`text`, or so much of it as belongs into one line."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


class Node:
    """A place in the document: what it holds, and how to name it in an error. A place may be empty."""

    __slots__ = ("file", "path", "value")

    def __init__(self, file: str, path: str, value: Json) -> None:
        self.file = file
        self.path = path
        self.value = value

    @property
    def present(self) -> bool:
        return self.value is not None

    def member(self, name: str) -> Node:
        """The place `name` of this object; an empty one if either is absent."""
        return Node(self.file, _member_path(self.path, name), self._members().get(name))

    def elements(self) -> list[Node]:
        """The places of this array; none if it is absent."""
        if self.value is None:
            return []
        if not isinstance(self.value, list):
            raise self._unlike("an array")
        return [Node(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.value)]

    def text(self) -> str:
        """This string; empty if it is absent."""
        if self.value is None:
            return ""
        if not isinstance(self.value, str):
            raise self._unlike("a string")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """This array of strings; empty if it is absent."""
        for node in (elements := self.elements()):
            if not node.present:
                raise node._unlike("a string")
        return tuple(node.text() for node in elements)

    def text_by_key(self) -> dict[str, str]:
        """This object of strings, in the document's order; empty if it is absent."""
        found = {}
        for key, value in self._members().items():
            if not isinstance(value, str):
                raise self.member(key)._unlike("a string")
            found[key] = value
        return found

    def flag(self) -> bool:
        """This boolean; false if it is absent."""
        if self.value is None:
            return False
        if not isinstance(self.value, bool):
            raise self._unlike("true or false")
        return self.value

    def integer(self, low: int, high: int) -> int | None:
        """This integer from `low` to `high`, if there is one. 1.0 is none, as for Go."""
        if self.value is None:
            return None
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self._unlike("an integer")
        if not low <= self.value <= high:
            raise self.error("the number is out of range", f"give {low} to {high}")
        return self.value

    def error(self, problem: str, remedy: str = "") -> BundleError:
        return BundleError(self.file, problem, json_path=self.path, remedy=remedy)

    def _members(self) -> dict[str, Json]:
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self._unlike("an object")
        return self.value

    def _unlike(self, wanted: str) -> BundleError:
        return self.error(f"{_kind(self.value)} where {wanted} belongs", f"make it {wanted}")

    def refuse_other_spellings(self, name: str) -> None:
        """Raise if a key of this object is `name` but for case, as Go's decoder compares."""
        for key in self._members():
            if key != name and key.casefold() == name:
                raise self.error(f"the property {key!r} is {name!r} in another spelling", "spell it in lower case")


class Document:
    """A config.json that has been read. `bundle_path` is absolute, without symbolic links; `root` is the whole tree."""

    __slots__ = ("annotations", "bundle_path", "env", "root")

    def __init__(self, bundle_path: str, root: Node) -> None:
        if not isinstance(root.value, dict):
            raise root.error("the document is not a JSON object", "`pyrune spec` writes a complete one")
        process = root.member("process")
        root.refuse_other_spellings("annotations")
        root.refuse_other_spellings("process")
        process.refuse_other_spellings("env")
        self.bundle_path = bundle_path
        self.root = root
        self.annotations = root.member("annotations").text_by_key()
        self.env = process.member("env").texts()


def read_config(bundle: str) -> Document:
    """Read `bundle`/config.json, once. All that the choice between runc and an enclave needs is checked afterwards.

    Raises BundleError for a file that is missing, not regular, above 16 MiB, or not a JSON object of one meaning.
    """
    real = os.path.realpath(bundle)
    shown = shown_config(bundle)
    data = _read_bounded(bundle, os.path.join(real, CONFIG_NAME), shown)
    return Document(real, Node(shown, "", parse(data, shown)))


def parse(data: bytes, shown: str) -> Json:
    """The one meaning of `data`, or BundleError."""
    try:
        tree: Json = json.loads(
            data.decode(), object_pairs_hook=_object_of_unique_keys, parse_constant=_refuse_constant
        )
        if b"\\ud" in data.lower():
            # Go puts U+FFFD for half of a surrogate pair; Python keeps it, and fails whenever it is written out.
            json.dumps(tree, ensure_ascii=False).encode()
    except _Ambiguous as exc:
        raise BundleError(shown, exc.problem, remedy="remove it") from exc
    except UnicodeError as exc:
        raise BundleError(shown, "the file is not UTF-8 text", remedy="save it as UTF-8") from exc
    except json.JSONDecodeError as exc:
        raise _not_json(shown, data, exc) from exc
    except ValueError as exc:
        raise BundleError(shown, "a number has too many digits", remedy="use 64-bit numbers") from exc
    except RecursionError as exc:
        raise BundleError(shown, "values are nested too deeply", remedy="`pyrune spec` writes a complete one") from exc
    return tree


class _Ambiguous(ValueError):
    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


def _object_of_unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Ambiguous(f"the property {shortened(twice)!r} is given twice in one object")
    return members


def _refuse_constant(name: str) -> Json:
    raise _Ambiguous(f"{name} is no JSON value")


def _not_json(shown: str, data: bytes, exc: json.JSONDecodeError) -> BundleError:
    if not data.strip():
        return BundleError(shown, "the file is empty", remedy="`pyrune spec` writes a complete one")
    problem = f"not JSON from line {exc.lineno}, column {exc.colno} on"
    return BundleError(shown, problem, remedy="see whether it was cut short or edited by hand")


def _read_bounded(bundle: str, path: str, shown: str) -> bytes:
    try:
        # O_NONBLOCK: the open of a FIFO would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(shown, "not a regular file", remedy="put the configuration itself there")
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise config_failure(bundle, exc, "read") from exc
    if len(data) > MAX_CONFIG_BYTES:
        raise BundleError(shown, f"the file is larger than {MAX_CONFIG_BYTES >> 20} MiB", remedy="shorten it")
    return data


def shown_config(bundle: str) -> str:
    """How messages name the config.json of `bundle`: as the user named the bundle."""
    return os.path.normpath(os.path.join(bundle, CONFIG_NAME))


def config_failure(bundle: str, exc: OSError, done: str) -> BundleError:
    """The error for a config.json that could not be `done` ("read").

    What is missing is said in runc 1.1.5's words (measured), on which callers match.
    """
    shown = shown_config(bundle)
    remedy = "--bundle names the directory of config.json"
    if isinstance(exc, NotADirectoryError):
        return BundleError(bundle, "not a directory", remedy=remedy)
    if isinstance(exc, FileNotFoundError) and not os.path.isdir(bundle):
        return BundleError(bundle, "no such file or directory", remedy=remedy)
    if isinstance(exc, FileNotFoundError):
        problem = f"JSON specification file {CONFIG_NAME} not found"
        return BundleError(shown, problem, remedy="`pyrune spec` writes one")
    name = errno.errorcode.get(exc.errno or 0, "unknown error")
    return BundleError(shown, f"cannot be {done} ({name})", remedy="look at its permissions and its file system")


def _member_path(path: str, name: str) -> str:
    """As a person would write it: process.args, annotations["enclave.type"]."""
    if not name.isidentifier():
        return f"{path}[{json.dumps(shortened(name), ensure_ascii=False)}]"
    return f"{path}.{shortened(name)}" if path else shortened(name)


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
