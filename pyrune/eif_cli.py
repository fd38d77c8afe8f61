"""`pyrune eif`: look at enclave images, build and sign them. Options, one call into `pyrune.eif`, output; no logic.

The output is that of nitro-cli's describe-eif, build-enclave, sign-eif and pcr. Errors go up to `cli.main`.
"""

from __future__ import annotations

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


@eif.command(help="Build an image, and print its measurements as JSON.")
@click.option("--kernel", required=True, metavar="FILE", help="The kernel: a bzImage, or an arm64 Image.")
@click.option("--cmdline", required=True, metavar="TEXT", help="The kernel's command line.")
@click.option(
    "--ramdisk",
    "ramdisks",
    required=True,
    multiple=True,
    metavar="PATH",
    help="A ramdisk, used as it is, or a directory to pack into one. May be repeated; the first one boots.",
)
@click.option("--output", required=True, metavar="FILE", help="The image to write.")
@click.option(
    "--arch",
    type=click.Choice(["x86_64", "aarch64"]),
    help="The architecture.  [default: the kernel's, or this machine's]",
)
@click.option("--name", metavar="TEXT", help="The image's name.  [default: the output's, without .eif]")
@click.option("--version", "image_version", default="", metavar="TEXT", help="The image's version.")
@click.option("--metadata", metavar="FILE", help="JSON of your own, 4096 bytes at most, to store in the image.")
@click.option("--signing-certificate", "certificate", metavar="FILE", help="Sign, with this certificate (PEM).")
@click.option("--private-key", metavar="FILE", help="The certificate's key (PEM).")
def build(
    kernel: str,
    cmdline: str,
    ramdisks: tuple[str, ...],
    output: str,
    arch: str | None,
    name: str | None,
    image_version: str,
    metadata: str | None,
    certificate: str | None,
    private_key: str | None,
) -> None:
    """Build an image from its parts."""
    from pyrune.eif.builder import build as build_image
    from pyrune.eif.describe import pretty_json
    from pyrune.eif.format import Architecture
    from pyrune.eif.metadata import read_custom_metadata

    measurements = build_image(
        output,
        kernel=kernel,
        cmdline=cmdline,
        ramdisks=ramdisks,
        arch=Architecture(arch) if arch else None,
        name=name,
        version=image_version,
        custom_metadata=read_custom_metadata(metadata) if metadata else None,
        sign=_signing(certificate, private_key),
    )
    answer(pretty_json({"Measurements": measurements.as_json()}))


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
