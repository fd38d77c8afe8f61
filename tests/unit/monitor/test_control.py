"""The control socket against callers of every kind."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.errors import ContainerStateError, MonitorError, ReportedError
from pyrune.linux import bind_unix, connect_unix
from pyrune.monitor import control
from pyrune.monitor.control import SOCKET_NAME, ControlServer, Reply, Request, ask, parse_request
from pyrune.reactor import Reactor
from tests.support.programs import TIMEOUT_S, open_descriptors
from tests.support.rounds import run_until


class Monitor:
    """A server whose requests wait in a list until the test answers them."""

    def __init__(self, directory: Path) -> None:
        self.directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.reactor = Reactor()
        self.requests: list[tuple[Request, Reply]] = []
        self.server = ControlServer(self.directory_fd, self.reactor, lambda *request: self.requests.append(request))

    def connect(self) -> socket.socket:
        return connect_unix(self.directory_fd, SOCKET_NAME, TIMEOUT_S)

    def serve_until(self, condition: Callable[[], bool]) -> None:
        run_until(self.reactor, condition)

    def serve_some(self) -> None:
        """Until everything that has been sent so far is dealt with."""
        later: list[None] = []
        self.reactor.call_later(0.02, lambda: later.append(None))
        self.serve_until(lambda: bool(later))

    def asked(self, request: Request, answer: str | None) -> BaseException | None:
        """What `ask` raises when it is answered so."""
        raised: list[BaseException | None] = []

        def call() -> None:
            try:
                ask(self.directory_fd, request)
            except (MonitorError, ReportedError, ContainerStateError) as exc:
                raised.append(exc)
            else:
                raised.append(None)

        thread = threading.Thread(target=call)
        thread.start()
        self.serve_until(lambda: bool(self.requests))
        received, reply = self.requests.pop()
        assert received == request
        reply(answer)
        self.serve_until(lambda: bool(raised))
        thread.join()
        return raised[0]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    made = Monitor(tmp_path)
    yield made
    made.server.close()
    made.reactor.close()
    os.close(made.directory_fd)


def reply_to(caller: socket.socket) -> object:
    """The one line that a caller gets, whole."""
    with caller, caller.makefile("rb") as lines:
        line, *rest = lines.read().split(b"\n")
        assert rest == [b""]
        return json.loads(line)


def is_closed(caller: socket.socket) -> bool:
    caller.setblocking(False)
    try:
        return caller.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_request_is_answered_with_done(monitor: Monitor) -> None:
    assert monitor.asked(Request("start"), None) is None
    assert monitor.asked(Request("kill", 15), None) is None


def test_a_refusal_arrives_word_for_word(monitor: Monitor) -> None:
    refused = monitor.asked(Request("kill", 9), "not \n now \x1b é \udcff")
    assert isinstance(refused, ReportedError)
    assert str(refused) == "not \n now \x1b é \udcff"


def test_the_socket_is_its_owners_alone_and_goes_with_the_server(monitor: Monitor, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    monitor.server.close()
    monitor.server.close()
    assert os.listdir(tmp_path) == []


def test_without_a_monitor_a_container_does_not_run(monitor: Monitor) -> None:
    monitor.server.close()
    with pytest.raises(ContainerStateError, match=r"^container not running$"):
        ask(monitor.directory_fd, Request("start"))
    # A socket without anybody behind it, as a killed monitor leaves it.
    bind_unix(monitor.directory_fd, SOCKET_NAME).close()
    with pytest.raises(ContainerStateError, match=r"^container not running$"):
        ask(monitor.directory_fd, Request("start"))


@pytest.mark.parametrize(
    "answer", [b"", b"{", b'{"error": "half', b"garbage\n", b"[]\n", b'{"error": 7}\n', b"[" * 9999]
)
def test_a_monitor_that_dies_or_babbles_is_a_monitor_error(answer: bytes, tmp_path: Path) -> None:
    directory_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with bind_unix(directory_fd, SOCKET_NAME) as listener:

        def answer_and_die() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(100)
                peer.sendall(answer)

        thread = threading.Thread(target=answer_and_die)
        thread.start()
        with pytest.raises(MonitorError):
            ask(directory_fd, Request("start"))
        thread.join()
    os.close(directory_fd)


NO_REQUESTS = [
    *(b"\n", b"garbage\n", b"\xff\xfe\n", b"{}\n", b"[]\n", b"null\n", b'"start"\n', b'{"verb": 7}\n'),
    *(
        b'{"verb": "kill", "signal": "x"}\n',
        b'{"verb": "kill", "signal": null}\n',
        b'{"verb": "kill", "signal": 1e999}\n',
    ),
    *(
        b'{"verb": "kill", "signal": NaN}\n',
        b'{"verb": "kill", "signal": 9.5}\n',
        b'{"verb": "kill", "signal": true}\n',
        b'{"verb": "kill", "signal": 65}\n',
    ),
    *(
        b'{"verb": "kill", "signal": -9}\n',
        b'{"verb": "start"}\n{"verb": "start"}\n',
        b"[" * 4000 + b"\n",
        b'{"verb": "kill", "signal": ' + b"9" * 4000 + b"}\n",
    ),
]


@pytest.mark.parametrize("sent", NO_REQUESTS)
def test_what_is_no_request_is_refused(sent: bytes, monitor: Monitor) -> None:
    caller = monitor.connect()
    caller.sendall(sent)
    monitor.serve_some()
    assert reply_to(caller) == {"error": "this is not a request that the monitor knows"}
    assert monitor.requests == []


@given(
    st.binary()
    | st.builds(
        lambda value: json.dumps(value).encode(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["verb", "signal", "x"]), inner),
        ),
    )
)
def test_any_bytes_are_a_request_or_none(content: bytes) -> None:
    request = parse_request(content)
    assert request is None or (type(request.verb), type(request.signal)) == (str, int)


@pytest.mark.parametrize("size", [4096, 4097, 100_000])
def test_a_request_without_end_loses_its_connection(size: int, monitor: Monitor) -> None:
    with monitor.connect() as caller:
        try:
            caller.sendall(b"x" * size)
        except OSError:
            pytest.fail("it fits into the socket")
        if size > 4096:
            monitor.serve_until(lambda: is_closed(caller))
        else:
            monitor.serve_some()
            assert not is_closed(caller)


def test_a_request_may_come_in_pieces(monitor: Monitor) -> None:
    with monitor.connect() as caller:
        for byte in b'{"verb": "kill", "signal": 9}\n':
            caller.sendall(bytes([byte]))
            monitor.serve_some() if byte in b"{:" else None
        monitor.serve_until(lambda: bool(monitor.requests))
    assert monitor.requests[0][0] == Request("kill", 9)


@pytest.mark.parametrize("sent", [b"", b'{"verb"', b'{"verb": "start"}'])
def test_half_a_request_is_forgotten(sent: bytes, monitor: Monitor) -> None:
    before = len(open_descriptors())
    with monitor.connect() as caller:
        caller.sendall(sent)
    monitor.serve_some()
    assert monitor.requests == []
    assert len(open_descriptors()) == before


def test_silence_ends_a_connection(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_TIMEOUT_S", 0.01)
    with monitor.connect() as silent, monitor.connect() as slow:
        slow.sendall(b"{")
        monitor.serve_until(lambda: is_closed(silent) and is_closed(slow))


def test_a_caller_may_wait_long_for_its_reply(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_REQUEST_TIMEOUT_S", 0.01)
    caller = monitor.connect()
    caller.sendall(b'{"verb": "start"}\n')
    monitor.serve_until(lambda: bool(monitor.requests))
    monitor.serve_some()
    monitor.requests[0][1](None)
    assert reply_to(caller) == {}


def test_a_caller_that_has_gone_before_the_reply_does_not_matter(monitor: Monitor) -> None:
    before = len(open_descriptors())
    with monitor.connect() as caller:
        caller.sendall(b'{"verb": "start"}\n')
        monitor.serve_until(lambda: bool(monitor.requests))
    monitor.requests[0][1]("no")
    monitor.requests[0][1](None)
    assert len(open_descriptors()) == before


def test_a_reply_after_the_end_of_the_server_goes_nowhere(monitor: Monitor) -> None:
    with monitor.connect() as caller:
        caller.sendall(b'{"verb": "start"}\n')
        monitor.serve_until(lambda: bool(monitor.requests))
        monitor.server.close()
        monitor.requests[0][1](None)
        assert is_closed(caller)


def test_many_callers_at_once_are_all_answered(monitor: Monitor) -> None:
    callers = [monitor.connect() for _ in range(60)]
    for number, caller in enumerate(callers):
        caller.sendall(b'{"verb": "kill", "signal": %d}\n' % number)
    monitor.serve_until(lambda: len(monitor.requests) == 60)
    for request, reply in reversed(monitor.requests):
        reply(f"number {request.signal}")
    assert [reply_to(caller) for caller in callers] == [{"error": f"number {number}"} for number in range(60)]


def test_silent_callers_make_room_for_new_ones_but_who_waits_for_a_reply_stays(monitor: Monitor) -> None:
    waiting = monitor.connect()
    waiting.sendall(b'{"verb": "start"}\n')
    monitor.serve_until(lambda: bool(monitor.requests))
    silent = []
    for _ in range(100):
        silent.append(monitor.connect())
        monitor.serve_some() if len(silent) % 20 == 0 else None
    monitor.serve_some()
    assert 30 < sum(map(is_closed, silent)) < 40
    last = monitor.connect()
    last.sendall(b'{"verb": "kill", "signal": 1}\n')
    monitor.serve_until(lambda: len(monitor.requests) == 2)
    for _, reply in monitor.requests:
        reply(None)
    assert (reply_to(waiting), reply_to(last)) == ({}, {})
    for caller in silent:
        caller.close()
