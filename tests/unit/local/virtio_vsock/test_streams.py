"""The whole device, as a process: a guest's driver on one side, host programs on the other."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from pyrune.local.virtio_vsock.muxer import PATIENCE_S
from pyrune.local.virtio_vsock.packet import Op, Shutdown
from tests.unit.local.virtio_vsock.guest import (
    GUEST_CID,
    DeviceProcess,
    Guest,
    HostProgram,
    Stream,
    call_guest,
    read_all,
    read_line,
    wait_until_closed,
)

MIB = 1 << 20


@pytest.mark.parametrize("host_cid", [2, 3])
def test_a_guest_reaches_a_host_program_and_gets_its_answer(guest: Guest, host: HostProgram, host_cid: int) -> None:
    listener = host.listen(9000)
    stream = guest.connect(9000, host_cid)
    sock = host.accept(listener)
    stream.write(b"\xb7")
    assert sock.recv(10) == b"\xb7"
    sock.sendall(b"\xb7")
    assert stream.take(1) == b"\xb7"


def test_a_host_program_reaches_the_guest(guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, guest, 4294967295)
    sock.sendall(b"ping")
    assert stream.take(4) == b"ping"
    stream.write(b"pong")
    assert sock.recv(10) == b"pong"


def test_what_a_caller_writes_behind_its_line_belongs_to_the_stream(plain_guest: Guest, host: HostProgram) -> None:
    sock = host.call(b"CONNECT 7\nearly")
    sock.shutdown(socket.SHUT_WR)
    stream = plain_guest.accept()
    assert stream.take(5) == b"early"
    stream.expect(Op.SHUTDOWN, Shutdown.SEND)
    assert read_line(sock) == b"OK %d\n" % stream.host_port


def test_a_port_that_nobody_serves_is_refused(plain_guest: Guest) -> None:
    stream = plain_guest.stream(9001)
    stream.send(Op.REQUEST)
    stream.expect(Op.RST)


def test_a_caller_that_the_guest_refuses_is_closed_without_a_word(plain_guest: Guest, host: HostProgram) -> None:
    sock = host.call(b"CONNECT 7\n")
    plain_guest.until(lambda: bool(plain_guest.requests))
    request = plain_guest.requests.popleft()
    Stream(plain_guest, request.dst_port, request.src_port).send(Op.RST)
    assert read_all(sock) == b""


@pytest.mark.parametrize(
    "line", [b"CONNECT\n", b"connect x\n", b"CONNECT 4294967296\n", b"GET / HTTP/1.1\n", b"x" * 40]
)
def test_a_caller_that_does_not_know_the_handshake_is_closed(
    plain_guest: Guest, host: HostProgram, line: bytes
) -> None:
    wait_until_closed(host.call(line))


def test_64_mib_arrive_unchanged_in_both_directions_at_once(guest: Guest, host: HostProgram) -> None:
    listener = host.listen(80)
    down, up = os.urandom(MIB) * 64, os.urandom(MIB) * 64
    stream = guest.connect(80)
    sock = host.accept(listener)
    digest = hashlib.sha256()

    def receive() -> None:
        left = len(up)
        while left:
            piece = sock.recv(1 << 20)
            digest.update(piece)
            left -= len(piece)

    threads = [threading.Thread(target=sock.sendall, args=[down]), threading.Thread(target=receive)]
    for thread in threads:
        thread.start()
    received = hashlib.sha256()
    for start in range(0, len(up), MIB):
        stream.write(up[start : start + MIB])
        received.update(stream.take(MIB))
    for thread in threads:
        thread.join()
    assert digest.digest() == hashlib.sha256(up).digest()
    assert received.digest() == hashlib.sha256(down).digest()


def test_200_streams_at_once_keep_their_bytes_apart(guest: Guest, host: HostProgram, device: DeviceProcess) -> None:
    listener = host.listen(80, backlog=256)
    pairs = []
    streams = [guest.stream(80) for _ in range(100)]
    for stream in streams:
        stream.send(Op.REQUEST)
    for stream in streams:
        stream.expect(Op.RESPONSE)
        pairs.append((host.accept(listener), stream))
    callers = [host.call(b"CONNECT %d\n" % (20000 + number)) for number in range(100)]
    accepted = {stream.guest_port: stream for stream in (guest.accept() for _ in callers)}
    for number, sock in enumerate(callers):
        assert read_line(sock).startswith(b"OK ")
        pairs.append((sock, accepted[20000 + number]))
    for number, (sock, stream) in enumerate(pairs):
        sock.sendall(b"to guest %d" % number)
        stream.write(b"to host %d" % number)
    for number, (sock, stream) in enumerate(pairs):
        assert sock.recv(100) == b"to host %d" % number
        assert stream.take(len(b"to guest %d" % number)) == b"to guest %d" % number
    for sock, stream in pairs:
        sock.close()
        stream.expect_both_directions_closed()
        stream.send(Op.RST)
    guest.until(lambda: device.open_fds() < 30)


def test_a_burst_of_streams_waits_for_a_host_program_with_a_short_queue(plain_guest: Guest, host: HostProgram) -> None:
    listener = host.listen(80, backlog=1)
    streams = [plain_guest.stream(80) for _ in range(20)]
    for stream in streams:
        stream.send(Op.REQUEST)
    for _ in streams:
        host.accept(listener)
    for stream in streams:
        stream.expect(Op.RESPONSE)


def test_the_host_may_close_one_direction_and_still_read(guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, guest)
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    assert stream.take(8) == b"question"
    stream.expect(Op.SHUTDOWN, Shutdown.SEND)
    stream.write(b"answer")
    stream.send(Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert read_all(sock) == b"answer"
    stream.expect(Op.RST)


def test_the_guest_may_close_one_direction_and_still_read(guest: Guest, host: HostProgram) -> None:
    listener = host.listen(80)
    stream = guest.connect(80)
    sock = host.accept(listener)
    stream.write(b"question")
    stream.send(Op.SHUTDOWN, flags=Shutdown.SEND)
    assert read_all(sock) == b"question"
    sock.sendall(b"answer")
    assert stream.take(6) == b"answer"
    sock.close()
    stream.expect_both_directions_closed()


def test_what_a_host_program_wrote_before_it_closed_arrives(guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, guest)
    text = os.urandom(100_000)
    sock.sendall(text)
    sock.close()
    assert stream.take(len(text)) == text
    stream.expect_both_directions_closed()


def test_a_guest_that_writes_to_a_closed_host_program_still_gets_what_that_wrote(
    plain_guest: Guest, host: HostProgram
) -> None:
    sock, stream = call_guest(host, plain_guest)
    sock.sendall(b"last words")
    sock.close()
    stream.write(b"too late")
    assert stream.take(10) == b"last words"
    stream.expect(Op.SHUTDOWN)


def test_a_host_program_that_reads_no_more_does_not_stop_the_guest_for_ever(
    plain_guest: Guest, host: HostProgram
) -> None:
    sock, stream = call_guest(host, plain_guest)
    sock.shutdown(socket.SHUT_RD)
    stream.write(os.urandom(MIB))
    stream.expect(Op.SHUTDOWN, Shutdown.RECEIVE)
    sock.sendall(b"still talking")
    assert stream.take(13) == b"still talking"


def test_a_guest_that_reads_no_more_gives_the_host_program_a_broken_pipe(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    stream.send(Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    stream.write(b"but hear me")
    assert sock.recv(100) == b"but hear me"
    with pytest.raises(BrokenPipeError):
        sock.sendall(b"x" * MIB)


def test_a_host_program_that_leaves_bytes_unread_resets_the_stream(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    stream.write(b"never read")
    plain_guest.until(lambda: len(sock.recv(100, socket.MSG_PEEK)) == 10)
    sock.close()
    stream.expect(Op.RST)


def test_a_stalled_host_program_stalls_only_its_own_stream_and_memory_stays_bounded(
    guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    listener = host.listen(80)
    before = device.status_kib("RssAnon")
    stalled = [guest.connect(80) for _ in range(20)]
    sockets = [host.accept(listener) for _ in stalled]
    sent = []
    for stream in stalled:
        # Full: as much as the stream's buffer holds beyond what the kernel's does.
        while stream.credit:
            stream.send(Op.RW, b"s" * min(stream.credit, 60_000))
            guest.poll()
        guest.until(lambda: not guest.tx.chains)
        sent.append(stream.sent)
    assert device.status_kib("RssAnon") - before < 20 * 256 + 8 * 1024
    lively = guest.connect(80)
    other = host.accept(listener)
    lively.write(b"still here")
    assert other.recv(20) == b"still here"
    for sock, count, stream in zip(sockets, sent, stalled, strict=True):
        stream.send(Op.SHUTDOWN, flags=Shutdown.BOTH)
        received = 0
        while received < count:
            received += len(sock.recv(1 << 20))
            guest.poll()
        assert read_all(sock) == b""
        stream.expect(Op.RST)


def test_bytes_of_a_guest_that_resets_still_reach_a_slow_host_program(plain_guest: Guest, host: HostProgram) -> None:
    listener = host.listen(80)
    stream = plain_guest.connect(80)
    sock = host.accept(listener)
    while stream.credit:
        stream.send(Op.RW, b"r" * min(stream.credit, 60_000))
        plain_guest.poll()
    stream.send(Op.RST)
    # The same ports are free for another stream at once.
    stream.send(Op.REQUEST)
    stream.expect(Op.RESPONSE)
    assert len(read_all(sock)) == stream.sent


def test_a_stalled_guest_stalls_the_host_program_and_only_that(plain_guest: Guest, host: HostProgram) -> None:
    sock, stream = call_guest(host, plain_guest)
    sock.setblocking(False)
    sent = 0
    deadline = time.monotonic() + 20
    idle = 0
    while idle < 20 and time.monotonic() < deadline:
        plain_guest.poll()
        try:
            sent += sock.send(b"f" * 65536)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.005)
    # No more than the guest said it has room for left the kernel's buffers.
    assert len(stream.received) == stream.buf_alloc
    assert sent < 2 * MIB
    other, lively = call_guest(host, plain_guest, 8)
    other.sendall(b"alive")
    assert lively.take(5) == b"alive"
    stream.expect(Op.CREDIT_REQUEST)
    assert stream.take(sent) == b"f" * sent


def test_a_caller_that_stalls_in_its_line_costs_nothing(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    callers = [host.call(b"CONN") for _ in range(10)]
    call_guest(host, plain_guest)
    before = device.cpu_s()
    time.sleep(0.5)
    assert device.cpu_s() - before <= 0.05
    for sock in callers:
        sock.sendall(b"ECT 99\n")
    assert {plain_guest.accept().guest_port for _ in callers} == {99}


def test_a_caller_that_goes_away_in_its_line_is_forgotten(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    call_guest(host, plain_guest)
    before = device.open_fds()
    for sock in [host.call(b"CONN") for _ in range(10)]:
        sock.close()
    call_guest(host, plain_guest)
    # At once, and not when their time is over.
    plain_guest.until(lambda: device.open_fds() == before + 1, timeout_s=PATIENCE_S / 2)


def test_more_callers_than_streams_are_allowed_are_closed_and_the_rest_live(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    callers = [host.call() for _ in range(1100)]
    refused = 0
    for sock in callers[1024:]:
        refused += read_all(sock) == b""
    assert refused == 76
    stream = plain_guest.stream(80)
    host.listen(80)
    stream.send(Op.REQUEST)
    stream.expect(Op.RST)
    for sock in callers[:1024]:
        sock.close()
    plain_guest.until(lambda: device.open_fds() < 30)
    plain_guest.connect(80)


def test_a_guest_that_floods_with_requests_gets_resets(plain_guest: Guest, device: DeviceProcess) -> None:
    streams = [plain_guest.stream(81) for _ in range(3000)]
    for stream in streams:
        stream.send(Op.REQUEST)
    for stream in streams:
        stream.expect(Op.RST)
    assert device.open_fds() < 30


def test_a_guest_that_takes_no_packets_cannot_make_the_device_hoard_answers(device: DeviceProcess) -> None:
    guest = Guest(device.sock)
    guest.start(buffers=0)
    stream = guest.stream(81)
    sent = 0
    while guest.may_transmit(wait_s=0.2):
        guest.transmit(stream.packet(Op.REQUEST))
        sent += 1
        assert sent < 1000
    assert len(guest.tx.chains) > 0, "packets should be waiting in the queue, not in the device"
    before = device.cpu_s()
    time.sleep(0.3)
    assert device.cpu_s() - before <= 0.05, "it should wait, too, and not look at the queue again and again"
    guest.post_buffers(128)
    guest.rx.kick()
    guest.until(lambda: not guest.tx.chains)
    guest.close()


def test_all_streams_end_when_the_guest_lets_go_of_its_rings(plain_guest: Guest, host: HostProgram) -> None:
    sock, _ = call_guest(host, plain_guest)
    plain_guest.front_end.stop_ring(0)
    plain_guest.front_end.stop_ring(1)
    wait_until_closed(sock)
    wait_until_closed(host.call(b"CONNECT 7\n"))


def test_last_words_of_a_guest_reach_even_a_slow_host_program(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    listener = host.listen(80)
    stream = plain_guest.connect(80)
    sock = host.accept(listener)
    while stream.credit:
        stream.send(Op.RW, b"w" * min(stream.credit, 60_000))
        plain_guest.poll()
    device.sock.close()
    time.sleep(0.2)
    assert len(read_all(sock)) == stream.sent
    assert device.wait() == (0, "")
    assert not (device.directory / "vsock").exists()


def test_a_host_program_that_never_reads_does_not_keep_the_device(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    listener = host.listen(80)
    stream = plain_guest.connect(80)
    host.accept(listener)
    while stream.credit:
        stream.send(Op.RW, b"w" * min(stream.credit, 60_000))
        plain_guest.poll()
    assert device.end() == (0, "")


@pytest.mark.parametrize("way", ["close", "TERM"])
def test_the_device_ends_cleanly_and_removes_its_socket(plain_guest: Guest, device: DeviceProcess, way: str) -> None:
    assert (device.directory / "vsock").stat().st_mode & 0o777 == 0o600
    if way == "close":
        status, said = device.end()
    else:
        device.popen.send_signal(signal.SIGTERM)
        status, said = device.wait()
    assert (status, said) == (0, "")
    assert not (device.directory / "vsock").exists()


def test_an_interrupt_from_the_terminal_is_ignored(
    plain_guest: Guest, host: HostProgram, device: DeviceProcess
) -> None:
    device.popen.send_signal(signal.SIGINT)
    call_guest(host, plain_guest)


def test_the_device_has_a_name_and_no_descriptors_of_others(plain_guest: Guest, device: DeviceProcess) -> None:
    proc = Path(f"/proc/{device.popen.pid}")
    assert (proc / "comm").read_text() == "pyrune-vsock\n"
    assert "NoNewPrivs:\t1" in (proc / "status").read_text()
    assert device.open_fds() < 25


def test_the_device_says_who_the_guest_is(plain_guest: Guest) -> None:
    from pyrune.local.vhost_user.message import CONFIG, Request

    answer = plain_guest.front_end.ask(Request.GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8))
    assert answer == CONFIG.pack(0, 8, 0) + GUEST_CID.to_bytes(8, "little")
