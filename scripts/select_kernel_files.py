"""Takes what an enclave needs out of an unpacked kernel package: the kernel, and drivers with what they need.

    select_kernel_files.py UNPACKED OUTPUT

A kernel package has no modules.dep (depmod writes that on installation), so that dependencies come from the modules
themselves: each names its own in the strings of its .modinfo section.

Runs under the system's Python, with nothing but the standard library.
"""

from __future__ import annotations

import lzma
import re
import sys
from pathlib import Path

# Drivers by module name, in an order that suits the guest: the buses, then vsock. What a kernel has built in it has no
# file for. nsm, the Nitro Secure Module, came with Linux 6.8.
WANTED = ("virtio_mmio", "virtio_pci", "vmw_vsock_virtio_transport", "nsm")
REQUIRED = "vmw_vsock_virtio_transport"
# Where the guest's init finds them.
GUEST_DIRECTORY = "/modules"
MODULE_NAME = re.compile(r"([^/]+)\.ko(?:\.xz)?")
DEPENDENCIES = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


def index(tree: Path) -> dict[str, Path]:
    """Every module file below `tree`, by the kernel's name for it, which has underscores only."""
    found = ((MODULE_NAME.fullmatch(path.name), path) for path in tree.rglob("*.ko*"))
    return {match[1].replace("-", "_"): path for match, path in found if match}


def read(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def dependencies(module: bytes) -> list[str]:
    match = DEPENDENCIES.search(module)
    return [name.replace("-", "_") for name in match[1].decode("ascii").split(",") if name] if match else []


def in_loading_order(files: dict[str, Path]) -> dict[str, bytes]:
    """The wanted modules that exist, decompressed, each after those it needs."""
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        module = read(files[name])
        for needed in dependencies(module):
            add(needed)
        ordered[name] = module

    for name in WANTED:
        add(name)
    return ordered


def only(paths: list[Path], what: str) -> Path:
    if len(paths) != 1:
        raise SystemExit(f"the kernel package holds {len(paths)} {what}: {[str(path) for path in paths]}")
    return paths[0]


def main(unpacked: Path, output: Path) -> None:
    kernel = only(sorted(unpacked.glob("boot/vmlinuz-*")), "kernels")
    modules = in_loading_order(index(unpacked))
    if REQUIRED not in modules:
        raise SystemExit(f"the kernel package holds no module {REQUIRED}")
    (output / "vmlinuz").write_bytes(kernel.read_bytes())
    (output / "modules").mkdir()
    for name, module in modules.items():
        (output / "modules" / f"{name}.ko").write_bytes(module)
    (output / "modules.load").write_text("".join(f"{GUEST_DIRECTORY}/{name}.ko\n" for name in modules))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
