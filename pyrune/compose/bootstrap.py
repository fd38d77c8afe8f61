"""What boots: a kernel, its command line, and the ramdisk with the first process and the kernel's modules (PCR1).

A kernel that was named is taken. Otherwise AWS's own, where the package aws-nitro-enclaves-cli-devel put it, and else
the distribution's that scripts/fetch-kernel left in the cache; the first of these measures differently from the
second, so which one it was is said and recorded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyrune.compose.root import Folder, RootTree, regular
from pyrune.eif.files import CHUNK_BYTES, chunks, open_regular, quoted, read_regular
from pyrune.eif.format import Architecture
from pyrune.eif.kernel import HEAD_BYTES, identify_kernel
from pyrune.eif.metadata import Json
from pyrune.eif.ramdisk import Ramdisk
from pyrune.errors import EifError

# A panic or the end of the application ends the machine; level 1 leaves the console to the application.
DEFAULT_CMDLINE: Final = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=k"
AWS_BLOBS: Final = Path("/usr/share/nitro_enclaves/blobs")

_AWS_KERNELS: Final = {Architecture.X86_64: "bzImage", Architecture.AARCH64: "Image"}
_AWS_MODULE: Final = "nsm.ko"
_MAX_MODULE_BYTES: Final = 256 << 20
_MAX_TEXT_BYTES: Final = 64 << 10


def kernel_cache() -> Path:
    """Where scripts/fetch-kernel puts kernels, one directory for each architecture."""
    if os.geteuid() == 0:
        return Path("/var/cache/pyrune/kernels")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrune" / "kernels"


@dataclass(frozen=True, slots=True)
class Places:
    """Where kernels and the guest's init are looked for."""

    blobs: Path = AWS_BLOBS
    cache: Path = field(default_factory=kernel_cache)
    inits: Path = Path(__file__).parents[1] / "guest" / "bin"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and what belongs to it. `origin` says how it was chosen, in words that are the same on every machine."""

    path: Path
    sha256: str
    arch: Architecture
    cmdline: str
    origin: str
    modules: tuple[Path, ...] = ()
    is_aws: bool = False

    def as_json(self) -> Json:
        """For the image's metadata; nothing that differs between equal builds."""
        return {"Origin": self.origin, "SHA256": self.sha256}


def choose_kernel(
    places: Places,
    *,
    arch: Architecture | None,
    path: str | None = None,
    cmdline: str | None = None,
    modules: Sequence[str] = (),
) -> Kernel:
    """The kernel to boot. `arch`, if given, is what the content is for; otherwise a kernel's own or this machine's.

    Raises EifError, naming scripts/fetch-kernel if there is none.
    """
    extra = tuple(Path(module) for module in modules)
    if path is not None:
        return _kernel(Path(path), arch, DEFAULT_CMDLINE if cmdline is None else cmdline, "given", extra)
    wanted = arch or _this_machine()
    blob = places.blobs / _AWS_KERNELS[wanted]
    if blob.is_file():
        aws_cmdline = read_regular(os.fspath(places.blobs / "cmdline"), "AWS's command line", _MAX_TEXT_BYTES)
        nsm = places.blobs / _AWS_MODULE
        own = (nsm,) if nsm.is_file() else ()
        text = aws_cmdline.decode(errors="replace").strip() if cmdline is None else cmdline
        return _kernel(blob, wanted, text, "aws-nitro-enclaves-cli", own + extra, is_aws=True)
    cached = places.cache / wanted.value
    if (cached / "vmlinuz").is_file():
        listed = _listed_modules(cached)
        text = DEFAULT_CMDLINE if cmdline is None else cmdline
        return _kernel(cached / "vmlinuz", wanted, text, _version(cached), listed + extra)
    raise EifError(f"there is no kernel for {wanted} here; run scripts/fetch-kernel --arch {wanted}, or give --kernel")


def bootstrap_ramdisk(kernel: Kernel, places: Places, init: str | None) -> Ramdisk:
    """The first ramdisk: the first process, pyrune's own unless one is named, and the kernel's modules."""
    tree = RootTree("the bootstrap ramdisk")
    tree.put((b"dev",), Folder())
    tree.put((b"init",), regular(_init(kernel.arch, places, init), 0o755))
    listed = []
    for module in kernel.modules:
        name = os.fsencode(module.name)
        # AWS's init looks for its one module beside itself.
        parts = (name,) if kernel.is_aws and module.name == _AWS_MODULE else (b"modules", name)
        if tree.find(parts) is not None:
            raise EifError(f"two kernel modules are called {quoted(name)}")
        data = read_regular(os.fspath(module), f"kernel module {quoted(os.fspath(module))}", _MAX_MODULE_BYTES)
        tree.put(parts, regular(data))
        listed.append(b"/" + b"/".join(parts) + b"\n")
    if listed:
        tree.put((b"modules.load",), regular(b"".join(listed)))
    return Ramdisk(tree.nodes())


def _kernel(
    path: Path,
    arch: Architecture | None,
    cmdline: str,
    origin: str,
    modules: tuple[Path, ...],
    *,
    is_aws: bool = False,
) -> Kernel:
    label = f"kernel {quoted(os.fspath(path))}"
    fd, size_bytes = open_regular(os.fspath(path), label)
    try:
        digest = hashlib.sha256()
        head = b""
        for piece in chunks(fd, 0, size_bytes, bytearray(CHUNK_BYTES), label):
            digest.update(piece)
            head = head or bytes(piece[:HEAD_BYTES])
    finally:
        os.close(fd)
    own = identify_kernel(head).arch
    if own is not None and arch not in (None, own):
        raise EifError(f"{label} is for {own}, and what it is to run is for {arch}")
    return Kernel(path, digest.hexdigest(), arch or own or _this_machine(), cmdline, origin, modules, is_aws)


def _init(arch: Architecture, places: Places, init: str | None) -> bytes:
    path = places.inits / f"init-{arch}" if init is None else Path(init)
    if init is None and not path.is_file():
        raise EifError(f"the guest's init for {arch} is not built; run python -m pyrune.guest.build, or give --init")
    return read_regular(os.fspath(path), f"init {quoted(os.fspath(path))}", _MAX_MODULE_BYTES)


def _listed_modules(directory: Path) -> tuple[Path, ...]:
    """The modules of a cached kernel, in loading order."""
    label = f"list of modules {quoted(os.fspath(directory / 'modules.load'))}"
    text = read_regular(os.fspath(directory / "modules.load"), label, _MAX_TEXT_BYTES)
    names = [os.fsdecode(line) for line in text.split(b"\n") if line]
    for name in names:
        if not name.startswith("/modules/") or "/" in name.removeprefix("/modules/"):
            raise EifError(f"{label} names no file below /modules: {quoted(name)}")
    return tuple(directory / name.removeprefix("/") for name in names)


def _version(directory: Path) -> str:
    """Package and version of a cached kernel."""
    label = f"kernel version {quoted(os.fspath(directory / 'version'))}"
    text = read_regular(os.fspath(directory / "version"), label, _MAX_TEXT_BYTES).decode(errors="replace")
    fields = dict(line.partition(" ")[::2] for line in text.splitlines())
    return f"{fields.get('package', 'unknown')} {fields.get('version', '')}".strip()


def _this_machine() -> Architecture:
    try:
        return Architecture(os.uname().machine)
    except ValueError as exc:
        raise EifError("this machine's processor is none of an enclave; --arch names one") from exc
