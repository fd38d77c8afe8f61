"""config.json as typed, frozen objects: the properties that a runtime for enclaves uses, in the specification's words.

Only shape is checked here (a string where a string belongs, a number that fits); what a value must be to make sense is
`pyrune.bundle.validate`'s part. Unknown properties are ignored, as the specification demands. An absent string is "",
an absent array is (), an absent number is None. Source: the OCI runtime specification 1.2, config.md, config-linux.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyrune.document import INT64_MAX, INT64_MIN, UINT32_MAX, UINT64_MAX, Document, Node


@dataclass(frozen=True, slots=True)
class ConsoleSize:
    """In characters."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class User:
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Names such as CAP_KILL."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rlimit:
    """`type` is a name such as RLIMIT_NOFILE; 2^64 - 1 is no limit."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    """`env` is kept out of repr: no value of it may reach a log."""

    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = field(default=(), repr=False)
    cwd: str = ""
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    oom_score_adj: int | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """`path` may be relative to the bundle."""

    path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class IdMapping:
    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Mount:
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """`args` includes argv[0] and may be empty. None for `timeout_s` is no limit."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = field(default=(), repr=False)
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """In the order in which the specification runs them."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    """`path` of one to join; "" for a new one."""

    type: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    path: str
    type: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """Limits for the control group. None is unsaid; -1 and 0 mean what the specification says of each."""

    memory_limit_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    memory_swap_bytes: int | None = None
    cpu_shares: int | None = None
    cpu_quota_us: int | None = None
    cpu_period_us: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Linux:
    """`has_seccomp`: a filter is given; which, no one needs to know for an enclave."""

    namespaces: tuple[Namespace, ...] = ()
    cgroups_path: str = ""
    resources: Resources = Resources()
    devices: tuple[Device, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    has_seccomp: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """`process` and `root` are optional in the specification; `Bundle` has them for certain."""

    oci_version: str = ""
    process: Process | None = None
    root: Root | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: Mapping[str, str] = field(default_factory=dict)
    linux: Linux = Linux()


def read(document: Document) -> Config:
    """The typed form of `document`. Raises BundleError, naming the place, for a value of the wrong shape."""
    root = document.root
    return Config(
        oci_version=root.member("ociVersion").text(),
        process=_process(process) if (process := root.member("process")).present else None,
        root=_root(place) if (place := root.member("root")).present else None,
        hostname=root.member("hostname").text(),
        domainname=root.member("domainname").text(),
        mounts=tuple(_mount(node) for node in root.member("mounts").elements()),
        hooks=_hooks(root.member("hooks")),
        annotations=document.annotations,
        linux=_linux(root.member("linux")),
    )


def _uint32(node: Node) -> int | None:
    return node.integer(0, UINT32_MAX)


def _int64(node: Node) -> int | None:
    return node.integer(INT64_MIN, INT64_MAX)


def _uint64(node: Node) -> int | None:
    return node.integer(0, UINT64_MAX)


def _process(node: Node) -> Process:
    size = node.member("consoleSize")
    capabilities = node.member("capabilities")
    return Process(
        terminal=node.member("terminal").flag(),
        console_size=_console_size(size) if size.present else None,
        user=_user(node.member("user")),
        args=node.member("args").texts(),
        env=node.member("env").texts(),
        cwd=node.member("cwd").text(),
        capabilities=_capabilities(capabilities) if capabilities.present else None,
        rlimits=tuple(_rlimit(limit) for limit in node.member("rlimits").elements()),
        no_new_privileges=node.member("noNewPrivileges").flag(),
        apparmor_profile=node.member("apparmorProfile").text(),
        selinux_label=node.member("selinuxLabel").text(),
        oom_score_adj=_int64(node.member("oomScoreAdj")),
    )


def _console_size(node: Node) -> ConsoleSize:
    # The kernel's struct winsize holds 16 bits of each.
    return ConsoleSize(
        height=node.member("height").integer(0, 0xFFFF) or 0,
        width=node.member("width").integer(0, 0xFFFF) or 0,
    )


def _user(node: Node) -> User:
    gids = [_uint32(gid) for gid in node.member("additionalGids").elements()]
    return User(
        uid=_uint32(node.member("uid")) or 0,
        gid=_uint32(node.member("gid")) or 0,
        umask=_uint32(node.member("umask")),
        additional_gids=tuple(gid or 0 for gid in gids),
    )


def _capabilities(node: Node) -> Capabilities:
    return Capabilities(
        bounding=node.member("bounding").texts(),
        effective=node.member("effective").texts(),
        inheritable=node.member("inheritable").texts(),
        permitted=node.member("permitted").texts(),
        ambient=node.member("ambient").texts(),
    )


def _rlimit(node: Node) -> Rlimit:
    return Rlimit(
        type=node.member("type").text(),
        soft=_uint64(node.member("soft")) or 0,
        hard=_uint64(node.member("hard")) or 0,
    )


def _root(node: Node) -> Root:
    return Root(path=node.member("path").text(), readonly=node.member("readonly").flag())


def _mount(node: Node) -> Mount:
    return Mount(
        destination=node.member("destination").text(),
        type=node.member("type").text(),
        source=node.member("source").text(),
        options=node.member("options").texts(),
    )


def _hooks(node: Node) -> Hooks:
    def listed(name: str) -> tuple[Hook, ...]:
        return tuple(_hook(hook) for hook in node.member(name).elements())

    return Hooks(
        prestart=listed("prestart"),
        create_runtime=listed("createRuntime"),
        create_container=listed("createContainer"),
        start_container=listed("startContainer"),
        poststart=listed("poststart"),
        poststop=listed("poststop"),
    )


def _hook(node: Node) -> Hook:
    return Hook(
        path=node.member("path").text(),
        args=node.member("args").texts(),
        env=node.member("env").texts(),
        timeout_s=_int64(node.member("timeout")),
    )


def _linux(node: Node) -> Linux:
    return Linux(
        namespaces=tuple(
            Namespace(type=entry.member("type").text(), path=entry.member("path").text())
            for entry in node.member("namespaces").elements()
        ),
        cgroups_path=node.member("cgroupsPath").text(),
        resources=_resources(node.member("resources")),
        devices=tuple(_device(device) for device in node.member("devices").elements()),
        uid_mappings=tuple(_id_mapping(mapping) for mapping in node.member("uidMappings").elements()),
        gid_mappings=tuple(_id_mapping(mapping) for mapping in node.member("gidMappings").elements()),
        masked_paths=node.member("maskedPaths").texts(),
        readonly_paths=node.member("readonlyPaths").texts(),
        has_seccomp=node.member("seccomp").present,
    )


def _resources(node: Node) -> Resources:
    memory, cpu = node.member("memory"), node.member("cpu")
    return Resources(
        memory_limit_bytes=_int64(memory.member("limit")),
        memory_reservation_bytes=_int64(memory.member("reservation")),
        memory_swap_bytes=_int64(memory.member("swap")),
        cpu_shares=_uint64(cpu.member("shares")),
        cpu_quota_us=_int64(cpu.member("quota")),
        cpu_period_us=_uint64(cpu.member("period")),
        cpuset_cpus=cpu.member("cpus").text(),
        cpuset_mems=cpu.member("mems").text(),
        pids_limit=_int64(node.member("pids").member("limit")),
    )


def _device(node: Node) -> Device:
    return Device(
        path=node.member("path").text(),
        type=node.member("type").text(),
        major=_int64(node.member("major")),
        minor=_int64(node.member("minor")),
        file_mode=_uint32(node.member("fileMode")),
        uid=_uint32(node.member("uid")),
        gid=_uint32(node.member("gid")),
    )


def _id_mapping(node: Node) -> IdMapping:
    return IdMapping(
        container_id=_uint32(node.member("containerID")) or 0,
        host_id=_uint32(node.member("hostID")) or 0,
        size=_uint32(node.member("size")) or 0,
    )
