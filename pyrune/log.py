"""Where log records go, and in which words.

The command line logs as runc does: to standard error in the text format, or to the file of --log in text or JSON, where
an error then appears on standard error as well, bare. JSON records carry level (lower case), msg and time (RFC 3339);
callers read the last one with level `error` as the reason of a failed call. A monitor logs to its own file.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime

from pyrune.errors import printable

TEXT, JSON = "text", "json"
# Names of files may hold bytes that are no UTF-8.
_ERRORS = "backslashreplace"


def rfc3339(moment: datetime, timespec: str = "seconds") -> str:
    """A time in UTC as Go prints it."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def _level_name(record: logging.LogRecord) -> str:
    return {"WARNING": "warning", "CRITICAL": "fatal"}.get(record.levelname, record.levelname.lower())


class TextFormatter(logging.Formatter):
    """`time="..." level=error msg="..."`: the keys that runc's logger writes, one line per record."""

    def format(self, record: logging.LogRecord) -> str:
        time = rfc3339(datetime.fromtimestamp(record.created, UTC))
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        # Most texts of others are escaped before; here is the last place where a line break could forge a record.
        quoted = printable(message.replace("\\", "\\\\").replace('"', '\\"'))
        return f'time="{time}" level={_level_name(record)} msg="{quoted}"'


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    class _Formatter(JsonFormatter):
        def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
            return {"level": log_data.pop("level"), "msg": log_data.pop("message"), **log_data}

        def add_fields(
            self, log_data: dict[str, object], record: logging.LogRecord, message_dict: dict[str, object]
        ) -> None:
            super().add_fields(log_data, record, message_dict)
            log_data["level"] = _level_name(record)
            log_data["time"] = rfc3339(datetime.fromtimestamp(record.created, UTC))

    return _Formatter("%(message)s")


def configure(path: str | None, log_format: str, debug: bool) -> None:
    """Set up the command line's log. Raises OSError when the file does not open.

    Without --debug only errors are logged: Podman reads the whole file of a failed call as one record.
    """
    handler = logging.FileHandler(path, encoding="utf-8", errors=_ERRORS) if path else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == JSON else TextFormatter())
    _install(handler, logging.DEBUG if debug else logging.ERROR)


def configure_monitor(fd: int, level_name: str) -> None:
    """Set up a monitor's log on a descriptor that it keeps."""
    handler = logging.StreamHandler(os.fdopen(os.dup(fd), "w", encoding="utf-8", errors=_ERRORS, buffering=1))
    handler.setFormatter(TextFormatter())
    levels = {"trace": logging.DEBUG, "debug": logging.DEBUG, "warning": logging.WARNING, "error": logging.ERROR}
    levels |= {"fatal": logging.CRITICAL, "panic": logging.CRITICAL, "off": logging.CRITICAL + 1}
    _install(handler, levels.get(level_name, logging.INFO))


def _install(handler: logging.Handler, level: int) -> None:
    # A log that cannot be written is no reason to fill standard error, which callers read, with tracebacks.
    logging.raiseExceptions = False
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
