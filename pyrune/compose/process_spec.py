"""The process that an enclave will run, whatever it was described by: a bundle, an image, or words on a command line.

What Docker and runc add to a process is added here, so that an image gives the same enclave as a container made of it:
PATH and HOSTNAME come first (PATH is the image's, if it has one), HOME comes from the root file system's own
/etc/passwd. A container's own name would change the measurements, so HOSTNAME is `enclave`.

Sources: Docker's daemon (CreateDaemonEnvironment), moby/sys/user for the forms of USER; runc, for HOME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pyrune.compose.image_config import ImageConfig
from pyrune.compose.root import Leaf, RootTree
from pyrune.errors import EifError, printable

HOSTNAME: Final = "enclave"
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MAX_DATABASE_BYTES: Final = 16 << 20
_MAX_ID: Final = (1 << 31) - 1
_ID: Final = re.compile("[0-9]{1,10}")
# What Docker calls a container that was given no name for its host: the beginning of its id.
_CONTAINERS_NAME: Final = re.compile("[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process. `env` is kept out of repr: it may hold secrets."""

    args: tuple[str, ...]
    env: tuple[str, ...] = field(default=(), repr=False)
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _User:
    uid: int
    gid: int
    home: str
    additional_gids: tuple[int, ...]


def of_image(config: ImageConfig, tree: RootTree, arguments: tuple[str, ...]) -> ProcessSpec:
    """What `docker run IMAGE ARGUMENTS` would run. Raises EifError."""
    args = (*config.entrypoint, *(arguments or config.cmd))
    user = _resolve(config.user, tree)
    env = _with_home(_with_defaults(config.env), user.home)
    return ProcessSpec(args, env, config.cwd or "/", user.uid, user.gid, user.additional_gids)


def of_arguments(arguments: tuple[str, ...], tree: RootTree) -> ProcessSpec:
    """What was named on a command line, run as root. Raises EifError."""
    return ProcessSpec(arguments, _with_home(_with_defaults(()), _resolve("", tree).home))


def of_container(spec: ProcessSpec, hostname: str, tree: RootTree) -> ProcessSpec:
    """The process of a config.json, as a runtime would start it. Raises EifError."""
    own_name = f"HOSTNAME={hostname}" if _CONTAINERS_NAME.fullmatch(hostname) else None
    env = tuple(f"HOSTNAME={HOSTNAME}" if item == own_name else item for item in spec.env)
    home = next((entry.home for entry in _passwd(tree) if entry.uid == spec.uid), "/")
    return ProcessSpec(spec.args, _with_home(env, home), spec.cwd, spec.uid, spec.gid, spec.additional_gids)


def _with_defaults(env: tuple[str, ...]) -> tuple[str, ...]:
    """Docker's variables, and the image's over them or behind them; a later one of a name replaces an earlier."""
    variables = {"PATH": f"PATH={DEFAULT_PATH}", "HOSTNAME": f"HOSTNAME={HOSTNAME}"}
    for item in env:
        variables[item.partition("=")[0]] = item
    return tuple(variables.values())


def _with_home(env: tuple[str, ...], home: str) -> tuple[str, ...]:
    if any(item.startswith("HOME=") and item != "HOME=" for item in env):
        return env
    return (*(item for item in env if item != "HOME="), f"HOME={home}")


@dataclass(frozen=True, slots=True)
class _PasswdEntry:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _GroupEntry:
    name: str
    gid: int
    members: tuple[str, ...]


def _resolve(user: str, tree: RootTree) -> _User:
    """A USER of an image: empty, NAME, UID, or one of these, a colon, and a group's NAME or GID."""
    name, _, group = user.partition(":")
    name = name or "0"
    known = next((entry for entry in _passwd(tree) if name in (entry.name, str(entry.uid))), None)
    uid = known.uid if known else _number(name, user, tree, "user", "passwd")
    gid = known.gid if known else 0
    groups: tuple[int, ...] = ()
    if group:
        gid = _group_id(group, user, tree)
    elif known:
        groups = tuple(entry.gid for entry in _groups(tree) if known.name in entry.members)
    return _User(uid, gid, known.home if known and known.home else "/", groups)


def _group_id(group: str, user: str, tree: RootTree) -> int:
    known = next((entry for entry in _groups(tree) if group in (entry.name, str(entry.gid))), None)
    return known.gid if known else _number(group, user, tree, "group", "group")


def _number(text: str, user: str, tree: RootTree, what: str, database: str) -> int:
    if _ID.fullmatch(text) and int(text) <= _MAX_ID:
        return int(text)
    raise EifError(f"{tree.label}: no {what} of the user {printable(user[:80])!r} is in its /etc/{database}")


def _passwd(tree: RootTree) -> Iterator[_PasswdEntry]:
    for fields in _lines(tree, b"passwd"):
        if len(fields) >= 4 and _ID.fullmatch(fields[2]) and _ID.fullmatch(fields[3]):
            yield _PasswdEntry(fields[0], int(fields[2]), int(fields[3]), fields[5] if len(fields) > 5 else "")


def _groups(tree: RootTree) -> Iterator[_GroupEntry]:
    for fields in _lines(tree, b"group"):
        if len(fields) >= 3 and _ID.fullmatch(fields[2]):
            members = fields[3].split(",") if len(fields) > 3 else []
            yield _GroupEntry(fields[0], int(fields[2]), tuple(members))


def _lines(tree: RootTree, name: bytes) -> Iterator[list[str]]:
    """The lines of a file in the tree's /etc, at their colons; none if there is no such file."""
    item = tree.find((b"etc", name), follow=True)
    if not isinstance(item, Leaf) or item.size_bytes > _MAX_DATABASE_BYTES:
        return
    text = os.fsdecode(b"".join(bytes(piece) for piece in item.content.pieces()))
    for line in text.split("\n"):
        if line.strip() and not line.startswith("#"):
            yield line.strip().split(":")
