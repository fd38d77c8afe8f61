"""NE_START_ENCLAVE, and what comes after it."""

from __future__ import annotations

from tests.emulated_driver_tests.programs.client import ENOUGH, HUGE, Enclave, address_of, attempt, complete, huge_map


def order_of_checks() -> object:
    """Each start has one fault less than the one before."""
    enclave = Enclave()
    memory = huge_map(ENOUGH)
    outcomes = [attempt(lambda: enclave.start(cid=2, flags=2)), attempt(lambda: enclave.start(cid=2))]
    outcomes.append(attempt(enclave.start))
    enclave.add_memory(address_of(memory), HUGE)
    outcomes.append(attempt(enclave.start))
    enclave.add_memory(address_of(memory) + HUGE, ENOUGH - HUGE)
    outcomes.append(attempt(enclave.start))
    enclave.add_vcpu()
    outcomes.append(attempt(enclave.start))
    enclave.add_vcpu()
    outcomes.append(attempt(enclave.start))
    return outcomes


def refuse_cids(*cids: int) -> object:
    enclave = Enclave()
    return [attempt(lambda cid=cid: enclave.start(cid=cid)) for cid in cids]  # type: ignore[misc]


def start_twice(*cids: int) -> object:
    """Two enclaves; the CIDs that they got, or errnos, negative."""
    outcomes = []
    kept = []
    for cid in cids:
        enclave = complete()
        kept.append(enclave)
        try:
            outcomes.append(enclave.start(cid))
        except OSError as exc:
            outcomes.append(-(exc.errno or 0))
    return outcomes


def every_ioctl_once_running() -> object:
    enclave = complete()
    enclave.start()
    return _every_ioctl(enclave)


def every_ioctl_once_exited() -> object:
    enclave = complete()
    enclave.start()
    hang_up = enclave.poll(10.0)
    return [hang_up, *_every_ioctl(enclave)]


def _every_ioctl(enclave: Enclave) -> list[int]:
    memory = huge_map(HUGE)
    return [
        attempt(enclave.add_vcpu),
        attempt(enclave.load_info),
        attempt(lambda: enclave.add_map(memory)),
        attempt(enclave.start),
    ]


def start_again_after_device_error() -> object:
    enclave = complete()
    return [attempt(enclave.start), attempt(enclave.start)]


def load_info() -> object:
    enclave = Enclave()
    return [enclave.load_info(), *(attempt(lambda flags=flags: enclave.load_info(flags)) for flags in (0, 2, 3))]  # type: ignore[misc]
