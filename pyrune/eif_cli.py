"""`pyrune eif`: look at enclave images, build and sign them. Options, one call into `pyrune.eif`, output; no logic.

The output of describe, build, sign and pcr is that of nitro-cli. Errors go up to `cli.main`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from pyrune.answer import answer
from pyrune.grammar import Group

if TYPE_CHECKING:
    from pyrune.eif.writer import SectionMaker


@click.group(cls=Group, help="Look at enclave images (EIF), build and sign them.")
def eif() -> None:
    """The group; `cli` adds it to the command line."""


@eif.command(
    help="Print what an image is: measurements, checksum, signature and metadata, as JSON.",
    short_help="Print what an image is, as JSON.",
)
@click.argument("file", metavar="FILE")
def describe(file: str) -> None:
    """Measure and check an image."""
    from pyrune.eif.describe import describe as describe_image
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.reader import EifImage

    with EifImage.open(file) as image:
        description = describe_image(image)
    answer(pretty_json(description.as_json()))


@eif.command(
    help="Build an image, and print its measurements as JSON.\n\nOf a container's content: a bundle, a root file "
    "system, or an image in a file; the program to run, or its arguments, follow after --. Or of --kernel, --cmdline "
    "and one or more --ramdisk as they are.",
    short_help="Build an image from container content or from its parts.",
)
@click.option("--bundle", metavar="DIR", help="Build from an OCI bundle.")
@click.option("--rootfs", metavar="DIR", help="Build from a root file system, to run what follows after --.")
@click.option("--docker-archive", metavar="FILE", help="Build from what `docker save` wrote.")
@click.option("--oci-layout", metavar="PATH", help="Build from an OCI layout, a directory or a tar archive of one.")
@click.option("--owner", metavar="UID:GID", help="Whose the files of a directory are to be.  [default: as they are]")
@click.option("--kernel", metavar="FILE", help="A bzImage, or an arm64 Image.  [default: AWS's, or the cached one]")
@click.option("--cmdline", metavar="TEXT", help="The kernel's command line.")
@click.option("--init", metavar="FILE", help="The enclave's first process.  [default: pyrune's own]")
@click.option("--module", "modules", multiple=True, metavar="FILE", help="A kernel module to load. May be repeated.")
@click.option(
    "--ramdisk",
    "ramdisks",
    multiple=True,
    metavar="PATH",
    help="A ramdisk, used as it is, or a directory to pack into one. May be repeated; the first one boots.",
)
@click.option("--output", required=True, metavar="FILE", help="The image to write.")
@click.option(
    "--arch",
    type=click.Choice(["x86_64", "aarch64"]),
    help="The architecture.  [default: the content's, the kernel's, or this machine's]",
)
@click.option("--name", metavar="TEXT", help="The image's name.  [default: the output's, without .eif]")
@click.option("--version", "image_version", default="", metavar="TEXT", help="The image's version.")
@click.option("--metadata", metavar="FILE", help="JSON of your own, 4096 bytes at most, to store in the image.")
@click.option("--signing-certificate", "certificate", metavar="FILE", help="Sign, with this certificate (PEM).")
@click.option("--private-key", metavar="FILE", help="The certificate's key (PEM).")
@click.argument("arguments", nargs=-1, metavar="[-- ARG...]")
def build(
    kernel: str | None,
    cmdline: str | None,
    ramdisks: tuple[str, ...],
    output: str,
    arch: str | None,
    name: str | None,
    image_version: str,
    metadata: str | None,
    certificate: str | None,
    private_key: str | None,
    arguments: tuple[str, ...],
    owner: str | None,
    init: str | None,
    modules: tuple[str, ...],
    **content: str | None,
) -> None:
    """Build an image."""
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.format import Architecture
    from pyrune.eif.metadata import read_custom_metadata

    chosen = [(kind, path) for kind, path in content.items() if path is not None]
    if len(chosen) + bool(ramdisks) != 1:
        raise click.UsageError("give one of --bundle, --rootfs, --docker-archive, --oci-layout and --ramdisk")
    architecture = Architecture(arch) if arch else None
    custom_metadata = read_custom_metadata(metadata) if metadata else None
    sign = _signing(certificate, private_key)
    if ramdisks:
        from pyrune.eif.builder import build as build_from_parts

        if kernel is None or cmdline is None or arguments or owner or init or modules:
            raise click.UsageError("--ramdisk needs --kernel and --cmdline, and no arguments, owner, init or modules")
        measurements = build_from_parts(
            output,
            kernel=kernel,
            cmdline=cmdline,
            ramdisks=ramdisks,
            arch=architecture,
            name=name,
            version=image_version,
            custom_metadata=custom_metadata,
            sign=sign,
        )
        answer(pretty_json({"Measurements": measurements.as_json()}))
        return

    from pyrune.compose.build import ContentKind, Order, build_from_content
    from pyrune.compose.directory import parse_owner

    ((kind, path),) = chosen
    built = build_from_content(
        Order(
            kind=ContentKind(kind.replace("_", "-")),
            path=path,
            output=output,
            arguments=arguments,
            owner=parse_owner(owner) if owner is not None else None,
            arch=architecture,
            kernel=kernel,
            cmdline=cmdline,
            init=init,
            modules=modules,
            name=name,
            version=image_version,
            custom_metadata=custom_metadata,
            sign=sign,
        )
    )
    for line in built.notes():
        click.echo(line, err=True)
    answer(pretty_json({"Measurements": built.measurements.as_json()}))


def _signing(certificate: str | None, private_key: str | None) -> SectionMaker | None:
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise click.UsageError("--signing-certificate and --private-key go together")
    from pyrune.eif.signing import read_signatory, with_private_key

    return with_private_key(read_signatory(certificate), private_key)


@eif.command(
    help="Sign an image, or sign it anew, and print its measurements as JSON.\n\nThe key may be elsewhere: "
    "--print-payload prints what is to be signed, and --signature takes the signature back.",
    short_help="Sign an image.",
)
@click.argument("file", metavar="IMAGE")
@click.option("--signing-certificate", "certificate", required=True, metavar="FILE", help="Who signs (PEM).")
@click.option("--private-key", metavar="FILE", help="The certificate's key (PEM).")
@click.option("--signature", metavar="FILE", help="A signature made elsewhere: r and s one after the other, or DER.")
@click.option("--print-payload", is_flag=True, help="Print, as JSON, the bytes to be signed and their hash.")
@click.option("--output", metavar="FILE", help="Write here: the image or, with --print-payload, the bytes.")
def sign(
    file: str,
    certificate: str,
    private_key: str | None,
    signature: str | None,
    print_payload: bool,
    output: str | None,
) -> None:
    """Sign an image."""
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.signing import payload_for, read_signatory, sign_image, with_private_key, with_signature

    if (private_key is not None) + (signature is not None) + print_payload != 1:
        raise click.UsageError("give one of --private-key, --signature and --print-payload")
    signatory = read_signatory(certificate)
    if private_key is not None:
        measurements = sign_image(file, with_private_key(signatory, private_key), output)
    elif signature is not None:
        measurements = sign_image(file, with_signature(signatory, signature), output)
    else:
        payload = payload_for(file, signatory)
        if output is not None:
            payload.write(output)
        answer(pretty_json(payload.as_json()))
        return
    answer(pretty_json({"Measurements": measurements.as_json()}))


@eif.command(
    help="Print the PCR that a file, or a signing certificate (PEM), would give, as JSON.",
    short_help="Print the PCR of a file or certificate.",
)
@click.option("--input", "file", metavar="FILE", help="Any file.")
@click.option("--signing-certificate", "certificate", metavar="FILE", help="A certificate, for PCR8.")
def pcr(file: str | None, certificate: str | None) -> None:
    """Compute one PCR."""
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.measure import pcr8_of_certificate_file, pcr_of_file

    if (file is None) == (certificate is None):
        raise click.UsageError("give either --input or --signing-certificate")
    if file is not None:
        answer(pretty_json({"PCR": pcr_of_file(file)}))
    elif certificate is not None:
        answer(pretty_json({"PCR8": pcr8_of_certificate_file(certificate)}))


def _checked_pcr(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch("[0-9a-fA-F]{96}", value):
        raise click.BadParameter("a PCR is 96 hexadecimal digits")
    return value and value.lower()


@eif.command(
    help="Check an image: structure, checksum, signature, and the PCRs that are given. One line for each check; "
    "status 1 if one failed.\n\nA signature alone proves nothing, as anyone can sign: give --pcr8, too.",
    short_help="Check an image.",
)
@click.argument("file", metavar="IMAGE")
@click.option("--pcr0", metavar="HEX", callback=_checked_pcr, help="Expect this PCR0: the image.")
@click.option("--pcr1", metavar="HEX", callback=_checked_pcr, help="Expect this PCR1: what boots.")
@click.option("--pcr2", metavar="HEX", callback=_checked_pcr, help="Expect this PCR2: the application.")
@click.option("--pcr8", metavar="HEX", callback=_checked_pcr, help="Expect this PCR8: who signed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: str, as_json: bool, **expected: str | None) -> None:
    """Check an image."""
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.reader import EifImage
    from pyrune.eif.verify import verify as verify_image

    pcrs = {name.upper(): value for name, value in expected.items() if value is not None}
    with EifImage.open(file) as image:
        result = verify_image(image, pcrs)
    if as_json:
        answer(pretty_json(result.as_json()))
    else:
        answer(*(f"{check.verdict:6}  {check.name}: {check.detail}" for check in result.checks))
    _leave_unless(result.passed)


@eif.command(
    help="Print what differs between two images, and which PCRs that moves: sections, and in ramdisks files, their "
    "attributes, and variables of the environment. Status 1 if the measurements differ.",
    short_help="Print what differs between two images.",
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--show-values", is_flag=True, help="Print arguments and values of variables, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(first: str, second: str, show_values: bool, as_json: bool) -> None:
    """Compare two images."""
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.diff.images import compare_images
    from pyrune.eif.reader import EifImage

    with EifImage.open(first) as before, EifImage.open(second) as after:
        result = compare_images(before, after, show_values=show_values)
    if as_json:
        answer(pretty_json(result.as_json()))
    else:
        answer(*result.as_lines())
    _leave_unless(not result.moved)


def _leave_unless(good: bool) -> None:
    if not good:
        raise click.exceptions.Exit(1)
