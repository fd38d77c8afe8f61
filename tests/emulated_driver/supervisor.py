"""The process that answers: the loop that takes calls in from any number of filters, and the control socket's verbs."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyrune.reactor import READ, Reactor
from tests.emulated_driver.calls import Calls
from tests.emulated_driver.control import ControlServer, Reply
from tests.emulated_driver.driver import Driver, Enclave, Life
from tests.emulated_driver.faults import Faults
from tests.emulated_driver.files import Files
from tests.emulated_driver.filter import filter_program
from tests.emulated_driver.journal import Journal, error_name
from tests.emulated_driver.life import PretendedLife
from tests.emulated_driver.local_life import LocalLife, MachineRoom
from tests.emulated_driver.notification import CallerGone, Notification
from tests.emulated_driver.scenario import Boot, Scenario, fault_from
from tests.emulated_driver.vsock import PARENT_CID, Address, VsockSpace

# So many calls are answered before the loop looks at anything else.
_BATCH: Final = 64


class Supervisor:
    """See the module. `linger` keeps it running when no program is under it any more, until told to stop."""

    def __init__(self, scenario: Scenario, log_path: Path, control_path: Path, *, linger: bool) -> None:
        self._scenario = scenario
        self._linger = linger
        self._listeners: set[int] = set()
        self._starts = itertools.count()
        self._place = tempfile.TemporaryDirectory(prefix="emulated-driver-")
        self._reactor = Reactor()
        self._journal = Journal(log_path)
        self._space = VsockSpace(f"{os.getpid()}-{os.urandom(4).hex()}")
        self._room = MachineRoom()
        self._faults = Faults(scenario.faults)
        self._driver = Driver(scenario, self._journal, self._make_life)
        self._files = Files(Path(self._place.name), scenario, self._driver.pool)
        self._calls = Calls(self._files, self._driver, self._space, self._faults, self._journal)
        self._control = ControlServer(control_path, self)

    def run(self) -> None:
        """Serve until `stop`, or until no program is left."""
        try:
            self._reactor.run()
        finally:
            for enclave in self._driver.enclaves():
                if enclave.life is not None:
                    enclave.life.end()
            self._room.close()
            self._place.cleanup()
            # Last: who waits for the end looks for this socket.
            self._control.close()

    def stop(self) -> None:
        self._reactor.call_soon(self._reactor.stop)

    def _make_life(self, enclave: Enclave) -> Life:
        behaviour = self._scenario.behaviour(next(self._starts))
        if behaviour.boot is Boot.LOCAL:
            return LocalLife(self._driver, enclave, self._scenario, self._space, self._journal, self._room)
        return PretendedLife(self._driver, enclave, self._scenario, behaviour, self._space, self._journal)

    # --- filters ---------------------------------------------------------------------------------------------------

    def join(self) -> bytes:
        return filter_program()

    def adopt(self, listener: int) -> None:
        """Answer the calls of one more filter; owns `listener`."""
        self._listeners.add(listener)
        self._reactor.call_soon(lambda: self._reactor.watch(listener, READ, lambda: self._receive(listener)))

    def _receive(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        for _ in range(_BATCH):
            ready = poll.poll(0)
            if not ready:
                return
            if not ready[0][1] & select.POLLIN:
                self._drop(listener)
                return
            note = Notification.receive(listener)
            if note is not None:
                with contextlib.suppress(CallerGone):
                    self._calls.take(note)

    def _drop(self, listener: int) -> None:
        self._reactor.unwatch(listener)
        os.close(listener)
        self._listeners.discard(listener)
        if not self._listeners and not self._linger:
            self._reactor.stop()

    # --- the control socket's verbs --------------------------------------------------------------------------------

    def command(self, verb: str, request: Mapping[str, object]) -> Reply:
        match verb:
            case "state":
                return self._state()
            case "exit":
                self._life(request).exit(str(request.get("reason", "told to")))
            case "print":
                self._pretended(request).print(str(request["text"]))
            case "beat":
                return {"answered": self._pretended(request).beat()}
            case "connect":
                return self._connect(request)
            case "fault":
                self._faults.add(fault_from(request["fault"]))
            case "mend":
                self._faults.clear()
            case "release":
                self._faults.release()
            case "pool":
                return self._write_pool(str(request["cpus"]))
            case "stop":
                self.stop()
            case _:
                raise ValueError(f"no verb {verb}")
        return {}

    def _state(self) -> Reply:
        enclaves = [
            {
                "number": enclave.number,
                "state": enclave.state.name.lower(),
                "cid": enclave.cid,
                "debug": enclave.debug,
                "vcpus": enclave.vcpus,
                "cpus": sorted(cpu for core in enclave.cores.values() for cpu in core),
                "memory_bytes": enclave.memory.donated_bytes,
            }
            for enclave in self._driver.enclaves()
        ]
        return {
            "enclaves": enclaves,
            "free_cpus": sorted(self._driver.pool.free),
            "held": self._faults.held(),
            "filters": len(self._listeners),
        }

    def _life(self, request: Mapping[str, object]) -> Life:
        number = request.get("enclave")
        for enclave in self._driver.enclaves():
            if enclave.number == number and enclave.life is not None:
                return enclave.life
        raise ValueError(f"no enclave {number} runs")

    def _pretended(self, request: Mapping[str, object]) -> PretendedLife:
        life = self._life(request)
        if not isinstance(life, PretendedLife):
            raise ValueError("that enclave really runs")
        return life

    def _connect(self, request: Mapping[str, object]) -> Reply:
        cid, port, data = int(str(request["cid"])), int(str(request["port"])), bytes.fromhex(str(request["data"]))
        try:
            with self._space.connect(cid, Address(PARENT_CID, port), 5.0) as sock:
                sock.sendall(data)
                sock.settimeout(1.0)
                back = b""
                with contextlib.suppress(OSError):
                    back = sock.recv(4096)
        except OSError:
            return {"connected": False}
        return {"connected": True, "data": back.hex()}

    def _write_pool(self, cpus: str) -> Reply:
        try:
            self._driver.pool.write(cpus, len(self._driver.enclaves()))
        except OSError as exc:
            return {"error": error_name(exc.errno or 0)}
        finally:
            self._files.refresh()
        return {}
