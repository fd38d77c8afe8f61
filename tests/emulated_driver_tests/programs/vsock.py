"""AF_VSOCK sockets."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import threading

from tests.emulated_driver_tests.programs.client import answer_heartbeat, attempt, complete, heartbeat_listener


def take_heartbeat() -> object:
    listener = heartbeat_listener()
    enclave = complete()
    cid = enclave.start()
    peer_cid, peer_port = answer_heartbeat(listener)
    return {"cid": cid, "peer_cid": peer_cid, "peer_port_is_high": peer_port > 1023, "poll": enclave.poll(0.3)}


def take_heartbeat_before_start_returns() -> object:
    """The beat must be there when the ioctl returns."""
    listener = heartbeat_listener()
    listener.setblocking(False)
    enclave = complete()
    before = attempt(listener.accept)
    enclave.start()
    peer, address = listener.accept()
    peer.setblocking(False)
    return [before, peer.recv(1).hex(), address[0]]


def describe_sockets() -> object:
    listener = heartbeat_listener()
    enclave = complete()
    cid = enclave.start(flags=1)
    peer, address = listener.accept()
    peer.sendall(peer.recv(1))
    adopted = socket.socket(fileno=os.dup(listener.fileno()))
    adopted_peer = socket.socket(fileno=peer.detach())
    return {
        "family": adopted.family == socket.AF_VSOCK,
        "listener": listener.getsockname(),
        "no peer": attempt(listener.getpeername),
        "peer": list(adopted_peer.getpeername()) == list(address),
        "peer cid": adopted_peer.getpeername()[0] == cid,
        "peer name": adopted_peer.getsockname(),
        "local cid": _local_cid(listener.fileno()),
    }


def _local_cid(fd: int) -> int:
    argument = bytearray(4)
    fcntl.ioctl(fd, 0x7B9, argument)
    return int.from_bytes(argument, "little")


def make_in_two_networks() -> object:
    """A socket before and one after the process has gone into a network namespace of its own."""
    new_network = 0x40000000
    before = attempt(lambda: heartbeat_listener().close())
    if ctypes.CDLL(None, use_errno=True).unshare(new_network):
        return ctypes.get_errno()
    return [before, attempt(lambda: heartbeat_listener().close())]


def bind_rules() -> object:
    def bound(cid: int, port: int) -> int:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        kept.append(sock)
        return attempt(lambda: sock.bind((cid, port)))

    kept: list[socket.socket] = []
    outcomes = {
        "any": bound(socket.VMADDR_CID_ANY, 9000),
        "again": bound(socket.VMADDR_CID_ANY, 9000),
        "own cid": bound(3, 9000),
        "own cid, other port": bound(3, 9001),
        "another's cid": bound(16, 9002),
        "hypervisor": bound(0, 9003),
        "twice": attempt(lambda: kept[0].bind((socket.VMADDR_CID_ANY, 9004))),
        "datagrams": attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_DGRAM)),
    }
    kept[0].close()
    outcomes["after close"] = bound(socket.VMADDR_CID_ANY, 9000)
    return outcomes


def bind_and_listen() -> object:
    return attempt(lambda: heartbeat_listener().close())


def wait_for_connections() -> object:
    """accept that does not wait, that waits with select, and that simply waits."""
    listener = heartbeat_listener()
    listener.setblocking(False)
    empty = attempt(listener.accept)
    enclave = complete()
    enclave.start()
    readable, _, _ = select.select([listener], [], [], 10)
    peer, _ = listener.accept()
    inherited = peer.getblocking() and os.get_blocking(peer.fileno())
    peer.sendall(peer.recv(1))
    listener.setblocking(True)
    second = complete()
    threading.Timer(0.2, second.start).start()
    cid, _ = answer_heartbeat(listener)
    return [empty, bool(readable), inherited, cid]


def read_console(debug: int) -> object:
    """The console to its end, or the errno."""
    enclave = complete()
    cid = enclave.start(flags=debug)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        failure = attempt(lambda: sock.connect((0, 10000 + cid)))
        if failure:
            return failure
        text = b""
        while part := sock.recv(4096):
            text += part
    return text.decode()


def connect_without_waiting(cid: int, port: int) -> object:
    """Outcome of connect, what poll says, SO_ERROR twice, whether there is a peer."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        outcome = attempt(lambda: sock.connect((cid, port)))
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        writable = bool(poll.poll(1000))
        errors = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for _ in range(2)]
        return [outcome, writable, errors, attempt(sock.getpeername)]


def connect_and_wait(cid: int, port: int) -> object:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        return attempt(lambda: sock.connect((cid, port)))


def share_listener(processes: int) -> object:
    """As many children, one listener: each starts an enclave and takes beats; the first to have the port is killed.

    Returns how many beats were taken, by whoever.
    """
    listener = heartbeat_listener()
    read_end, write_end = os.pipe()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            enclave = complete()
            enclave.start()
            while True:
                cid, _ = answer_heartbeat(listener)
                os.write(write_end, bytes([cid]))
        children.append(child)
    listener.close()
    os.close(write_end)
    os.kill(children[0], signal.SIGKILL)
    seen: set[int] = set()
    while len(seen) < processes - 1 and (data := os.read(read_end, 1)):
        seen.update(data)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(seen)


def hand_over_listener() -> object:
    """A listener that an older process gets over a unix socket, after whose first holder ended."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        first = heartbeat_listener()
        socket.send_fds(theirs, [b"x"], [first.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    listener = socket.socket(fileno=descriptors[0])
    enclave = complete()
    cid = enclave.start()
    return [listener.getsockname(), answer_heartbeat(listener)[0] == cid]
