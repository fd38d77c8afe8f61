"""Build an enclave image from a container's content: root file system, process, kernel and init, put together.

The content is looked at first, names and attributes only, and read while the image is written. Both ramdisks are laid
out in memory; nothing of the content is unpacked to the disk, except that a compressed layer is decompressed to a
file without a name.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pyrune.bundle import load_bundle, validate
from pyrune.compose import process_spec
from pyrune.compose.application import application_ramdisk
from pyrune.compose.bootstrap import Kernel, Places, bootstrap_ramdisk, choose_kernel
from pyrune.compose.bundle_content import not_enforced, process_of
from pyrune.compose.directory import Owner, root_of_directory
from pyrune.compose.image_archive import Image, open_docker_archive, open_oci_layout
from pyrune.compose.process_spec import ProcessSpec
from pyrune.compose.root import RootTree
from pyrune.eif.builder import build
from pyrune.eif.files import quoted
from pyrune.eif.format import Architecture
from pyrune.eif.measure import Measurements
from pyrune.eif.metadata import Json
from pyrune.eif.output import checked_output
from pyrune.eif.ramdisk import Ramdisk
from pyrune.eif.writer import SectionMaker
from pyrune.errors import EifError, UsageError, printable

# The member of the image's metadata that says which kernel was taken.
KERNEL_KEY: Final = "BootKernel"


class ContentKind(StrEnum):
    """Where a container's content comes from."""

    BUNDLE = "bundle"
    ROOTFS = "rootfs"
    DOCKER_ARCHIVE = "docker-archive"
    OCI_LAYOUT = "oci-layout"


@dataclass(frozen=True, slots=True)
class Order:
    """What to build. `arguments` replace an image's CMD, and are the whole command for a root file system."""

    kind: ContentKind
    path: str
    output: str
    arguments: tuple[str, ...] = ()
    owner: Owner | None = None
    arch: Architecture | None = None
    kernel: str | None = None
    cmdline: str | None = None
    init: str | None = None
    modules: tuple[str, ...] = ()
    name: str | None = None
    version: str = ""
    custom_metadata: Json = None
    sign: SectionMaker | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """What was built. `memory_bytes` is what the enclave needs for the image and for what it unpacks from it."""

    measurements: Measurements
    kernel: Kernel
    image_bytes: int
    memory_bytes: int
    not_enforced: tuple[str, ...]

    def notes(self) -> list[str]:
        """What its user should know, in lines."""
        kernel = self.kernel
        lines = [
            f"kernel: {quoted(os.fspath(kernel.path))} ({printable(kernel.origin)}), SHA-256 {kernel.sha256}",
            f"memory: {_mib(self.memory_bytes)} MiB for the image ({_mib(self.image_bytes)} MiB) and what it unpacks, "
            "besides what the kernel and the application use",
        ]
        if self.not_enforced:
            lines.append(f"not carried out inside the enclave yet: {', '.join(self.not_enforced)}")
        return lines


@dataclass(frozen=True, slots=True)
class _Content:
    tree: RootTree
    process: ProcessSpec
    arch: Architecture | None = None
    not_enforced: tuple[str, ...] = ()
    image: Image | None = None


def build_from_content(order: Order, places: Places | None = None) -> Built:
    """Write the image that `order` describes. Raises PyruneError; what is there is replaced only by a whole image."""
    _check(order)
    places = places or Places()
    output = checked_output(order.output, "image")
    metadata = order.custom_metadata if order.custom_metadata is not None else {}
    if not isinstance(metadata, dict) or KERNEL_KEY in metadata:
        raise EifError(f"the metadata must be a JSON object without {KERNEL_KEY}, where the kernel is recorded")
    with ExitStack() as stack:
        content = _read_content(stack, order, output.parent)
        kernel = choose_kernel(
            places,
            arch=content.arch or order.arch,
            path=order.kernel,
            cmdline=order.cmdline,
            modules=order.modules,
        )
        ramdisks = [
            bootstrap_ramdisk(kernel, places, order.init),
            application_ramdisk(content.tree, content.process),
        ]
        measurements = build(
            output,
            kernel=kernel.path,
            cmdline=kernel.cmdline,
            ramdisks=ramdisks,
            arch=kernel.arch,
            name=order.name,
            version=order.version,
            custom_metadata={**metadata, KERNEL_KEY: kernel.as_json()},
            sign=order.sign,
            last_check=content.image.store.check_unchanged if content.image else None,
        )
    return _built(measurements, kernel, output, ramdisks, content)


def _built(
    measurements: Measurements, kernel: Kernel, output: Path, ramdisks: list[Ramdisk], content: _Content
) -> Built:
    image_bytes = output.stat().st_size
    unpacked = sum(ramdisk.unpacked_bytes for ramdisk in ramdisks)
    return Built(measurements, kernel, image_bytes, image_bytes + unpacked, content.not_enforced)


def _check(order: Order) -> None:
    is_archive = order.kind in (ContentKind.DOCKER_ARCHIVE, ContentKind.OCI_LAYOUT)
    if is_archive and order.owner is not None:
        raise UsageError(f"--owner is for directories; the owners in a {order.kind} are what its headers say")
    if order.kind is ContentKind.BUNDLE and order.arguments:
        raise UsageError("what a bundle runs is in its config.json; leave the arguments out")
    if order.kind is ContentKind.ROOTFS and not order.arguments:
        raise UsageError("a root file system does not say what to run; name a program, after --")


def _read_content(stack: ExitStack, order: Order, spool_directory: Path) -> _Content:
    match order.kind:
        case ContentKind.BUNDLE:
            bundle = load_bundle(order.path)
            validate(bundle)
            process = process_of(bundle)
            tree = root_of_directory(stack, bundle.rootfs, order.owner)
            process = process_spec.of_container(process, bundle.config.hostname, tree)
            return _Content(tree, process, not_enforced=not_enforced(bundle))
        case ContentKind.ROOTFS:
            tree = root_of_directory(stack, order.path, order.owner)
            return _Content(tree, process_spec.of_arguments(order.arguments, tree))
        case ContentKind.DOCKER_ARCHIVE:
            image = open_docker_archive(stack, os.fspath(order.path), order.arch)
        case ContentKind.OCI_LAYOUT:
            image = open_oci_layout(stack, os.fspath(order.path), order.arch)
    tree = image.root(stack, spool_directory)
    process = process_spec.of_image(image.config, tree, order.arguments)
    return _Content(tree, process, image.config.arch, image=image)


def _mib(size_bytes: int) -> int:
    """Rounded up."""
    return -(-size_bytes >> 20)
