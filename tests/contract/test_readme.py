"""README.md and docs/ say what is true: their commands are run, and their tables are compared with the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from pyrune import backends, runc
from pyrune.annotations import ARGUMENTS, KEYS, enclave_request
from pyrune.backend import BackendName, boot_deadline_s
from pyrune.cli import ONLY_RUNCS, cli
from pyrune.eif.format import Architecture
from pyrune.local.machine import MAX_VCPUS, program_name
from pyrune.monitor.recording import HALF_BYTES
from tests.needs import missing
from tests.support.command import COMMAND, Pyrune
from tests.support.image_archives import File, docker_archive, tar
from tests.support.images import Images, kernel_directory
from tests.unit.test_layers import LAYERS

pytestmark = pytest.mark.timeout(240)

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()
ARCHITECTURE = (CHECKOUT / "docs" / "architecture.md").read_text()
SECURITY = (CHECKOUT / "docs" / "security.md").read_text()
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where a command is run that this file does not run: a file, and words in it that do so."""

    file: str
    words: str


# Commands that install something or take minutes.
RUN_ELSEWHERE = {
    "scripts/hello": Elsewhere("tests/contract/test_readme.py", "def test_scripts_hello_runs_an_enclave_from_a_clean_"),
    "scripts/test": Elsewhere(".ci/run", "timeout --kill-after=60 80m scripts/test"),
    "sudo scripts/install": Elsewhere(
        "tests/contract/test_install.py", "def test_an_enclave_runs_from_it_with_next_to"
    ),
}
# The other code blocks, each by a name and words that it alone contains; the tests below run them.
RUN_HERE = {
    "bundle": "pyrune spec --enclave",
    "run": "run --bundle bundle hello-nitro-enclave-container",
    "steps": "pyrune start mine",
    "images": "pyrune eif describe",
    "content": "pyrune eif build --rootfs",
    "signing": "pyrune eif sign",
    "machine": "pyrune --backend local check",
    "failure": "run --keep",
}
OPTIONS_ELSEWHERE = {
    "--remove": "scripts/install",
    "--prefix": "scripts/install",
    "--nitro-emulated": "scripts/hello",
}
# Not for users: what scripts/test tells the tests, and a name in C.
INTERNAL_VARIABLES = {"PYRUNE_TEST_CHECKS", "PYRUNE_INIT_H"}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _block(name: str) -> str:
    (block,) = [block for block in _blocks("sh") if RUN_HERE[name] in block]
    return block


def _rows(document: str, header: str) -> list[list[str]]:
    """The cells of the table below a line, without code marks."""
    assert document.count(f"\n{header}\n") == 1, header
    lines = document.split(f"\n{header}\n")[1].splitlines()[1:]
    table = lines[: next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def _words(text: str) -> str:
    """One line, however the paragraphs are broken."""
    return " ".join(text.split())


# Commands


def test_every_code_block_is_run_here_or_elsewhere() -> None:
    assert set(re.findall(r"^```(\w+)$", README, re.MULTILINE)) == {"sh", "json"}
    for block in _blocks("sh"):
        here = [name for name, words in RUN_HERE.items() if words in block]
        elsewhere = [line for line in block.splitlines() if line in RUN_ELSEWHERE]
        assert len(here) == 1 or elsewhere == block.splitlines(), block


@pytest.mark.parametrize("command", RUN_ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str) -> None:
    place = RUN_ELSEWHERE[command]
    assert place.words in (CHECKOUT / place.file).read_text()
    assert f"\n{command}\n" in README


class Reader:
    """Types what the README says into a shell, in a directory of its own, with an image and a root of the test's."""

    def __init__(self, pyrune: Pyrune) -> None:
        self._pyrune = pyrune
        self.directory = pyrune.directory / "reader"
        programs = pyrune.directory / "programs"
        for directory in (self.directory, programs):
            directory.mkdir()
        self._path = f"{programs}:{os.environ['PATH']}"
        for name, line in {"sudo": '"$@"', "pyrune": f'{COMMAND} --root {pyrune.root} "$@"'}.items():
            (programs / name).write_text(f"#!/bin/sh\nexec {line}\n")
            (programs / name).chmod(0o755)

    def types(self, *blocks: str, image: Path | None = None) -> str:
        """What the commands of these blocks print on standard output; all must succeed."""
        script = "".join(blocks).replace("/run/pyrune", str(self._pyrune.root))
        if image is not None:
            script = script.replace("/srv/hello.eif", str(image))
        # Files, not pipes: a container that is created keeps its standard output open.
        output, errors = self.directory / ".output", self.directory / ".errors"
        with output.open("wb") as out, errors.open("wb") as err:
            done = subprocess.run(
                ["bash", "-euc", script],
                cwd=self.directory,
                env={"PATH": self._path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=180,
                check=False,
            )
        assert done.returncode == 0, f"{script}\n{errors.read_text()}"
        return output.read_text()


@pytest.fixture
def reader(pyrune: Pyrune) -> Reader:
    return Reader(pyrune)


@pytest.fixture
def printing_image(images: Images) -> Path:
    if not shutil.which(program_name(Architecture.X86_64)):
        missing("qemu", "qemu-system-x86_64 is not installed")
    return images.application("print", "1")


def test_a_new_bundle_holds_the_annotations_that_are_shown(reader: Reader) -> None:
    reader.types(_block("bundle"))
    annotations = json.loads((reader.directory / "bundle" / "config.json").read_text())["annotations"]
    (shown,) = map(json.loads, _blocks("json"))
    assert shown == annotations
    request = enclave_request(shown, ())
    assert request is not None
    assert (request.image, request.memory_mib, request.vcpus) == ("/srv/hello.eif", 512, 1)


def test_the_bundle_runs(reader: Reader, printing_image: Path) -> None:
    assert reader.types(_block("bundle"), _block("run"), image=printing_image) == "line 1\n"


def test_the_bundle_lives_step_by_step(reader: Reader, sleeping_image: Path) -> None:
    output = reader.types(_block("bundle"), _block("steps"), image=sleeping_image)
    assert '"status": "running"' in output
    assert '"enclave.state.pcr0": ' in output
    assert "pyrune.monitor" in output


def test_a_machine_is_looked_over(reader: Reader, printing_image: Path) -> None:
    assert "the back end local can run enclaves here" in reader.types(_block("machine"))


def test_what_a_failure_leaves_is_where_it_is_said(reader: Reader, printing_image: Path) -> None:
    output = reader.types(_block("bundle"), _block("failure"), image=printing_image)
    assert "ended with status 0" in output
    assert output.count("line 1\n") == 2, "once from run, once from console.log"


@pytest.fixture
def building(reader: Reader) -> str:
    """The command that builds an image; what it needs is there."""
    for ramdisk in ("bootstrap", "application"):
        (reader.directory / ramdisk).mkdir()
    (reader.directory / "vmlinuz").write_bytes(bytes(4096))
    _, build = _block("images").split("pyrune eif build")
    return "pyrune eif build" + build


def test_images_are_described_measured_and_built(reader: Reader, building: str) -> None:
    reader.types(building.replace("new.eif", "hello.eif"))
    assert '"PCR0"' in reader.types(_block("images").removesuffix(building))
    reader.types(building)
    assert (reader.directory / "new.eif").is_file()


def test_images_are_signed_verified_and_compared(reader: Reader, building: str) -> None:
    if not shutil.which("openssl"):
        missing("openssl", "the program is not installed")
    # Compared with itself, as a difference has a status of its own.
    output = reader.types(building, _block("signing").replace("diff hello.eif", "diff new.eif"))
    assert "\nok      signature: " in output
    assert output.endswith("\nthe measurements are the same\n")


def test_images_are_built_from_container_content(reader: Reader) -> None:
    kernel_directory(Architecture(os.uname().machine))
    (reader.directory / "bundle" / "rootfs").mkdir(parents=True)
    docker_archive(reader.directory / "image.tar", [tar(File("hello", b"#!/bin/sh"))], Entrypoint=["/hello"])
    assert reader.types(_block("content")).count('"PCR2"') == 2
    for name in ("app.eif", "image.eif"):
        assert reader.types(f"pyrune eif verify {name}")


@pytest.fixture
def clean_checkout() -> Iterator[Path]:
    """What is in the repository, and nothing that was built or installed into it."""
    made = shutil.ignore_patterns(".git", ".venv", "build", "dist", "bin", "__pycache__", ".*_cache", "*.egg-info")
    with tempfile.TemporaryDirectory() as directory:
        yield Path(shutil.copytree(CHECKOUT, Path(directory) / "pyrune", ignore=made))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_scripts_hello_runs_an_enclave_from_a_clean_checkout(clean_checkout: Path) -> None:
    # What the script would install into the machine must be there already: a test does not do that.
    machine = Architecture(os.uname().machine)
    kernel_directory(machine)
    if not shutil.which(program_name(machine)):
        missing("qemu", f"{program_name(machine)} is not installed")
    done = subprocess.run(
        [clean_checkout / "scripts" / "hello"], capture_output=True, text=True, timeout=540, check=False
    )
    if "fetching and installing failed" in done.stderr:
        missing("network", "pip cannot fetch what pyrune needs")
    assert (done.returncode, done.stdout) == (0, "Hello from the enclave side!\n"), done.stderr
    assert "PCR0" in done.stderr


def _options(command: click.Command) -> Iterator[str]:
    context = click.Context(command)
    for parameter in command.get_params(context):
        yield from parameter.opts
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            verb = command.get_command(context, name)
            assert verb is not None
            yield from _options(verb)


@pytest.mark.parametrize("document", [README, ARCHITECTURE, SECURITY], ids=["README", "architecture", "security"])
def test_every_option_exists(document: str) -> None:
    known = set(_options(cli))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", document)) - known:
        assert f"{option})" in (CHECKOUT / OPTIONS_ELSEWHERE[option]).read_text(), option


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", README)) <= targets


# Tables


def test_the_table_of_annotations_is_the_codes() -> None:
    rows = _rows(README, "| annotation | variable | meaning | default |")
    assert rows == [[key.annotation, key.variable or "", key.meaning, key.default] for key in KEYS]


def test_the_table_of_arguments_is_the_codes() -> None:
    rows = _rows(README, "| argument | meaning | default |")
    assert rows == [[argument.name, argument.meaning, argument.default] for argument in ARGUMENTS]


def test_the_table_of_variables_has_all_that_are_read() -> None:
    named = {name for name, _ in _rows(README, "| environment variable | meaning |")}
    assert {backends.ENVIRONMENT_VARIABLE, runc.ENVIRONMENT_VARIABLE} <= named
    files = [path for top in ("pyrune", "scripts", ".ci") for path in (CHECKOUT / top).rglob("*")]
    files += [CHECKOUT / "tests" / name for name in ("conftest.py", "needs.py")]
    texts = [path.read_bytes() for path in files if path.is_file() and "__pycache__" not in path.parts]
    read = {name.decode() for text in texts for name in re.findall(rb"\bPYRUNE_[A-Z_]+\b", text)}
    assert read - INTERNAL_VARIABLES == named


def test_the_verbs_that_work_are_those_there_are() -> None:
    (works,) = [row[0] for row in _rows(README, "| | |") if "`state`" in row[0]]
    assert set(re.findall(r"\w+", works)) == set(cli.commands)
    (lacks,) = [row[0] for row in _rows(README, "| | |") if "`pause`" in row[0]]
    assert set(re.findall(r"`(\w+)`", f"`{lacks}")) <= ONLY_RUNCS


def test_the_back_ends_that_are_named_are_there() -> None:
    for name in BackendName:
        assert f"`--backend {name}`" in README
        backends.load_backend(name)


def test_numbers_in_sentences_are_the_codes() -> None:
    text = _words(README)
    assert f"is {boot_deadline_s(1, 1):.0f} seconds for images up to 6 GiB with up to 100 GiB of memory" in text
    assert boot_deadline_s(6 << 30, 100 << 10) == boot_deadline_s(1, 1) < boot_deadline_s((6 << 30) + 1, 1)
    assert f"has {MAX_VCPUS} vCPUs at most" in text
    assert f"{2 * HALF_BYTES >> 20} MiB at most together with the older `console.log.1`" in text


def test_architecture_shows_the_table_of_layers() -> None:
    rows = _rows(ARCHITECTURE, "| layer | may import |")
    assert rows == [[layer, ", ".join(sorted(below))] for layer, below in LAYERS.items()]


# Links


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)|^\[[^]]+\]: (\S+)$", text, re.MULTILINE):
        path, _, anchor = (target[0] or target[1]).partition("#")
        if path.startswith("https:"):
            continue
        linked = document.parent / path if path else document
        assert linked.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
