"""The line by which a host program says which port of the guest it wants: `CONNECT <port>\\n`, answered `OK <port>\\n`.

What a program sends right after its line already belongs to the stream, so not one byte more than the line is taken
off the socket. A port that refuses is told by closing the socket, without a word.

Source: Firecracker's docs/vsock.md, "Host-Initiated Connections".
"""

from __future__ import annotations

import re
import socket

# "CONNECT 4294967295\n" has 19 bytes.
MAX_LINE = 32
MAX_PORT = 0xFFFFFFFF

_CONNECT = re.compile(rb"CONNECT ([0-9]{1,10})\n", re.IGNORECASE)


class BadHandshake(Exception):
    """What the host program sent is no CONNECT line, or it went away before sending one."""


def take_port(sock: socket.socket) -> int | None:
    """The port of the CONNECT line that waits in a non-blocking socket, and take the line off it.

    None while the line is incomplete; the socket is then as it was. Raises BadHandshake.
    """
    try:
        seen = sock.recv(MAX_LINE, socket.MSG_PEEK)
        end = seen.find(b"\n") + 1
        if not end:
            if not seen or len(seen) == MAX_LINE:
                raise BadHandshake("no CONNECT line")
            return None
        line = sock.recv(end)
    except BlockingIOError:
        return None
    except OSError as exc:
        raise BadHandshake("the socket broke") from exc
    return parse_connect(line)


def parse_connect(line: bytes) -> int:
    """The port in a whole line. Raises BadHandshake."""
    found = _CONNECT.fullmatch(line)
    if not found or int(found[1]) > MAX_PORT:
        raise BadHandshake("no CONNECT line")
    return int(found[1])


def answer(local_port: int) -> bytes:
    """What a program gets when the guest has accepted; `local_port` is the stream's port on our side."""
    return b"OK %d\n" % local_port
