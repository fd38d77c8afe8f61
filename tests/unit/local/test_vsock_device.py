"""The program's arguments and limits; tests/unit/local/virtio_vsock runs it."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyrune.errors import BackendError
from pyrune.local.vsock_device import Arguments, allow_connections, parse_arguments

GOOD = ["--vhost-fd", "3", "--dir-fd", "4", "--guest-cid", "16", "--parent-pid", "0"]


def test_all_four_numbers_are_needed_in_any_order() -> None:
    assert parse_arguments(GOOD) == Arguments(3, 4, 16, 0)
    assert parse_arguments([*GOOD[4:], *GOOD[:4]]) == Arguments(3, 4, 16, 0)


@pytest.mark.parametrize(
    "argv", [[], GOOD[:6], GOOD[:7], [*GOOD, "x"], [*GOOD, *GOOD], [*GOOD[:7], "-1"], [*GOOD[:7], ""], ["x"] * 8]
)
def test_anything_else_is_refused_in_one_line(argv: list[str]) -> None:
    with pytest.raises(
        BackendError, match=r"^the vsock device takes --vhost-fd N --dir-fd N --guest-cid N --parent-pid N$"
    ):
        parse_arguments(argv)


def run(*argv: str, pass_fds: tuple[int, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "pyrune.local.vsock_device", *argv],
        pass_fds=pass_fds,
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def test_wrong_arguments_are_said_in_one_line() -> None:
    status, said = run("--help")
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith("pyrune-vsock: the vsock device takes ")


def test_a_descriptor_that_is_no_socket_is_said_in_one_line(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    numbers = ("--dir-fd", str(directory), "--guest-cid", "3", "--parent-pid", "0")
    assert run("--vhost-fd", "99", *numbers, pass_fds=(directory,)) == (
        1,
        "pyrune-vsock: descriptor 99 is no socket to QEMU\n",
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        fd = theirs.fileno()
        assert run("--vhost-fd", str(fd), *numbers, pass_fds=(directory, fd)) == (
            1,
            f"pyrune-vsock: descriptor {fd} is not a unix stream socket\n",
        )
    os.close(directory)


def test_qemu_that_breaks_the_protocol_is_said_in_one_line_and_the_socket_removed(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"GET / HTTP/1.1\r\n")
        fd = theirs.fileno()
        status, said = run(
            *("--vhost-fd", str(fd), "--dir-fd", str(directory), "--guest-cid", "3", "--parent-pid", "0"),
            pass_fds=(directory, fd),
        )
    os.close(directory)
    assert status == 1
    assert said == "pyrune-vsock: vhost-user: request 542393671 has flags 0x5448202f, which is not version 1\n"
    assert os.listdir(tmp_path) == []


def test_a_device_whose_parent_is_not_the_one_expected_does_not_live(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        status, _ = run(
            *("--vhost-fd", str(fd), "--dir-fd", str(directory), "--guest-cid", "3", "--parent-pid", "1"),
            pass_fds=(directory, fd),
        )
    os.close(directory)
    assert status == -9


def test_the_number_of_streams_follows_the_limit_on_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1]
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 300))
        os._exit(0 if allow_connections() == 236 and resource.getrlimit(resource.RLIMIT_NOFILE) == (300, 300) else 1)
    assert os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        os._exit(0 if hard < 1088 or allow_connections() == 1024 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_starting_imports_nothing_that_costs() -> None:
    code = "import sys, pyrune.local.vsock_device; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    costly = {"logging", "click", "json", "argparse", "asyncio", "subprocess", "jsonschema", "urllib.request"}
    assert costly.isdisjoint(modules.split())
