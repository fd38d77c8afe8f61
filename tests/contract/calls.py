"""The calls that runc and pyrune are given alike: one table for single calls, one for whole lives of a container.

A step that is only words must come out of pyrune as it comes out of runc: exit status, what standard output looks like,
the words on standard error, the log. Whatever is meant to differ is written down here, with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """One call. {bundle} and {dir} are each program's own; '' is an empty word, ~ a space within a word.

    `status`, `text` (the error) and `output` (a pattern for standard output) are pyrune's where they are not runc's.
    `until` is the status to wait for afterwards.
    """

    words: str
    why: str = ""
    status: int | None = None
    text: str | None = None
    output: str | None = None
    until: str = ""


_NO_VERB = "runc's 3 and `No help topic` help nobody; every other wrong call exits with 1"
_REMEDY = "what callers match in runc's text is in it, with the place and the remedy"
_NO_COMMAND = "`no such file or directory` would make Docker say that the command is missing"
_NO_SOCKET = "cannot use console socket if pyrune will not detach or allocate tty; leave --console-socket out"
_NUMBER = "click says it in its own words; no caller can know runc's"

_ON_ONE = ("state", "start", "kill", "delete", "delete --force", "ps")

# Where there is no container: wrong ids, wrong words, wrong bundles.
SINGLE_CALLS = (
    *(
        Step(f"{verb} {container_id}")
        for verb in (*_ON_ONE, "create --bundle {bundle}")
        for container_id in ("a/b", "../x", "''", "..", ".", "a~b", "ü", "x\n")
    ),
    *(Step(f"{verb} nosuch") for verb in (*_ON_ONE, "ps --format json")),
    Step("kill nosuch BAD"),
    Step("kill nosuch 99"),
    Step("kill --all nosuch KILL"),
    *(Step(verb) for verb in ("state", "start", "kill", "delete", "ps", "create", "run")),
    *(Step(f"{verb} one two") for verb in ("state", "start", "delete", "create", "run")),
    Step("kill one TERM three"),
    Step("list one"),
    Step("spec one"),
    *(Step(f"{verb} --nosuch one") for verb in (*_ON_ONE, "create", "run", "list", "spec")),
    Step("state -x one"),
    Step("state ---x one"),
    Step("delete --force=maybe one"),
    Step("create --bundle"),
    Step("create -b"),
    Step("create one -bundle", "the missing value says more than runc's wrong count of arguments",
         text="flag needs an argument: -bundle"),
    Step("state one --nosuch"),
    Step("--nosuch state one"),
    Step("--debug=x state one"),
    Step("--root"),
    Step("create --preserve-fds x one", _NUMBER,
         text="Invalid value for '--preserve-fds': 'x' is not a valid integer."),
    Step("nosuch", _NO_VERB, status=1, text='there is no verb "nosuch"; see pyrune --help'),
    Step("list --format bad"),
    Step("list"),
    Step("list -q"),
    Step("list -f json"),
    Step("list --quiet=true"),
    Step("-root={dir}/other list"),
    Step("--rootless=false list"),
    Step("--rootless true --systemd-cgroup list"),
    Step("create --bundle /nonexistent one", _REMEDY,
         text="/nonexistent: no such file or directory; --bundle names the directory of config.json"),
    Step("create --bundle /etc/passwd one", _REMEDY,
         text="/etc/passwd: not a directory; --bundle names the directory of config.json"),
    Step("run --bundle {dir} one", _REMEDY,
         text="{dir}/config.json: JSON specification file config.json not found; `pyrune spec` writes one"),
    Step("create --console-socket /nonexistent --bundle {bundle} one", _REMEDY, text=_NO_SOCKET),
    Step("run --console-socket /nonexistent --bundle {bundle} one", _REMEDY, text=_NO_SOCKET),
    Step("create --pid-file /nonexistent/pid --bundle {bundle} one", _NO_COMMAND,
         text="the container's pid cannot be written to /nonexistent/pid (error 2)"),
    Step("state one"),
)  # fmt: skip

# A container's life, call by call. Each program's container sleeps for ever once it is started.
LIVES = {
    "never started": (
        Step("create --bundle {bundle} one"),
        Step("create --bundle {bundle} one"),
        Step("run --bundle {bundle} one"),
        Step("run --detach --bundle {bundle} one"),
        Step("state one"),
        Step("list"),
        Step("list --format json"),
        Step("list -q"),
        Step("list -q -f json"),
        Step("kill one WINCH"),
        Step("kill one 0"),
        Step("kill one BAD"),
        Step("state one"),
        Step("delete one"),
        Step("delete one"),
        Step("state one"),
        Step("list"),
    ),
    "started": (
        Step("create -bundle={bundle} -pid-file {dir}/pid one"),
        Step("start one"),
        Step("start one"),
        Step("state one"),
        Step("state -- one"),
        Step("list"),
        Step("list --format json"),
        Step("ps --format bad one"),
        Step("ps --format json one", "an enclave is three processes on this machine", output=r'\["N", "N", "N"\]'),
        Step("ps one", "an enclave is three processes on this machine", output=r"UID PID .*\n(.* N .*\n){3}"),
        Step("ps one -o pid,tty", "so it is with its columns", output=r" PID TT\n( ?N \?\n){3}"),
        Step("ps one -o comm"),
        Step("delete one"),
        Step("create --bundle {bundle} one"),
        Step("kill one HUP"),
        Step("kill one sigusr1"),
        Step("kill --all=false one Winch"),
        Step("kill one one"),
        Step("state one"),
        Step("kill one KILL", until="stopped"),
        Step("state one"),
        Step("list"),
        Step("list --format json"),
        Step("ps one"),
        Step("ps --format json one"),
        Step("kill one"),
        Step("kill one KILL"),
        Step("kill one BAD"),
        Step("kill --all one KILL"),
        Step("kill -a one 15"),
        Step("start one"),
        Step("create --bundle {bundle} one"),
        Step("delete one"),
        Step("delete one"),
        Step("delete -f one"),
    ),
    "killed before its start": (
        Step("create --bundle {bundle} one"),
        Step("kill one TERM", until="stopped"),
        Step("start one"),
        Step("state one"),
        Step("delete one"),
        Step("create --bundle {bundle} one"),
        Step("kill one 9", until="stopped"),
        Step("start one"),
        Step("kill one"),
        Step("delete one -force"),
        Step("state one"),
    ),
    "deleted while it runs": (
        Step("run --detach --bundle {bundle} --pid-file={dir}/pid one"),
        Step("state one"),
        Step("run -d --bundle {bundle} one"),
        Step("delete one"),
        Step("delete --force one"),
        Step("state one"),
        Step("create --bundle {bundle} one"),
        Step("delete --force=true one"),
        Step("list"),
    ),
}
