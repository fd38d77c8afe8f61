"""NE_ADD_VCPU."""

from __future__ import annotations

from tests.emulated_driver_tests.programs.client import Enclave, attempt, in_child


def choose_vcpus(count: int) -> object:
    """The ids that id 0 comes to; an errno, negative, ends the list."""
    enclave = Enclave()
    chosen: list[int] = []
    for _ in range(count):
        failure = attempt(lambda: chosen.append(enclave.add_vcpu()))
        if failure:
            chosen.append(-failure)
            break
    return chosen


def add_vcpus(*ids: int) -> object:
    """Outcomes of adding these to one enclave."""
    enclave = Enclave()
    return [attempt(lambda vcpu=vcpu: enclave.add_vcpu(vcpu)) for vcpu in ids]  # type: ignore[misc]


def take_sibling_of_another(first: int, sibling: int) -> object:
    one, other = Enclave(), Enclave()
    one.add_vcpu(first)
    return [attempt(lambda: other.add_vcpu(sibling)), attempt(lambda: one.add_vcpu(sibling))]


def tie_up_core_from_child(vcpu: int) -> object:
    """A child's attempt fails, and yet the core is taken until the enclave is closed."""
    one, other = Enclave(), Enclave()
    in_the_child = in_child(lambda: attempt(lambda: one.add_vcpu(vcpu)))
    meanwhile = attempt(lambda: other.add_vcpu(vcpu))
    one.close()
    return [in_the_child, meanwhile, attempt(lambda: other.add_vcpu(vcpu))]


def take_core_given_back() -> object:
    """What closing an enclave gives back is there for the very next call."""
    outcomes = []
    for _ in range(20):
        enclave = Enclave()
        outcomes.append(attempt(enclave.add_core))
        enclave.close()
    return outcomes
