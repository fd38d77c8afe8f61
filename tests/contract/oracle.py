"""runc and pyrune side by side: the same call on both, and what may be compared of what came out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from tests.contract.calls import Step
from tests.support.command import COMMAND

TIMEOUT_S = 60.0

# What of runc's words is never pyrune's, and why.
ELSEWHERE = (
    # The verb is known to who called; the reason is what is looked for in the text.
    (re.compile(r"^(?:runc )?(?:create|run|exec) failed: "), ""),
    # Each by its own name.
    (re.compile(r"\brunc: "), "pyrune: "),
    (re.compile(r"\brunc will\b"), "pyrune will"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call left. `log` is the file of --log, or None if none was asked for."""

    status: int
    stdout: str
    stderr: str
    log: str | None = None

    @property
    def records(self) -> list[dict[str, str]]:
        """The lines of a JSON log."""
        return [json.loads(line) for line in (self.log or "").splitlines()]


@dataclass(slots=True)
class Program:
    """One of the two, with a root and a bundle of its own."""

    prefix: Sequence[str]
    directory: Path
    bundle: Path
    environment: Mapping[str, str]

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def __call__(self, words: Sequence[str], *, log_format: str | None = None) -> Outcome:
        """Call it. The outputs are new files, because what is created keeps its own open."""
        log = self.directory / "log"
        log.unlink(missing_ok=True)
        options = ["--root", str(self.root)]
        options += ["--log", str(log), "--log-format", log_format] if log_format else []
        with TemporaryFile(dir=self.directory) as out, TemporaryFile(dir=self.directory) as err:
            done = subprocess.run(
                [*self.prefix, *options, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                cwd=self.directory,
                timeout=TIMEOUT_S,
                check=False,
            )
            out.seek(0)
            err.seek(0)
            texts = [file.read().decode() for file in (out, err)]
        logged = log.read_text() if log_format and log.exists() else None
        return Outcome(done.returncode, texts[0], texts[1], logged)

    def fill_in(self, words: str) -> list[str]:
        """A table's words, split at spaces; '' is an empty word, ~ a space within one."""
        return [self.place(word).replace("~", " ") if word != "''" else "" for word in words.split(" ")]

    def place(self, text: str) -> str:
        """A table's text with the places of this program in it."""
        return text.replace("{bundle}", str(self.bundle)).replace("{dir}", str(self.directory))

    def status(self, container_id: str) -> str:
        return str(json.loads(self(["state", container_id]).stdout)["status"])

    def clean_up(self) -> None:
        for container in sorted(self.root.glob("*")):
            self(["delete", "--force", container.name])


def runc_program(directory: Path) -> Program:
    """runc with a bundle whose container sleeps for ever."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    bundle = directory / "bundle"
    (bundle / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(busybox, bundle / "rootfs" / "bin" / "busybox")
    # By this name, which it repeats in its texts.
    program = Program(["runc"], directory, bundle, {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})
    assert program(["spec", "--bundle", str(bundle)]).status == 0
    config = json.loads((bundle / "config.json").read_text())
    # As init of its container it takes no signal that it has no handler for, as an enclave takes none at all.
    config["process"] |= {"terminal": False, "args": ["/bin/busybox", "sleep", "1000"]}
    (bundle / "config.json").write_text(json.dumps(config))
    return program


def pyrune_program(directory: Path, image: Path) -> Program:
    """pyrune with a bundle of an enclave, and no other runtime to ask."""
    bundle = directory / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "PYRUNE_RUNC": ""}
    program = Program([str(COMMAND), "--backend", "local"], directory, bundle, environment)
    arguments = ["--image", str(image), "--memory", "256", "--vcpus", "1"]
    done = program(["spec", "--enclave", *arguments, "--bundle", str(bundle)])
    assert done.status == 0, done.stderr
    return program


def runcs_words(text: str) -> str:
    """What runc says, as pyrune would say it."""
    for pattern, replacement in ELSEWHERE:
        text = pattern.sub(replacement, text)
    return text


def shape(text: str, program: Program) -> str:
    """What standard output looks like, less what differs from container to container."""
    if text.startswith("Incorrect Usage"):
        # runc prints the usage to standard output, where pyrune prints nothing but answers.
        return ""
    # What a container says is not what the call says.
    text = text.removeprefix("ready\n")
    for place, name in ((program.bundle, "BUNDLE"), (program.directory, "DIR")):
        text = text.replace(str(place), name)
    try:
        return json.dumps(_without_own_keys(json.loads(text)))
    except ValueError:
        return re.sub(" +", " ", _without_numbers(text))


def _without_numbers(text: str) -> str:
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", text)
    return re.sub(r"\b[1-9]\d+\b", "N", text)


def _without_own_keys(value: object) -> object:
    """JSON less the values that differ, in its order; annotations are an enclave's, the version is each one's own."""
    if isinstance(value, dict):
        return {
            key: _without_own_keys(inner) for key, inner in value.items() if key not in ("annotations", "ociVersion")
        }
    if isinstance(value, list):
        return [_without_own_keys(inner) for inner in value]
    if isinstance(value, str):
        return _without_numbers(value)
    return "N" if isinstance(value, int) and value else value


def differences(step: Step, runc: Program, pyrune: Program, *, log_format: str | None = None) -> list[str]:
    """Carry out one step on both. Returns what is not as it should be, in words."""
    theirs = runc(runc.fill_in(step.words), log_format=log_format)
    ours = pyrune(pyrune.fill_in(step.words), log_format=log_format)
    wanted_status = theirs.status if step.status is None else step.status
    runcs_text = runcs_words(_said(theirs, log_format))
    said, wanted_text = _said(ours, log_format), runcs_text if step.text is None else pyrune.place(step.text)
    found = []
    if ours.status != wanted_status:
        found.append(f"status {ours.status}, runc {theirs.status}")
    if said != wanted_text:
        found.append(f"says {said!r}, runc {runcs_text!r}, wanted {wanted_text!r}")
    if step.output is None and shape(ours.stdout, pyrune) != shape(theirs.stdout, runc):
        found.append(f"prints {shape(ours.stdout, pyrune)!r}, runc {shape(theirs.stdout, runc)!r}")
    if step.output is not None and not re.fullmatch(step.output, shape(ours.stdout, pyrune), re.DOTALL):
        found.append(f"prints {shape(ours.stdout, pyrune)!r}, wanted {step.output!r}")
    if not step.why and (step.status, step.text, step.output) != (None, None, None):
        found.append("differs from runc without a reason in the table")
    if step.why and (wanted_status, wanted_text, step.output) == (theirs.status, runcs_text, None):
        found.append("has a reason to differ, and does not differ")
    return [f"{step.words}: {difference}" for difference in found + _log_faults(ours, theirs, log_format)]


def _said(outcome: Outcome, log_format: str | None) -> str:
    """The error in plain words. Without --log, or before it is known, standard error is a text log."""
    found = re.fullmatch(r'time="[^"]+" level=error msg="?(.*?)"?\n', outcome.stderr)
    if found:
        return found[1].replace('\\"', '"')
    if outcome.stderr and log_format is None:
        return f"not one line of a text log: {outcome.stderr}"
    return outcome.stderr.removesuffix("\n")


def _log_faults(ours: Outcome, theirs: Outcome, log_format: str | None) -> list[str]:
    """The log must have runc's form: nothing for a call that went well, one line for most that failed."""
    if log_format is None:
        return []
    lines = (ours.log or "").splitlines()
    # runc warns of this and that on a busy machine.
    wanted = [line for line in (theirs.log or "").splitlines() if re.search(r'level(":"|=)error', line)]
    if len(lines) != len(wanted):
        return [f"the log has {len(lines)} lines: {lines}, runc's {wanted}"]
    if not lines:
        return []
    said = ours.stderr.removesuffix("\n")
    if log_format == "text":
        escaped = said.replace('"', '\\"')
        as_text = rf'time="[0-9T:-]+Z" level=error msg="{re.escape(escaped)}"'
        return [] if re.fullmatch(as_text, lines[0]) else [f"the log says {lines[0]}"]
    [record] = ours.records
    faults = []
    if sorted(record) != sorted(json.loads(wanted[0])):
        faults.append(f"the record's keys are {sorted(record)}")
    if (record["level"], record["msg"]) != ("error", said):
        faults.append(f"the record is {record}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["time"]):
        faults.append(f"the record's time is {record['time']}")
    return faults
