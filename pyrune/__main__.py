"""The entry point of the `pyrune` command and of `python -m pyrune`."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Run the command line on sys.argv; does not return."""
    _fill_standard_descriptors()
    from pyrune import cli

    status = cli.main(sys.argv[1:])
    # What is left is to take apart a great many modules, for nobody: it costs as much time as a small call.
    for stream in (sys.stdout, sys.stderr):
        # One that was closed when this process began is None.
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.flush()
    os._exit(status)


def _fill_standard_descriptors() -> None:
    """Put /dev/null where one of 0 to 2 is closed, as Go's runtime does: the next file would take its place."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


if __name__ == "__main__":
    main()
