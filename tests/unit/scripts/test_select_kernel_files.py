"""What scripts/fetch-kernel keeps of a kernel package."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "select_kernel_files.py"
VSOCK = "net/vmw_vsock/vmw_vsock_virtio_transport"


def module(*needs: str) -> bytes:
    """A module file as far as this script reads it: strings of .modinfo, between other bytes."""
    return b"\x7fELF\0\0author=somebody\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0\0\x01\x02"


def make_package(directory: Path, modules: dict[str, bytes], *, below: str = "lib", compressed: bool = False) -> Path:
    unpacked = directory / "unpacked"
    (unpacked / "boot").mkdir(parents=True)
    (unpacked / "boot" / "vmlinuz-6.1.0-cloud-amd64").write_bytes(b"the kernel")
    for name, content in modules.items():
        path = unpacked / below / "modules" / "6.1.0-cloud-amd64" / "kernel" / (name + ".ko" + ".xz" * compressed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(content) if compressed else content)
    return unpacked


def select(unpacked: Path, output: Path) -> subprocess.CompletedProcess[str]:
    output.mkdir()
    command = [sys.executable, "-I", str(SCRIPT), str(unpacked), str(output)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def loading_order(output: Path) -> list[str]:
    return [line.removeprefix("/modules/") for line in (output / "modules.load").read_text().splitlines()]


def test_every_module_comes_after_those_it_needs(tmp_path: Path) -> None:
    unpacked = make_package(
        tmp_path,
        {
            VSOCK: module("virtio", "vmw_vsock_virtio_transport_common", "vsock"),
            "net/vmw_vsock/vmw_vsock_virtio_transport_common": module("vsock"),
            "net/vmw_vsock/vsock": module(),
            "drivers/virtio/virtio": module("virtio_ring"),
            "drivers/virtio/virtio_ring": module(),
            "drivers/virtio/virtio_pci": module("virtio"),
            "drivers/net/virtio_net": module("virtio"),
        },
    )
    assert select(unpacked, tmp_path / "out").returncode == 0
    assert loading_order(tmp_path / "out") == [
        *("virtio_ring.ko", "virtio.ko", "virtio_pci.ko"),
        *("vsock.ko", "vmw_vsock_virtio_transport_common.ko", "vmw_vsock_virtio_transport.ko"),
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "modules").iterdir()) == sorted(
        loading_order(tmp_path / "out")
    )
    assert (tmp_path / "out" / "vmlinuz").read_bytes() == b"the kernel"


@pytest.mark.parametrize("below", ["lib", "usr/lib"])
def test_compressed_modules_are_decompressed(tmp_path: Path, below: str) -> None:
    unpacked = make_package(tmp_path, {VSOCK: module()}, below=below, compressed=True)
    assert select(unpacked, tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "modules" / "vmw_vsock_virtio_transport.ko").read_bytes() == module()


def test_names_with_hyphens_are_the_kernels_names_with_underscores(tmp_path: Path) -> None:
    unpacked = make_package(tmp_path, {VSOCK: module("odd_name"), "drivers/odd-name": module()})
    assert select(unpacked, tmp_path / "out").returncode == 0
    assert loading_order(tmp_path / "out") == ["odd_name.ko", "vmw_vsock_virtio_transport.ko"]


def test_a_package_without_a_vsock_driver_is_refused(tmp_path: Path) -> None:
    done = select(make_package(tmp_path, {"net/other": module()}), tmp_path / "out")
    assert done.returncode == 1
    assert "vmw_vsock_virtio_transport" in done.stderr


def test_a_package_with_two_kernels_is_refused(tmp_path: Path) -> None:
    unpacked = make_package(tmp_path, {VSOCK: module()})
    (unpacked / "boot" / "vmlinuz-6.1.0-other").write_bytes(b"")
    done = select(unpacked, tmp_path / "out")
    assert done.returncode == 1
    assert "2 kernels" in done.stderr
