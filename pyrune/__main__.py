"""The entry point of the `pyrune` command and of `python -m pyrune`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on sys.argv; does not return."""
    from pyrune import cli

    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
