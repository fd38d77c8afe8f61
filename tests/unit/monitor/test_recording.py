"""The recording of a console: bounded, and no trouble to anybody when there is no room for it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrune.monitor.recording import HALF_BYTES, RECORDING_NAME, ConsoleRecording
from tests.support.programs import TIMEOUT_S, open_descriptors, running


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[ConsoleRecording]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    made = ConsoleRecording(fd)
    yield made
    made.close()
    made.close()
    os.close(fd)


def recorded(directory: Path) -> bytes:
    """Both halves, the older first."""
    files = [directory / f"{RECORDING_NAME}.1", directory / RECORDING_NAME]
    return b"".join(file.read_bytes() for file in files if file.exists())


def test_what_is_printed_is_recorded_for_its_owner_alone(recording: ConsoleRecording, tmp_path: Path) -> None:
    recording.append(b"first\r\n")
    recording.append(b"\x00\xff second")
    assert recorded(tmp_path) == b"first\r\n\x00\xff second"
    assert stat.S_IMODE((tmp_path / RECORDING_NAME).stat().st_mode) == 0o600


def test_the_end_of_much_output_is_kept_in_two_bounded_files(recording: ConsoleRecording, tmp_path: Path) -> None:
    lines = [b"%07d\n" % number for number in range(300_000)]
    printed = b"".join(lines)
    for start in range(0, len(printed), 65536):
        recording.append(printed[start : start + 65536])
    kept = recorded(tmp_path)
    assert HALF_BYTES <= len(kept) <= 2 * HALF_BYTES
    assert printed.endswith(kept)
    assert sorted(os.listdir(tmp_path)) == [RECORDING_NAME, f"{RECORDING_NAME}.1"]


def test_one_piece_larger_than_a_file_is_cut(recording: ConsoleRecording, tmp_path: Path) -> None:
    recording.append(b"a" * 10)
    recording.append(b"b" * HALF_BYTES + b"c" * HALF_BYTES)
    assert (tmp_path / RECORDING_NAME).read_bytes() == b"c" * HALF_BYTES


def test_a_directory_that_is_gone_ends_the_recording_at_its_bound(recording: ConsoleRecording, tmp_path: Path) -> None:
    recording.append(b"x")
    (tmp_path / RECORDING_NAME).unlink()
    before = open_descriptors()
    (fd,) = [fd for fd, name in before.items() if name == f"{tmp_path}/{RECORDING_NAME} (deleted)"]
    for _ in range(10):
        recording.append(b"y" * (HALF_BYTES // 2))
    assert os.fstat(fd).st_size <= HALF_BYTES
    assert open_descriptors() == before


def test_when_no_file_can_be_made_no_other_descriptor_gets_the_bytes(
    recording: ConsoleRecording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_named: object) -> int:
        raise OSError(28, "the disk is full")

    recording.append(b"x" * HALF_BYTES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        recording.append(b"y")
    strangers = [os.memfd_create("stranger") for _ in range(3)]
    recording.append(b"z")
    assert [os.fstat(fd).st_size for fd in strangers] == [0, 0, 0]
    recording.close()
    for fd in strangers:
        os.close(fd)


def test_a_recording_that_cannot_begin_is_none(tmp_path: Path) -> None:
    (tmp_path / RECORDING_NAME).mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    recording = ConsoleRecording(fd)
    recording.append(b"the end")
    assert recording.tail() == "the end"
    recording.close()
    os.close(fd)


def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    code = """
import os, resource, signal, sys
from pyrune.monitor.recording import ConsoleRecording
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
recording = ConsoleRecording(os.open(sys.argv[1], os.O_RDONLY))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for _ in range(20):
    recording.append(b"x" * 100_000)
recording.append(b"the end\\n")
print(recording.tail()[-7:])
"""
    with running(code, str(tmp_path)) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (0, "the end\n")


def test_the_tail_is_the_last_lines_escaped(recording: ConsoleRecording) -> None:
    assert recording.tail() == ""
    for number in range(10):
        recording.append(b"line %d\r\n" % number)
    recording.append(b"\x1b[31mred\x07 \xff | \xe2\x82\xac\n\n  \n")
    assert recording.tail().endswith("line 9 | \\x1b[31mred\\x07 \ufffd | €")


@given(st.lists(st.binary(max_size=700)))
def test_the_tail_is_short_printable_and_one_line(chunks: list[bytes]) -> None:
    with TemporaryDirectory() as name:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        recording = ConsoleRecording(fd)
        for chunk in chunks:
            recording.append(chunk)
        recording.close()
        os.close(fd)
    assert recording.tail().isprintable()
    # A byte becomes four characters at most, a line's end three.
    assert len(recording.tail()) <= 4 * 400
