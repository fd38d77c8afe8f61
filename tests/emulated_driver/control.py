"""The control socket: how tests, and programs that are to be put under the filter, talk to the supervisor.

A stream socket; one request and one reply per connection, each a line of JSON. A request is {"do": VERB, ...}:

    join      launch.py: is sent the filter, installs it, sends back its listener, and may go on once told so
    state     {"enclaves": [...], "free_cpus": [...], "held": [[call, pid], ...],
              "filters": those that still have processes}
    exit      "enclave" (its number), "reason": it exits
    print     "enclave", "text": on its console
    beat      "enclave": another heartbeat; {"answered": true}
    connect   "cid", "port", "data" (hex): a connection to the parent from a CID, which need not be an enclave's;
              {"connected": true, "data": what came back within a second, hex}
    fault     "fault": one more, as in a scenario
    mend      no more faults
    release   calls that a fault holds go on
    pool      "cpus": what writing to ne_cpus does; {"error": name} if it fails
    stop      the supervisor ends
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

Reply: TypeAlias = Mapping[str, object]


class Commands(Protocol):
    """Who carries out what the socket asks for."""

    def command(self, verb: str, request: Mapping[str, object]) -> Reply:
        """Raises OSError, ValueError, KeyError for what cannot be done."""

    def join(self) -> bytes:
        """The filter of a program that wants one."""

    def adopt(self, listener: int) -> None:
        """That program's listener."""


class ControlServer:
    """A thread for each connection."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._path = path
        self._commands = commands
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            with client.makefile("rb") as lines:
                request = json.loads(lines.readline() or b"{}")
            if request.get("do") == "join":
                self._let_join(client)
            else:
                client.sendall(json.dumps(self._reply(request)).encode() + b"\n")

    def _reply(self, request: Mapping[str, object]) -> Reply:
        try:
            return self._commands.command(str(request["do"]), request)
        except OSError as exc:
            return {"error": exc.errno}
        except (KeyError, ValueError, TypeError) as exc:
            return {"error": f"{type(exc).__name__}: {exc}"}

    def _let_join(self, client: socket.socket) -> None:
        client.sendall(self._commands.join())
        client.settimeout(10)
        _, descriptors, _, _ = socket.recv_fds(client, 1, 1)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            self._commands.adopt(descriptors[0])
            client.sendall(b"\0")


def ask(path: Path, verb: str, arguments: Mapping[str, object], timeout_s: float = 30.0) -> dict[str, object]:
    """One request, and its reply. Raises OSError where nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
        sock.sendall(json.dumps({"do": verb, **arguments}).encode() + b"\n")
        with sock.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise ConnectionResetError("the emulated driver ended during the call")
    reply: dict[str, object] = json.loads(line)
    return reply
