"""The shapes of log records, which callers parse."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from pyrune import log
from pyrune.cli import main
from tests.support import programs

TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
logger = logging.getLogger("pyrune.some.module")


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    close_own_handlers()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = True


def close_own_handlers() -> None:
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
        # pytest's own handlers are of other types.
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            stream = getattr(handler, "stream", None)
            if isinstance(stream, io.TextIOBase) and stream is not sys.stderr:
                with contextlib.suppress(OSError):
                    stream.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_time_is_as_go_prints_it() -> None:
    moment = datetime(2024, 2, 3, 4, 5, 6, 789_000, UTC)
    assert log.rfc3339(moment) == "2024-02-03T04:05:06Z"
    assert log.rfc3339(moment, "microseconds") == "2024-02-03T04:05:06.789000Z"
    assert log.rfc3339(moment.astimezone(timezone(timedelta(hours=2)))) == "2024-02-03T04:05:06Z"


def test_a_text_record_is_one_line_with_the_keys_of_runc(file: Path) -> None:
    log.configure(str(file), log.TEXT, debug=False)
    logger.error('a "quoted" back\\slash\nand a %s', "line")
    assert re.fullmatch(
        rf'time="{TIME}" level=error msg="a \\"quoted\\" back\\\\slash\\nand a line"\n', file.read_text()
    )


def test_control_characters_do_not_get_into_a_text_record(file: Path) -> None:
    log.configure(str(file), log.TEXT, debug=False)
    logger.error("\x1b[2J\r\x07\x85\u2028 \udcff é €")
    assert file.read_text().rstrip("\n").endswith(r'msg="\x1b[2J\r\x07\x85\u2028 \udcff é €"')


def test_a_json_record_has_level_msg_and_time(file: Path) -> None:
    log.configure(str(file), log.JSON, debug=False)
    logger.error('a "quoted"\nand %s\x1b\udcff', "é", extra={"container": "c1"})
    (line,) = file.read_bytes().splitlines()
    record = json.loads(line)
    assert re.fullmatch(TIME, record.pop("time"))
    assert record == {"level": "error", "msg": 'a "quoted"\nand é\x1b\udcff', "container": "c1"}


def test_levels_have_runcs_names(file: Path) -> None:
    log.configure(str(file), log.JSON, debug=True)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "x")
    levels = [json.loads(line)["level"] for line in file.read_text().splitlines()]
    assert levels == ["debug", "info", "warning", "error", "fatal"]


def test_without_debug_only_errors_are_logged(file: Path) -> None:
    log.configure(str(file), log.TEXT, debug=False)
    logger.warning("x")
    assert file.read_text() == ""


def test_records_are_appended_to_what_is_there(file: Path) -> None:
    file.write_text("before\n")
    log.configure(str(file), log.TEXT, debug=False)
    logger.error("x")
    assert file.read_text().startswith("before\ntime=")


@pytest.mark.parametrize("log_format", [log.TEXT, log.JSON])
def test_a_traceback_is_in_its_record(log_format: str, file: Path) -> None:
    log.configure(str(file), log_format, debug=True)
    try:
        raise ZeroDivisionError("here\x1b")
    except ZeroDivisionError:
        logger.exception("it failed")
    (line,) = file.read_text().splitlines()
    assert "it failed" in line
    assert "ZeroDivisionError: here\\" in line
    assert "test_log.py" in line
    assert "\x1b" not in line


def test_configuring_again_replaces_the_log(file: Path) -> None:
    log.configure(str(file), log.TEXT, debug=False)
    first = logging.getLogger().handlers[0]
    log.configure(str(file) + "2", log.TEXT, debug=False)
    first.close()
    logger.error("x")
    assert file.read_text() == ""


def test_a_log_that_cannot_be_written_disturbs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("/dev/full", log.TEXT, debug=False)
    logger.error("x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        *(("trace", "diwe"), ("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")),
        *(("fatal", ""), ("panic", ""), ("off", "")),
    ],
)
def test_a_monitor_logs_from_the_level_of_its_annotation(name: str, levels: str) -> None:
    fd = os.memfd_create("log")
    log.configure_monitor(fd, name)
    for word, level in (("d", logging.DEBUG), ("i", logging.INFO), ("w", logging.WARNING), ("e", logging.ERROR)):
        logger.log(level, word)
    assert re.findall(r'msg="(.)"', os.pread(fd, 9999, 0).decode()) == list(levels)
    os.close(fd)


def test_a_monitors_log_takes_any_text() -> None:
    fd = os.memfd_create("log")
    log.configure_monitor(fd, "info")
    logger.info("\udcff\x1b")
    assert os.pread(fd, 9999, 0).decode().endswith('msg="\\udcff\\x1b"\n')
    os.close(fd)


# One failed call


def test_a_failed_call_is_one_line_on_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRUNE_RUNC", "")
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["--root", str(tmp_path), "state", "nothing"]) == 1
    assert re.fullmatch(rf'time="{TIME}" level=error msg="container does not exist"\n', errors.getvalue())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_failed_call_is_one_record_and_bare_on_standard_error(log_format: str, tmp_path: Path, file: Path) -> None:
    code = "import sys; from pyrune.cli import main; sys.exit(main(sys.argv[1:]))"
    code = f"import os, sys; os.environ['PYRUNE_RUNC'] = ''; os.dup2(1, 2); {code}"
    arguments = ["--root", str(tmp_path), "--log", str(file), "--log-format", log_format, "state", "nothing"]
    with programs.running(code, *arguments) as process:
        output, _ = process.communicate(timeout=programs.TIMEOUT_S)
    assert (process.returncode, output) == (1, "container does not exist\n")
    (line,) = file.read_text().splitlines()
    if log_format == "json":
        record = json.loads(line)
        assert (record["level"], record["msg"], list(record)) == (
            "error",
            "container does not exist",
            ["level", "msg", "time"],
        )
    else:
        assert re.fullmatch(rf'time="{TIME}" level=error msg="container does not exist"', line)
