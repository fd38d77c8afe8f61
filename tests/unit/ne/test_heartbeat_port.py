"""The heartbeat's port among many starters, with unix sockets in the place of vsock."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.ne import heartbeat_port
from pyrune.ne.heartbeat_port import HeartbeatPort
from pyrune.reactor import Reactor
from tests.unit.ne.loop import new_reactor, run_for, run_until
from tests.unit.ne.unix_vsock import UnixVsock

BEAT = b"\xb7"


class Starter:
    """One share of the port, and what it has reported."""

    def __init__(self, vsock: UnixVsock, reactor: Reactor, directory: Path) -> None:
        self.opened = False
        self.beats = 0
        self.error: BackendError | None = None
        self.port = HeartbeatPort(vsock, reactor, self._on_beat, directory)

    def open(self) -> None:
        self.port.open(self._on_open, self._on_failed)

    def _on_open(self) -> None:
        self.opened = True

    def _on_beat(self) -> None:
        self.beats += 1

    def _on_failed(self, error: BackendError) -> None:
        self.error = error


class Place:
    """A machine: its vsock, the starters on it, and one reactor that serves them all."""

    def __init__(self, reactor: Reactor, directory: Path, cleanup: ExitStack) -> None:
        self.reactor = reactor
        self.directory = directory
        self.vsock = UnixVsock()
        self._cleanup = cleanup

    def starter(self) -> Starter:
        starter = Starter(self.vsock, self.reactor, self.directory)
        self._cleanup.callback(starter.port.close)
        return starter

    def open_starter(self) -> Starter:
        starter = self.starter()
        starter.open()
        self.until(lambda: starter.opened)
        return starter

    def enclave(self, cid: int) -> socket.socket:
        """An enclave that has sent its beat, and waits."""
        sock = self._cleanup.enter_context(self.vsock.call_parent(cid, 9000))
        sock.sendall(BEAT)
        return sock

    def until(self, done: object) -> None:
        assert callable(done)
        run_until(self.reactor, done)

    def answered(self, sock: socket.socket) -> bool:
        return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == BEAT


def _refused(enclave: socket.socket) -> bool:
    try:
        return enclave.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with new_reactor() as reactor, ExitStack() as cleanup:
        yield Place(reactor, tmp_path / "meeting", cleanup)


def test_a_beat_is_answered_and_reported(place: Place) -> None:
    starter = place.open_starter()
    starter.port.expect(16)
    enclave = place.enclave(16)
    place.until(lambda: starter.beats == 1)
    assert enclave.recv(1) == BEAT


def test_a_beat_that_comes_before_the_cid_is_known_is_answered_then(place: Place) -> None:
    starter = place.open_starter()
    enclave = place.enclave(16)
    run_for(place.reactor, 0.1)
    assert starter.beats == 0
    assert not place.answered(enclave)
    starter.port.expect(16)
    place.until(lambda: starter.beats == 1)
    assert enclave.recv(1) == BEAT


def test_a_beat_from_another_cid_is_not_believed(place: Place) -> None:
    starter = place.open_starter()
    early = place.enclave(17)
    run_for(place.reactor, 0.05)
    starter.port.expect(16)
    late = place.enclave(17)
    for enclave in (early, late):
        place.until(lambda sock=enclave: bool(select.select([sock], [], [], 0)[0]))
        assert _refused(enclave)
    assert starter.beats == 0


def test_a_wrong_byte_is_no_beat(place: Place) -> None:
    starter = place.open_starter()
    starter.port.expect(16)
    with place.vsock.call_parent(16, 9000) as enclave:
        enclave.sendall(b"x")
        place.until(lambda: bool(select.select([enclave], [], [], 0)[0]))
        assert _refused(enclave)
    assert starter.beats == 0


def test_eight_starters_share_the_port_and_each_gets_its_own_beat(place: Place) -> None:
    starters = [place.starter() for _ in range(8)]
    for starter in starters:
        starter.open()
    place.until(lambda: all(starter.opened for starter in starters))
    enclaves = [place.enclave(20 + number) for number in range(8)]
    for number, starter in enumerate(starters):
        if number % 2:
            starter.port.expect(20 + number)
    run_for(place.reactor, 0.05)
    for number, starter in enumerate(starters):
        starter.port.expect(20 + number)
    place.until(lambda: all(starter.beats == 1 for starter in starters))
    assert [enclave.recv(1) for enclave in enclaves] == [BEAT] * 8
    assert all(starter.error is None for starter in starters)


def test_the_port_outlives_the_starter_that_took_it(place: Place) -> None:
    first = place.open_starter()
    second = place.open_starter()
    first.port.close()
    third = place.open_starter()
    second.port.close()
    third.port.expect(16)
    enclave = place.enclave(16)
    place.until(lambda: third.beats == 1)
    assert enclave.recv(1) == BEAT


def test_the_port_is_free_when_nobody_starts_any_more(place: Place) -> None:
    for starter in [place.open_starter(), place.open_starter()]:
        starter.port.close()
        starter.port.close()
    assert os.listdir(place.directory) == []
    with place.vsock.make() as another_program:
        place.vsock.listen(another_program, 9000)


def test_another_programs_port_is_waited_for(place: Place) -> None:
    starter = place.starter()
    with place.vsock.make() as another_program:
        place.vsock.listen(another_program, 9000)
        starter.open()
        run_for(place.reactor, 0.3)
        assert not starter.opened
    place.until(lambda: starter.opened)
    assert starter.error is None


def test_another_programs_port_is_given_up_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_port, "PORT_PATIENCE_S", 0.3)
    starter = place.starter()
    with place.vsock.make() as another_program:
        place.vsock.listen(another_program, 9000)
        starter.open()
        place.until(lambda: starter.error is not None)
    assert "port 9000 of vsock" in str(starter.error)
    assert "nitro-cli" in str(starter.error)
    assert not starter.opened


def test_the_socket_of_a_dead_starter_is_swept(place: Place) -> None:
    place.directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(place.directory / "1.dead"))
    place.open_starter()
    assert "1.dead" not in os.listdir(place.directory)


def test_an_enclave_that_connects_a_thousand_times_pushes_no_other_out(place: Place) -> None:
    starter = place.open_starter()
    enclave = place.enclave(16)
    for _ in range(200):
        place.enclave(66).close()
        run_for(place.reactor, 0)
    starter.port.expect(16)
    place.until(lambda: starter.beats == 1)
    assert enclave.recv(1) == BEAT


def test_messages_that_mean_nothing_are_ignored(place: Place) -> None:
    starter = place.open_starter()
    [name] = os.listdir(place.directory)
    read, write = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(place.directory / name))
        for message in (b"", b"want", b"want ../x", b"want \xff", b"port", b"beat", b"beat 16", b"beat x", b"y" * 500):
            sock.send(message)
            socket.send_fds(sock, [message or b"z"], [read])
            run_for(place.reactor, 0.01)
    os.close(read)
    os.close(write)
    starter.port.expect(16)
    enclave = place.enclave(16)
    place.until(lambda: starter.beats == 1)
    assert enclave.recv(1) == BEAT


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_that_others_can_enter_is_refused(place: Place, mode: int) -> None:
    place.directory.mkdir()
    place.directory.chmod(mode)
    starter = place.starter()
    starter.open()
    place.until(lambda: starter.error is not None)
    assert "is open to other users" in str(starter.error)


def test_the_directory_is_made_for_its_owner_alone(place: Place) -> None:
    place.open_starter()
    assert stat.S_IMODE(place.directory.stat().st_mode) == 0o700


ANOTHER_STARTER = """
    import sys
    from pathlib import Path
    from pyrune.ne.heartbeat_port import HeartbeatPort
    from pyrune.reactor import Reactor
    from tests.unit.ne.unix_vsock import UnixVsock
    reactor = Reactor()
    port = HeartbeatPort(UnixVsock(sys.argv[1]), reactor, lambda: None, Path(sys.argv[2]))
    port.open(lambda: print("open", flush=True), sys.exit)
    reactor.run()
"""


@contextmanager
def _another_starter(place: Place) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", textwrap.dedent(ANOTHER_STARTER), place.vsock.world, str(place.directory)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": os.getcwd()}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_port_and_its_beats_outlive_a_starter_that_is_killed(place: Place) -> None:
    with _another_starter(place) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        starters = [place.open_starter() for _ in range(3)]
        # Stopped, it has a share of the port and takes part in nothing.
        process.send_signal(signal.SIGSTOP)
        enclaves = [place.enclave(16 + number) for number in range(3)]
        run_for(place.reactor, 0.05)
        process.kill()
        process.wait(20)
        enclaves.append(place.enclave(19))
        starters.append(place.open_starter())
        for number, starter in enumerate(starters):
            starter.port.expect(16 + number)
        place.until(lambda: all(starter.beats == 1 for starter in starters[:3]))
        assert [enclave.recv(1) for enclave in enclaves[:3]] == [BEAT] * 3


def test_a_beat_that_another_accepted_survives_its_death(place: Place) -> None:
    with _another_starter(place) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        starter = place.open_starter()
        # This reactor stands still, so only the other process can accept.
        enclave = place.enclave(16)
        [mine] = [name for name in os.listdir(place.directory) if name.startswith(f"{os.getpid()}.")]
        assert mine
        for _ in range(1000):
            if not place.answered(enclave) and _waiting_bytes(starter):
                break
            select.select([], [], [], 0.01)
        process.kill()
        process.wait(20)
        starter.port.expect(16)
        place.until(lambda: starter.beats == 1)
        assert enclave.recv(1) == BEAT


def _waiting_bytes(starter: Starter) -> bool:
    """Whether a message from another starter is waiting."""
    sock = starter.port._meeting._sock
    assert sock is not None
    return bool(select.select([sock], [], [], 0)[0])
