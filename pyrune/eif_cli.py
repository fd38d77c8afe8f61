"""`pyrune eif`: look at enclave images, and build them. Options, one call into `pyrune.eif`, output; no logic.

The output is that of nitro-cli's describe-eif, build-enclave and pcr. Errors go up to `cli.main`.
"""

from __future__ import annotations

import click

from pyrune.answer import answer
from pyrune.grammar import Group


@click.group(cls=Group, help="Look at enclave images (EIF), and build them.")
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
def build(
    kernel: str,
    cmdline: str,
    ramdisks: tuple[str, ...],
    output: str,
    arch: str | None,
    name: str | None,
    image_version: str,
    metadata: str | None,
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
    )
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
