"""Compiles the first process of an enclave, the same bytes on every machine: they are measured.

    python -m pyrune.guest.build                     both architectures, into pyrune/guest/bin, checked
    python -m pyrune.guest.build --compile OUT SRC   one static program of your own, as the examples do

One compiler for both architectures, pinned by version: zig's, from the Python package `ziglang` (the extra `guest`).
It brings its own C library (musl) and kernel headers, so nothing of the building machine enters the output; sources
are named relative to their directory, and nothing is kept for debuggers. init.sha256 holds what must come out.

The first build on a machine takes most of a minute, since the C library is compiled too; it then stays in zig's cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from pyrune.eif.format import Architecture as Architecture
from pyrune.errors import PyruneError
from pyrune.process import output_of

HERE = Path(__file__).parent
SOURCES = HERE / "init"
OUTPUT = HERE / "bin"
EXPECTED = HERE / "init.sha256"

# Six minutes for both architectures were seen on a machine that had much else to do.
TIMEOUT_S = 1800
FLAGS = (
    *("-static", "-Os", "-s", "-std=c11", "-D_GNU_SOURCE"),
    *("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wvla", "-Wmissing-prototypes", "-Werror"),
)


class BuildError(PyruneError):
    """A program that cannot be compiled, or that came out as other bytes than it must."""


def compiler_is_installed() -> bool:
    """Whether this Python has the pinned compiler."""
    return find_spec("ziglang") is not None


def _cache_directory() -> Path:
    """Where zig keeps compiled pieces of its C library: about 30 MB."""
    if os.geteuid() == 0:
        return Path("/var/cache/pyrune/zig")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrune" / "zig"


def compile_static(
    sources: Sequence[Path], architecture: Architecture, output: Path, *, cache: Path | None = None
) -> None:
    """Compile C sources of one directory to one static program. Raises BuildError with what the compiler said."""
    if not compiler_is_installed():
        raise BuildError("the compiler for enclave programs is not installed; run: pip install 'pyrune[guest]'")
    cache = cache or _cache_directory()
    output.parent.mkdir(parents=True, exist_ok=True)
    command = (
        # zig names what it compiles in its messages and caches; relative names are the same everywhere.
        *("/usr/bin/env", "-C", str(sources[0].parent.resolve())),
        *(f"ZIG_GLOBAL_CACHE_DIR={cache}", f"ZIG_LOCAL_CACHE_DIR={cache}"),
        *(sys.executable, "-I", "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", *FLAGS),
        *("-o", str(output.resolve()), *sorted(source.name for source in sources)),
    )
    try:
        status, said = output_of(command, timeout_s=TIMEOUT_S)
    except (OSError, TimeoutError) as exc:
        raise BuildError(f"cannot compile {output.name}: {exc}") from exc
    if status:
        raise BuildError(f"cannot compile {output.name}:\n{said.decode(errors='replace').rstrip()}")


def expected_digests() -> Mapping[Architecture, str]:
    """The SHA-256 of the first process for each architecture, from init.sha256 (in sha256sum's format)."""
    lines = EXPECTED.read_text().splitlines()
    return {Architecture(name.removeprefix("init-")): digest for digest, name in map(str.split, lines)}


def build_init(architecture: Architecture, directory: Path = OUTPUT, *, cache: Path | None = None) -> Path:
    """Compile the first process into `directory`, as init-<architecture>. Returns its path."""
    output = directory / f"init-{architecture}"
    compile_static(sorted(SOURCES.glob("*.c")), architecture, output, cache=cache)
    return output


def check_init(path: Path, architecture: Architecture) -> None:
    """Raise BuildError unless the program is, byte for byte, what init.sha256 says."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = expected_digests().get(architecture)
    if digest != expected:
        raise BuildError(
            f"{path} has the SHA-256 {digest}, and {EXPECTED.name} says {expected}; "
            "where its sources changed on purpose, write the new one there (sha256sum init-*)"
        )


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m pyrune.guest.build", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", type=Architecture, choices=tuple(Architecture), action="append")
    parser.add_argument("--directory", type=Path, default=OUTPUT, help="where the init-<arch> go (%(default)s)")
    parser.add_argument("--compile", nargs="+", type=Path, metavar="FILE", help="an output, and the sources for it")
    options = parser.parse_args()
    architectures = options.arch or tuple(Architecture)
    try:
        for architecture in architectures:
            if options.compile:
                compile_static(options.compile[1:], architecture, options.compile[0])
            else:
                check_init(build_init(architecture, options.directory), architecture)
    except BuildError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
