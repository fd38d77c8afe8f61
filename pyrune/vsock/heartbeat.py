"""The heartbeat: how an enclave's init says that it is up.

AWS's init connects once to its parent (CID 3) at port 9000, sends the byte 0xB7 and waits for the same byte before it
goes on; without an answer it waits for ever, and when the connection fails it panics. Source: init/init.c of
aws-nitro-enclaves-sdk-bootstrap. pyrune's own init does the same.
"""

from __future__ import annotations

import socket

from pyrune.reactor import READ, Callback, Reactor, Timer

HEARTBEAT_BYTE = b"\xb7"
_TIMEOUT_S = 10.0
_PEER_LIMIT = 16


class BeatAnswerer:
    """Answers beats on connections that were made to the port. `on_beat` is called at each beat."""

    def __init__(self, reactor: Reactor, on_beat: Callback) -> None:
        self._reactor = reactor
        self._on_beat = on_beat
        self._peers: dict[socket.socket, Timer] = {}

    def add(self, peer: socket.socket) -> None:
        """Take a connection over and wait for its beat. One that says nothing is dropped, or makes room for another."""
        peer.setblocking(False)
        if len(self._peers) >= _PEER_LIMIT:
            self._drop(next(iter(self._peers)))
        self._peers[peer] = self._reactor.call_later(_TIMEOUT_S, lambda: self._drop(peer))
        self._reactor.watch(peer.fileno(), READ, lambda: self._answer(peer))

    def close(self) -> None:
        """Drop whoever is half-way."""
        for peer in list(self._peers):
            self._drop(peer)

    def _answer(self, peer: socket.socket) -> None:
        try:
            beat = peer.recv(1)
            # One byte always fits into the send buffer of a fresh connection.
            done = beat == HEARTBEAT_BYTE and peer.send(HEARTBEAT_BYTE) == 1
        except BlockingIOError:
            return
        except OSError:
            done = False
        self._drop(peer)
        if done:
            self._on_beat()

    def _drop(self, peer: socket.socket) -> None:
        timer = self._peers.pop(peer, None)
        if timer is not None:
            timer.cancel()
            self._reactor.unwatch(peer.fileno())
            peer.close()


class HeartbeatServer:
    """Answers whoever connects to a listening stream socket of any family, which it owns."""

    def __init__(self, listener: socket.socket, reactor: Reactor, on_beat: Callback) -> None:
        self._listener = listener
        self._reactor = reactor
        self._answerer = BeatAnswerer(reactor, on_beat)
        listener.setblocking(False)
        reactor.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Stop listening and drop whoever is half-way."""
        if self._listener.fileno() >= 0:
            self._reactor.unwatch(self._listener.fileno())
            self._listener.close()
        self._answerer.close()

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            # It has gone again, or there is no descriptor left for it: others may come.
            return
        self._answerer.add(peer)
