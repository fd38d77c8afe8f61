"""The compiled guest: its bytes are measured, so they must be the same wherever it is built."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyrune.eif.format import Architecture
from pyrune.guest.build import (
    EXPECTED,
    SOURCES,
    BuildError,
    build_init,
    check_init,
    compile_static,
    compiler_is_installed,
    expected_digests,
)
from tests.needs import missing

# The first build on a machine compiles the C library, twice.
pytestmark = pytest.mark.timeout(300)

# e_machine of an ELF header: the constants EM_X86_64 and EM_AARCH64 of elf.h.
ELF_MACHINE = {Architecture.X86_64: 62, Architecture.AARCH64: 183}


@pytest.fixture
def compiler() -> None:
    if not compiler_is_installed():
        missing("guest", "the Python package ziglang is not installed")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", Architecture)
def test_the_sources_compile_to_the_bytes_that_the_tree_names(architecture: Architecture, tmp_path: Path) -> None:
    check_init(build_init(architecture, tmp_path / "some" / "where"), architecture)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", Architecture)
def test_the_place_of_the_sources_does_not_enter_the_program(architecture: Architecture, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place" / "with a longer name"
    elsewhere.mkdir(parents=True)
    for source in SOURCES.iterdir():
        (elsewhere / source.name).write_bytes(source.read_bytes())
    output = tmp_path / "init"
    compile_static(sorted(elsewhere.glob("*.c")), architecture, output)
    check_init(output, architecture)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", Architecture)
def test_the_program_is_static_for_its_architecture_and_names_no_path_of_this_machine(
    architecture: Architecture, tmp_path: Path
) -> None:
    program = build_init(architecture, tmp_path).read_bytes()
    assert program[:4] == b"\x7fELF"
    assert int.from_bytes(program[18:20], "little") == ELF_MACHINE[architecture]
    assert b"ld-musl" not in program
    assert str(SOURCES).encode() not in program
    assert str(tmp_path).encode() not in program


@pytest.mark.usefixtures("compiler")
def test_it_refuses_to_run_anywhere_but_as_the_first_process(tmp_path: Path) -> None:
    program = build_init(Architecture(platform.machine()), tmp_path)
    done = subprocess.run([program], capture_output=True, timeout=10, check=False)
    assert done.returncode == 2
    assert b"first process of an enclave" in done.stderr


@pytest.mark.usefixtures("compiler")
def test_what_the_compiler_says_is_in_the_error(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing_of_this_name; }\n")
    with pytest.raises(BuildError, match="nothing_of_this_name"):
        compile_static([source], Architecture.X86_64, tmp_path / "out")


def test_other_bytes_than_expected_are_refused_with_both_digests(tmp_path: Path) -> None:
    wrong = tmp_path / "init-x86_64"
    wrong.write_bytes(b"not it")
    with pytest.raises(BuildError) as caught:
        check_init(wrong, Architecture.X86_64)
    assert expected_digests()[Architecture.X86_64] in str(caught.value)


def test_the_tree_names_one_digest_for_each_architecture() -> None:
    assert set(expected_digests()) == set(Architecture)
    assert re.fullmatch(r"([0-9a-f]{64}  init-\w+\n){2}", EXPECTED.read_text())


def test_a_missing_compiler_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    # A Python without site packages has no ziglang.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from pyrune.guest.build import *\n"
        "try: compile_static([Path('x.c')], Architecture.X86_64, Path(sys.argv[2]))\n"
        "except BuildError as exc: print(exc)\n"
    )
    checkout = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, checkout, str(tmp_path / "out")],
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert b"pyrune[guest]" in done.stdout
