"""The Nitro back end: what has to be right before anything is taken, and the taking, in the driver's order.

What can be known without the device is checked first. Whether CPUs and pages are free is known by taking them: all of
them are, or everything goes back and one error says what is missing.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from pyrune.backend import BackendName, EnclaveFacts, EnclaveObserver, EnclaveSpec
from pyrune.eif.measure import Measurements
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import check_signature, parse_signature
from pyrune.errors import BackendError
from pyrune.ne.cpu_pool import CpuPool, add_vcpus, format_cpu_list
from pyrune.ne.device import DEVICE_PATH, NitroDevice
from pyrune.ne.enclave import Holdings, NitroEnclave
from pyrune.ne.hugepages import in_words
from pyrune.ne.memory import EnclaveMemory
from pyrune.ne.parent_vsock import ParentVsock
from pyrune.ne.placement import place
from pyrune.ne.uapi import MIN_ENCLAVE_BYTES, MIN_REGION_BYTES
from pyrune.reactor import Reactor

DEFAULT_MEMORY_BYTES: Final = 512 << 20
# nitro-cli's rule (its ENCLAVE_MEMORY_EIF_SIZE_RATIO). The image stays where it was put while the kernel unpacks its
# ramdisks, which may be compressed, into the rest of the memory; less ends in a panic for want of memory or a file.
MEMORY_PER_IMAGE: Final = 4


class NitroBackend:
    """See pyrune.backend.Backend."""

    def __init__(self, device_path: str = DEVICE_PATH, vsock: ParentVsock | None = None) -> None:
        self._device_path = device_path
        self._vsock = vsock or ParentVsock()

    def prepare(
        self,
        spec: EnclaveSpec,
        directory_fd: int,  # noqa: ARG002 (nothing of a Nitro enclave has a place there)
        reactor: Reactor,
        observer: EnclaveObserver,
    ) -> NitroEnclave:
        pool = CpuPool.read()
        with EifImage.from_fd(os.dup(spec.image_fd), spec.image_name) as image, ExitStack() as undo:
            check_image(image)
            wanted_bytes = memory_for(spec.memory_mib, image.size_bytes)
            spec = _in_full_cores(spec, pool, observer)
            pool.require(spec.vcpus, spec.cpu_ids)
            holdings, measurements = self._take(image, wanted_bytes, pool, undo)
            cpus = self._give(holdings, spec, pool)
            facts = _facts(spec, holdings, measurements, cpus)
            enclave = NitroEnclave(holdings, facts, self._vsock, reactor, observer)
            undo.pop_all()
        for sentence in _describe(holdings.memory, wanted_bytes, cpus, spec.debug):
            observer.noted(sentence)
        return enclave

    def _take(
        self, image: EifImage, wanted_bytes: int, pool: CpuPool, undo: ExitStack
    ) -> tuple[Holdings, Measurements]:
        """A slot, and the memory with the image in it."""
        with NitroDevice(self._device_path) as device:
            vm = device.create_vm()
        undo.callback(vm.close)
        offset = vm.image_load_offset()
        if offset + image.size_bytes > wanted_bytes:
            raise BackendError(
                f"the enclave is given {wanted_bytes >> 20} MiB of memory, and the driver wants its image of "
                f"{_mib(image.size_bytes)} MiB at {_mib(offset)} MiB",
                remedy=f"say memory={_mib(offset + image.size_bytes)} or more",
            )
        memory = EnclaveMemory.take(wanted_bytes, pool.node)
        undo.callback(memory.close)
        return Holdings(vm, memory), place(image, memory, offset)

    def _give(self, holdings: Holdings, spec: EnclaveSpec, pool: CpuPool) -> tuple[int, ...]:
        """Memory and CPUs to the enclave. Returns the CPUs."""
        for region in holdings.memory.regions:
            holdings.vm.set_user_memory_region(region.address, region.size_bytes)
        return add_vcpus(holdings.vm, pool, spec.vcpus, spec.cpu_ids)


def check_image(image: EifImage) -> None:
    """Raise EifError or BackendError for an image that cannot become an enclave on this machine.

    Of a signature this tells only whether it holds for what it says it signs; `place` tells whether that is the image.
    """
    image.require_bootable()
    image.require_unambiguous()
    image.cmdline_text()
    machine = os.uname().machine
    if image.header.arch != machine:
        raise image.error(f"it is for {image.header.arch} processors, and this machine's are {machine}", 6)
    if image.signature is not None:
        report = check_signature(parse_signature(image.read(image.signature)), "")
        if problem := replace(report, pcr0_matches=True).problem:
            raise image.error(f"its signature does not hold: {problem}", image.signature.offset)


def memory_for(memory_mib: int | None, image_bytes: int) -> int:
    """How many bytes the enclave is to have, a multiple of 2 MiB. Raises BackendError if that is too little."""
    least = max(MIN_ENCLAVE_BYTES, _rounded(MEMORY_PER_IMAGE * image_bytes))
    if memory_mib is None:
        return max(DEFAULT_MEMORY_BYTES, least)
    if memory_mib << 20 < MIN_ENCLAVE_BYTES:
        raise BackendError(
            f"the enclave is given {memory_mib} MiB of memory, and no enclave may have less than "
            f"{MIN_ENCLAVE_BYTES >> 20} MiB",
            remedy=f"say memory={least >> 20} or more",
        )
    if memory_mib << 20 < MEMORY_PER_IMAGE * image_bytes:
        raise BackendError(
            f"the enclave is given {memory_mib} MiB of memory, and its image of {_mib(image_bytes)} MiB needs "
            f"{MEMORY_PER_IMAGE} times its size: it stays in memory while its kernel unpacks the ramdisks beside it",
            remedy=f"say memory={least >> 20} or more",
        )
    return _rounded(memory_mib << 20)


def _rounded(size_bytes: int) -> int:
    return -(-size_bytes // MIN_REGION_BYTES) * MIN_REGION_BYTES


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // (1 << 20))


def _in_full_cores(spec: EnclaveSpec, pool: CpuPool, observer: EnclaveObserver) -> EnclaveSpec:
    if spec.cpu_ids:
        return replace(spec, vcpus=len(spec.cpu_ids))
    full = pool.full_cores(spec.vcpus)
    if full != spec.vcpus:
        observer.noted(f"the enclave gets {full} vCPUs instead of {spec.vcpus}: only full cores can be given away")
    return replace(spec, vcpus=full)


def _facts(spec: EnclaveSpec, holdings: Holdings, pcrs: Measurements, cpus: tuple[int, ...]) -> EnclaveFacts:
    return EnclaveFacts(
        backend=BackendName.NITRO,
        enclave_cid=spec.enclave_cid,
        memory_mib=holdings.memory.size_bytes >> 20,
        vcpus=len(cpus),
        pcr0=pcrs.pcr0,
        pcr1=pcrs.pcr1,
        pcr2=pcrs.pcr2,
        pcr8=pcrs.pcr8,
        debug=spec.debug,
    )


def _describe(memory: EnclaveMemory, wanted_bytes: int, cpus: tuple[int, ...], debug: bool) -> list[str]:
    """What was taken, for the log."""
    runs = [f"{region.run.count} of {in_words(region.run.page_bytes)}" for region in memory.regions]
    regions = "1 region" if len(runs) == 1 else f"{len(runs)} regions"
    sentences = [
        f"memory of {memory.size_bytes >> 20} MiB in {regions} of huge pages: {', '.join(runs)}",
        f"CPUs {format_cpu_list(cpus)}",
    ]
    if excess := memory.size_bytes - wanted_bytes:
        sentences.append(f"that is {excess >> 20} MiB more memory than asked for: smaller huge pages are not free")
    if debug:
        sentences.append("the enclave is in debug mode: its attestation shows zeros instead of PCRs and proves nothing")
    return sentences
