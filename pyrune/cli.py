"""The command line, in runc's grammar: options, one call into the layer below, output. And the error boundary.

Options of runc that mean nothing for an enclave (--no-pivot and the like) are accepted, because callers give them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pyrune import __version__, log
from pyrune.answer import answer
from pyrune.backend import BackendName
from pyrune.backends import AUTO, ENVIRONMENT_VARIABLE, choose_backend
from pyrune.document import OCI_VERSION, read_config
from pyrune.enclave_type import enclave_type
from pyrune.errors import BackendError, ContainerNotFound, InvalidContainerId, PyruneError, UsageError, printable
from pyrune.grammar import Group
from pyrune.linux import parse_signal
from pyrune.state import ContainerRecord, ContainerStore

if TYPE_CHECKING:
    from pyrune.annotations import EnclaveRequest
    from pyrune.bundle import Bundle
    from pyrune.host import Finding
    from pyrune.lifecycle import CreateOptions

BACKENDS = (AUTO, *BackendName)
# The verbs of runc that mean nothing to an enclave, or nothing yet: containers that are runc's have them.
ONLY_RUNCS = frozenset({"checkpoint", "events", "exec", "features", "pause", "restore", "resume", "update"})

logger = logging.getLogger(__name__)
Callback = TypeVar("Callback", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Call:
    """The global options, and the arguments as they came, for a hand-over."""

    arguments: tuple[str, ...]
    store: ContainerStore
    wanted_backend: str


def default_root() -> Path:
    """Where containers are kept unless --root says otherwise."""
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() != 0 and runtime_directory:
        return Path(runtime_directory) / "pyrune"
    return Path("/run/pyrune")


def _print_version(context: click.Context, _parameter: click.Parameter, asked: bool) -> None:
    if asked:
        answer(f"pyrune version {__version__}", f"spec: {OCI_VERSION}")
        context.exit()


class _Verbs(Group):
    """The verbs of pyrune, and behind them those that only runc has. `eif` is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "eif"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "eif":
            from pyrune.eif_cli import eif

            return eif
        return super().get_command(ctx, cmd_name) or _leave_verb_to_runc(cmd_name)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Run containers in AWS Nitro Enclaves, with the command line of runc.",
)
@click.option("--root", help="Keep the state of containers here.  [default: /run/pyrune, or below $XDG_RUNTIME_DIR]")
@click.option("--log", "log_path", help="Write log records to this file instead of standard error.")
@click.option("--log-format", default=log.TEXT, metavar="text|json", help="How to write them.")
@click.option("--debug", is_flag=True, help="Log more than errors.")
@click.option(
    "--backend",
    metavar="|".join(BACKENDS),
    default=AUTO,
    envvar=ENVIRONMENT_VARIABLE,
    show_default=True,
    help=f"What runs enclaves: Nitro hardware, or a local virtual machine, which protects nothing. "
    f"Also ${ENVIRONMENT_VARIABLE}.",
)
@click.option("--systemd-cgroup", is_flag=True, expose_value=False, help="Accepted; has no effect on enclaves.")
@click.option("--rootless", default="auto", metavar="true|false|auto", expose_value=False,
              help="Accepted; the caller's rights decide.")  # fmt: skip
@click.option("-v", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Print the version and leave.")  # fmt: skip
@click.pass_context
def cli(
    context: click.Context,
    root: str | None,
    log_path: str | None,
    log_format: str,
    debug: bool,
    backend: str,
) -> None:
    if log_format not in ("", log.TEXT, log.JSON):
        raise UsageError(f"invalid log-format: {printable(log_format)}")
    try:
        log.configure(log_path, log_format, debug)
    except OSError as exc:
        raise UsageError(f"the log file {log_path} cannot be written (error {exc.errno})") from exc
    context.obj = Call(
        arguments=context.obj,
        store=ContainerStore(Path(root).absolute() if root else default_root()),
        wanted_backend=backend,
    )


def _creation_options(command: Callback) -> Callback:
    """The options that create and run share."""
    options = [
        click.option("-b", "--bundle", default=".", help="The bundle's directory.  [default: the current one]"),
        click.option("--pid-file", help="Write the pid of the container's process to this file."),
        click.option("--console-socket", help="Send the terminal's master to this socket."),
        click.option("--pidfd-socket", help="Send a pidfd of the container's process to this socket."),
        click.option("--preserve-fds", type=int, default=0, help="Accepted; none can reach an enclave."),
        click.option("--no-pivot", is_flag=True, help="Accepted; an enclave does not share this file system."),
        click.option("--no-new-keyring", is_flag=True, help="Accepted; an enclave does not share this kernel."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _load(call: Call, path: str) -> tuple[Bundle, EnclaveRequest]:
    """The bundle and what it asks for. An ordinary bundle is runc's to judge and to run: this does not return."""
    document = read_config(path)
    if not enclave_type(document.annotations, document.env):
        _hand_over(call)

    # What only enclaves need is imported behind the hand-over, here and in the verbs: others need not wait for it.
    from pyrune import config
    from pyrune.annotations import enclave_request
    from pyrune.bundle import Bundle

    bundle = Bundle(document.bundle_path, config.read(document), document)
    request = enclave_request(document.annotations, document.env)
    assert request is not None
    return bundle, request


def _hand_over(call: Call) -> NoReturn:
    from pyrune.runc import hand_over

    logging.shutdown()
    hand_over(call.arguments)


def _leave_to_runc(call: Call, container_id: str) -> None:
    """Go on with a container of ours. Any other is runc's, if there is a runc: then this does not return."""
    from pyrune.runc import find_runc

    if not _is_ours(call, container_id) and find_runc() is not None:
        _hand_over(call)


def _is_ours(call: Call, container_id: str) -> bool:
    try:
        call.store.open(container_id).close()
    except ContainerNotFound:
        return False
    return True


def _leave_verb_to_runc(name: str) -> click.Command:
    """A verb that pyrune does not have: for runc's containers runc's, otherwise an error."""

    @click.command(
        name,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    @click.pass_obj
    def verb(call: Call, words: tuple[str, ...]) -> None:
        if name not in ONLY_RUNCS:
            raise UsageError(f'there is no verb "{printable(name)}"; see pyrune --help')
        for word in words:
            with contextlib.suppress(InvalidContainerId):
                if _is_ours(call, word):
                    raise UsageError(f"{name} is not possible: the container {word} is an enclave")
        _hand_over(call)

    return verb


@cli.command(help="Write a config.json for a new bundle.")
@click.option("-b", "--bundle", default=".", help="The bundle's directory.  [default: the current one]")
@click.option("--rootless", is_flag=True, help="Write it for a container without root.")
@click.option("--enclave", is_flag=True, help="Write it for an enclave.")
@click.option("--image", help="The enclave image (with --enclave).")
@click.option("--memory", help="The enclave's memory in MiB, or with suffix M, G or T (with --enclave).")
@click.option("--vcpus", help="The enclave's number of CPUs (with --enclave).")
def spec(bundle: str, rootless: bool, enclave: bool, image: str | None, memory: str | None, vcpus: str | None) -> None:
    from pyrune.spec import EnclaveArguments, default_spec, write_spec

    # A bundle may be used from anywhere: what is relative here must not be so there.
    absolute = os.path.abspath(image) if image else image
    arguments = EnclaveArguments(image=absolute, memory=memory, vcpus=vcpus)
    if not enclave and arguments != EnclaveArguments():
        raise UsageError("--image, --memory and --vcpus describe an enclave; say --enclave as well")
    write_spec(bundle, default_spec(rootless=rootless, enclave=arguments if enclave else None))


@cli.command(help="Make a container from a bundle, ready to start.")
@_creation_options
@click.argument("container_id")
@click.pass_obj
def create(call: Call, /, container_id: str, bundle: str, **options: Any) -> None:
    loaded, request = _load(call, bundle)
    from pyrune import lifecycle

    lifecycle.create(call.store, container_id, loaded, request, _create_options(call, options))


@cli.command(help="Make a container from a bundle, start it and wait for its end.")
@_creation_options
@click.option("-d", "--detach", is_flag=True, help="Do not wait for its end.")
@click.option("--keep", is_flag=True, help="Do not delete it at its end.")
@click.option("--no-subreaper", is_flag=True, help="Accepted; what is waited for is always adopted.")
@click.argument("container_id")
@click.pass_context
def run(context: click.Context, /, container_id: str, bundle: str, detach: bool, keep: bool, **options: Any) -> None:
    call: Call = context.obj
    loaded, request = _load(call, bundle)
    from pyrune import lifecycle

    chosen = _create_options(call, options)
    context.exit(lifecycle.run(call.store, container_id, loaded, request, chosen, detach=detach, keep=keep))


def _chosen_backend(call: Call) -> BackendName:
    # Not checked where options are read: a wrong $PYRUNE_BACKEND must not keep anybody from cleaning up.
    if call.wanted_backend not in BACKENDS:
        raise UsageError(f'unknown backend "{printable(call.wanted_backend)}"; known are {", ".join(BACKENDS)}')
    return choose_backend(call.wanted_backend)


def _create_options(call: Call, options: dict[str, Any]) -> CreateOptions:
    from pyrune.lifecycle import CreateOptions

    return CreateOptions(
        backend=_chosen_backend(call),
        pid_file=options["pid_file"],
        console_socket=options["console_socket"],
        pidfd_socket=options["pidfd_socket"],
    )


@cli.command(help="Boot the enclave of a created container.")
@click.argument("container_id")
@click.pass_obj
def start(call: Call, container_id: str) -> None:
    _leave_to_runc(call, container_id)
    from pyrune import lifecycle

    lifecycle.start(call.store, container_id)


@cli.command(help="Print the state of a container.")
@click.argument("container_id")
@click.pass_obj
def state(call: Call, container_id: str) -> None:
    _leave_to_runc(call, container_id)
    from pyrune import lifecycle

    record = lifecycle.state(call.store, container_id)
    answer(json.dumps(lifecycle.state_document(record), indent=2))


@cli.command(help="Send a signal to a container; SIGTERM unless another is named.")
@click.option("-a", "--all", "all_processes", is_flag=True, help="To all its processes: an enclave is one.")
@click.argument("container_id")
@click.argument("signal_name", default="SIGTERM")
@click.pass_obj
def kill(call: Call, container_id: str, signal_name: str, all_processes: bool) -> None:
    _leave_to_runc(call, container_id)
    from pyrune import lifecycle

    lifecycle.state(call.store, container_id)
    number = parse_signal(signal_name)
    if number is None:
        raise UsageError(f'unknown signal "{printable(signal_name)}"')
    lifecycle.kill(call.store, container_id, number, all_processes=all_processes)


@cli.command(help="Delete a container that has stopped.")
@click.option("-f", "--force", is_flag=True, help="End it first if it runs; one that does not exist is fine.")
@click.argument("container_id")
@click.pass_obj
def delete(call: Call, container_id: str, force: bool) -> None:
    _leave_to_runc(call, container_id)
    from pyrune import lifecycle

    try:
        lifecycle.delete(call.store, container_id, force=force)
    except ContainerNotFound:
        if not force:
            raise


def _format_option(command: Callback) -> Callback:
    def check(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
        if value not in ("table", "json"):
            raise UsageError("invalid format option")
        return value

    return click.option(
        "-f", "--format", "output", default="table", metavar="table|json", show_default=True, callback=check
    )(command)


@cli.command("list", help="List the containers below the root.")
@_format_option
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.pass_obj
def list_(call: Call, output: str, quiet: bool) -> None:
    from pyrune import lifecycle

    records = list(call.store.records())
    documents = [{**lifecycle.state_document(record), "owner": _owner(call, record)} for record in records]
    if quiet:
        answer(*(record.id for record in records))
    elif output == "json":
        answer(_compact_json(documents))
    else:
        keys = ["id", "pid", "status", "bundle", "created", "owner"]
        rows = [[str(document[key]) for key in keys] for document in documents]
        answer(*_table([[key.upper() for key in keys], *rows]))


@cli.command(help="Look this machine over: what is ready to run enclaves, and what is missing. Changes nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@click.pass_context
def check(context: click.Context, /, as_json: bool) -> None:
    from dataclasses import asdict

    from pyrune import host

    findings = host.look_over()
    try:
        chosen = _chosen_backend(context.obj)
        good = host.can_run(chosen, findings)
        verdict = f"the back end {chosen} {'can run enclaves here' if good else 'cannot run enclaves here'}"
    except BackendError as exc:
        good, verdict = False, str(exc)
    if as_json:
        answer(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        answer(*_finding_lines(findings), "", verdict)
    context.exit(0 if good else 1)


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f"{finding.verdict:8} {finding.backend or '':6} {finding.subject}: {finding.text}"
        if finding.remedy:
            yield f"{'':16}mend it with: {finding.remedy}"


def _compact_json(values: Sequence[object]) -> str:
    """As Go prints it: no spaces, and `null` for an empty list."""
    return json.dumps(values or None, separators=(",", ":"))


def _owner(call: Call, record: ContainerRecord) -> str:
    import pwd

    try:
        uid = os.stat(call.store.root / record.id).st_uid
    except FileNotFoundError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _table(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell and three spaces, at least 12: as runc's tables look."""
    widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


@cli.command(
    help="List the processes of a container on this machine.", context_settings={"allow_interspersed_args": False}
)
@_format_option
@click.argument("container_id")
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def ps(call: Call, container_id: str, output: str, ps_options: tuple[str, ...]) -> None:
    _leave_to_runc(call, container_id)
    from pyrune import lifecycle

    pids = lifecycle.process_ids(call.store, container_id)
    if output == "json":
        answer(_compact_json(pids))
    else:
        answer(*_process_table(pids, ps_options or ("-ef",)))


def _process_table(pids: list[int], ps_options: Sequence[str]) -> list[str]:
    header, *lines = _ps_output(ps_options)
    if "PID" not in header.split():
        raise UsageError("couldn't find PID field in ps output")
    column = header.split().index("PID")
    wanted = {str(pid) for pid in pids}
    return [header, *(line for line in lines if wanted.intersection(line.split()[column : column + 1]))]


def _ps_output(ps_options: Sequence[str]) -> list[str]:
    """What ps prints: at least one line."""
    from pyrune.process import find_program, output_of

    program = find_program("ps")
    if program is None:
        raise UsageError("the table needs the program ps, which is not installed; --format json does without")
    try:
        status, output = output_of([program, *ps_options], timeout_s=20)
    except OSError as exc:
        raise UsageError(f"{program} does not start or does not end; --format json does without") from exc
    lines = output.decode(errors="replace").splitlines()
    if status or not lines:
        raise UsageError(f"{program} failed with status {status}: {printable(' | '.join(lines[:3]))}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status. The one place where errors are caught and shown."""
    # A caller that stops reading must not kill this process before it has cleaned up.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        with cli.make_context("pyrune", list(arguments), obj=tuple(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        _show_error(exc.format_message())
        return 1
    except (KeyboardInterrupt, click.Abort):
        return 130
    except PyruneError as exc:
        _show_error(str(exc))
        return exc.exit_status
    except Exception as exc:
        _show_error(f"pyrune failed in a way that it should not: {type(exc).__name__}: {exc}")
        logger.debug("the traceback", exc_info=True)
        return 1
    return 0


def _show_error(text: str) -> None:
    """One record in the log, and the bare text on standard error where that is not the log."""
    if not logging.getLogger().handlers:
        log.configure(None, log.TEXT, debug=False)
    logger.error("%s", text)
    if not any(
        isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        for handler in logging.getLogger().handlers
    ):
        click.echo(text, err=True)
