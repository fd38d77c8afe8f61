"""A program with QEMU's end of every connection and no machine: it does what the file `script` beside it says.

One line for each run of the program, `|` between steps:

    say TEXT      on standard error           print TEXT    on the console
    event JSON    over QMP                     raw TEXT      over QMP
    exit N        ends                         deaf          no greeting, and stays
    device        closes the vsock connection  wait          until it is killed

What comes before `run` is done before QMP's handshake, the rest after `cont`. What it was given is in `arguments`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

HERE = Path(__file__).parent


class Qemu:
    """One run."""

    def __init__(self, arguments: list[str]) -> None:
        text = " ".join(arguments)
        self.qmp, self.vsock, self.console = (
            socket.socket(fileno=int(re.findall(rf"socket,id={name},fd=([0-9]+)", text)[0]))
            for name in ("qmp", "vsock", "console")
        )
        (HERE / "arguments").write_text(json.dumps(arguments))

    def run(self, script: str) -> None:
        before, _, after = script.partition("run")
        self.do(before)
        self.send('{"QMP": {"version": {}, "capabilities": []}}')
        self.await_command("qmp_capabilities")
        self.send('{"return": {}}')
        self.await_command("cont")
        self.send('{"event": "RESUME"}')
        self.do(after)

    def do(self, script: str) -> None:
        for step in filter(None, (step.strip() for step in script.split("|"))):
            verb, _, text = step.partition(" ")
            if verb == "say":
                os.write(2, text.encode().decode("unicode_escape").encode("latin-1") + b"\n")
            elif verb == "print":
                self.console.sendall(text.encode() + b"\n")
            elif verb == "event":
                self.send(text)
            elif verb == "raw":
                self.qmp.sendall(text.encode() + b"\n")
            elif verb == "exit":
                os._exit(int(text))
            elif verb == "device":
                self.vsock.close()
            elif verb in ("wait", "deaf"):
                signal.pause()

    def send(self, text: str) -> None:
        self.qmp.sendall(text.encode() + b"\r\n")

    def await_command(self, name: str) -> None:
        line = b""
        while not line.endswith(b"\n"):
            chunk = self.qmp.recv(1)
            if not chunk:
                os._exit(3)
            line += chunk
        assert json.loads(line)["execute"] == name


def next_script() -> str:
    first, _, rest = (HERE / "script").read_text().partition("\n")
    (HERE / "script").write_text(rest)
    return first


if __name__ == "__main__":
    Qemu(sys.argv[1:]).run(next_script())
