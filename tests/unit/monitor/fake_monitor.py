"""The monitor's program with the fake back end in the place of the real ones: `fake_monitor.py ORDER_FD`.

Everything else is the real thing. The order's notes are the enclave's script: `boot`, `print TEXT`, `spam`, `panic`,
`off`, `fail` (to prepare), `crash` (to prepare, with an error that is not ours).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from pyrune.backend import BackendName, EnclaveObserver, EnclaveSpec, EndKind
from pyrune.errors import BackendError
from pyrune.monitor import __main__ as program
from pyrune.monitor.order import MonitorOrder
from pyrune.reactor import Reactor
from tests.support.fake_backend import FakeBackend, FakeEnclave


class ScriptedBackend(FakeBackend):
    """Its enclave does, when started, what the script says."""

    def __init__(self, script: tuple[str, ...]) -> None:
        super().__init__()
        self.script = script

    def prepare(self, spec: EnclaveSpec, directory_fd: int, reactor: Reactor, observer: EnclaveObserver) -> FakeEnclave:
        if "fail" in self.script:
            raise BackendError("no memory is left")
        if "crash" in self.script:
            raise ZeroDivisionError("a mistake\x1b")
        enclave = super().prepare(spec, directory_fd, reactor, observer)
        enclave.on_start = lambda: reactor.call_soon(self.run)
        return enclave

    def run(self) -> None:
        for line in self.script:
            verb, _, text = line.partition(" ")
            if verb == "boot":
                self.enclave.boot()
            elif verb == "print":
                self.enclave.print(text.encode() + b"\n")
            elif verb == "spam":
                self.spam()
            elif verb == "panic":
                self.enclave.print(b"Kernel panic - not syncing: x\n")
            elif verb == "off":
                self.enclave.end(EndKind.POWERED_OFF)

    def spam(self) -> None:
        if self.enclave.has_ended:
            return
        if not self.enclave.paused:
            self.enclave.print(b"x" * 4096)
        self.enclave.reactor.call_later(0.0005, self.spam)


def main() -> None:
    content = os.pread(int(sys.argv[1]), 1 << 20, 0)
    copy = os.memfd_create("copy")
    os.write(copy, content)
    script = MonitorOrder.from_memory_file(copy).notes

    def load_backend(_name: BackendName) -> ScriptedBackend:
        return ScriptedBackend(script)

    vars(program)["load_backend"] = load_backend
    program.main()


if __name__ == "__main__":
    main()
