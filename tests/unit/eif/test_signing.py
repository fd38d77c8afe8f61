from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from pyrune.eif.builder import build
from pyrune.eif.format import HEADER_BYTES, SectionType
from pyrune.eif.measure import measure
from pyrune.eif.reader import EifImage
from pyrune.eif.signature import check_signature, parse_signature
from pyrune.eif.signing import Signatory, payload_for, read_signatory, sign_image, with_private_key, with_signature
from pyrune.errors import EifError
from tests.needs import missing
from tests.unit.eif.images import CMDLINE, KERNEL, METADATA, RAMDISK, SIGNATURE, SMALL, Layout
from tests.unit.eif.kernels import bzimage
from tests.unit.eif.signing import Signer, certificate_for, lasting_signer, section, signer
from tests.unit.eif.test_measure import pcr

# The P-384 key of RFC 6979, A.2.6, and a certificate that it signed for itself, valid from 2020 to 2120.
RFC_KEY = 0x6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5
RFC_CERTIFICATE = b"""\
-----BEGIN CERTIFICATE-----
MIIBXzCB56ADAgECAgIbQzAKBggqhkjOPQQDAzAaMRgwFgYDVQQDDA9SRkMgNjk3
OSwgQS4yLjYwIBcNMjAwMTAxMDAwMDAwWhgPMjEyMDAxMDEwMDAwMDBaMBoxGDAW
BgNVBAMMD1JGQyA2OTc5LCBBLjIuNjB2MBAGByqGSM49AgEGBSuBBAAiA2IABOw6
TkFbThmkVoYYAp9Cf6XamovErpLgLgaq5ShrMAxk3vjw6pBVhmBkolRRVIC8E4AV
2bctfVckTqjvmsDGIYlnCKWTZ/nfufVMqEs/HJ2xKIsjHDrg1P5zRP0lMyZHIDAK
BggqhkjOPQQDAwNnADBkAjBcJK+Sml/f9lQDirPppfGyAVYW7+aOHud45ArErExb
Cs9yHRpawetawnRrxFQpNLACMHIWFRR9EkQ3NC2YUqfQg6NUWkZko84t0Uz8E7pd
6YLsmgoSw/52unO1ceU7elTkag==
-----END CERTIFICATE-----
"""


@pytest.fixture
def someone() -> Signer:
    return lasting_signer()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.eif"
    path.write_bytes(Layout().build())
    return path


def files_of(directory: Path, signer: Signer, name: str = "key") -> tuple[str, str]:
    """The files of a signer's certificate and key."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.pem"
    certificate.write_bytes(signer.pem)
    key.write_bytes(signer.key_pem)
    return str(certificate), str(key)


def signatory_of(directory: Path, signer: Signer) -> Signatory:
    return read_signatory(files_of(directory, signer)[0])


def signed(image: Path, signer: Signer, output: Path | None = None) -> bytes:
    certificate, key = files_of(image.parent, signer)
    sign_image(image, with_private_key(read_signatory(certificate), key), output)
    return (output or image).read_bytes()


def expected_image(someone: Signer, layout: Layout) -> bytes:
    """The signed image, made without the code under test."""
    pcr0 = pcr(b"".join(data for kind, data in layout.sections if kind not in (METADATA, SIGNATURE)))
    unsigned = [part for part in layout.sections if part[0] != SIGNATURE]
    return replace(layout, sections=[*unsigned, (SIGNATURE, someone.section(pcr0))]).build()


@pytest.mark.parametrize("curve", [0, 1, 2])
def test_a_signed_image_is_what_nitro_cli_would_write(image: Path, curve: int) -> None:
    someone = lasting_signer(curve)
    assert signed(image, someone) == expected_image(someone, Layout())


def test_a_signed_image_is_these_very_bytes(image: Path) -> None:
    key = ec.derive_private_key(RFC_KEY, ec.SECP384R1())
    rfc = replace(signer(), key=key, certificate=x509.load_pem_x509_certificate(RFC_CERTIFICATE))
    assert rfc.pem == RFC_CERTIFICATE
    data = signed(image, rfc)
    assert hashlib.sha256(data).hexdigest() == "7807ae7b111aa666ffad8f39eba23c6ec7f36a0996ba5d7a95c6a15ec52e12f6"


def test_the_same_inputs_give_the_same_bytes(image: Path, tmp_path: Path, someone: Signer) -> None:
    first = signed(image, someone, tmp_path / "first.eif")
    assert signed(image, someone, tmp_path / "second.eif") == first


def test_signing_anew_replaces_the_signature_and_nothing_else(image: Path, someone: Signer) -> None:
    once = signed(image, lasting_signer(2))
    again = signed(image, someone)
    assert len(again) != len(once)
    assert again == expected_image(someone, Layout())
    assert signed(image, lasting_signer(2))[HEADER_BYTES:][:1000] == once[HEADER_BYTES:][:1000]


def test_a_signature_that_is_not_the_last_section_is_replaced(image: Path, someone: Signer) -> None:
    old = (SIGNATURE, signer().section("00" * 48))
    layout = Layout(sections=[*SMALL[:3], old, *SMALL[3:]])
    image.write_bytes(layout.build())
    assert signed(image, someone) == expected_image(someone, layout)


def test_the_real_image_is_signed_verified_and_signed_anew(vectors: Path, tmp_path: Path, someone: Signer) -> None:
    original = vectors / "eif" / "aws-hello-aarch64.eif"
    image = tmp_path / "image.eif"
    shutil.copy(original, image)
    for who in (lasting_signer(0), someone):
        signed(image, who)
        with EifImage.open(image) as opened, EifImage.open(original) as before:
            assert opened.ambiguities == ()
            measured = measure(opened)
            assert measured.crc32 == opened.header.crc32
            assert (measured.pcr0, measured.pcr1, measured.pcr2) == tuple(measure(before).as_json().values())[1:]
            assert measured.pcr8 == pcr(who.der)
            assert opened.signature is not None
            assert opened.sections[-1] == opened.signature
            report = check_signature(parse_signature(opened.read(opened.signature)), measured.pcr0)
            assert report.problem == ""
            assert opened.sections[:-1] == before.sections
            for ours, theirs in zip(opened.sections[:-1], before.sections, strict=True):
                assert opened.read(ours) == before.read(theirs)


def test_what_signing_returns_are_the_measurements_of_the_file(image: Path, someone: Signer) -> None:
    certificate, key = files_of(image.parent, someone)
    measurements = sign_image(image, with_private_key(read_signatory(certificate), key))
    with EifImage.open(image) as signed_image:
        assert measure(signed_image) == measurements
        assert signed_image.header.crc32 == measurements.crc32


def test_an_image_can_be_signed_as_it_is_built(tmp_path: Path, someone: Signer) -> None:
    (tmp_path / "kernel").write_bytes(bzimage())
    (tmp_path / "tree").mkdir()
    certificate, key = files_of(tmp_path, someone)
    kernel, tree = tmp_path / "kernel", tmp_path / "tree"
    sign = with_private_key(read_signatory(certificate), key)
    at_once = build(tmp_path / "a", kernel=kernel, cmdline="panic=1", ramdisks=[tree], name="x", sign=sign)
    build(tmp_path / "b", kernel=kernel, cmdline="panic=1", ramdisks=[tree], name="x")
    assert sign_image(tmp_path / "b", sign) == at_once
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_keeps_its_mode_and_the_link_its_target(image: Path, someone: Signer) -> None:
    image.chmod(0o640)
    (image.parent / "link").symlink_to("image.eif")
    signed(image.parent / "link", someone)
    assert (image.parent / "link").is_symlink()
    assert image.read_bytes() == expected_image(someone, Layout())
    assert image.stat().st_mode & 0o777 == 0o640


def test_a_chain_of_certificates_is_kept_as_it_is(image: Path, someone: Signer, tmp_path: Path) -> None:
    certificate, key = files_of(tmp_path, someone)
    pem = b"a comment\n" + someone.pem + signer().pem
    Path(certificate).write_bytes(pem)
    sign_image(image, with_private_key(read_signatory(certificate), key))
    with EifImage.open(image) as found:
        assert found.signature is not None
        (entry,) = cbor2.loads(found.read(found.signature))
    assert bytes(entry["signing_certificate"]) == pem


# Keys and certificates that cannot sign


def test_the_key_must_be_that_of_the_certificate(image: Path, someone: Signer, tmp_path: Path) -> None:
    certificate, _ = files_of(tmp_path, someone)
    _, other = files_of(tmp_path, lasting_signer(), "other")
    with pytest.raises(EifError, match="does not hold the key of the certificate"):
        with_private_key(read_signatory(certificate), other)


@pytest.mark.parametrize(
    ("moment", "may"),
    [
        (datetime(2019, 12, 31, tzinfo=UTC), False),
        (datetime(2020, 1, 1, tzinfo=UTC), True),
        (datetime(2120, 1, 2, tzinfo=UTC), False),
    ],
)
def test_the_certificate_must_be_valid_now(tmp_path: Path, moment: datetime, may: bool) -> None:
    (tmp_path / "crt").write_bytes(RFC_CERTIFICATE)
    if may:
        assert read_signatory(str(tmp_path / "crt"), moment).pem == RFC_CERTIFICATE
    else:
        with pytest.raises(EifError, match="valid only from Jan  1 00:00:00 2020 GMT to Jan  1 00:00:00 2120 GMT"):
            read_signatory(str(tmp_path / "crt"), moment)


def test_a_private_key_never_gets_into_an_image(tmp_path: Path, someone: Signer) -> None:
    (tmp_path / "both").write_bytes(someone.pem + someone.key_pem)
    with pytest.raises(EifError, match="holds a private key too"):
        read_signatory(str(tmp_path / "both"))


@pytest.mark.parametrize(("data", "words"), [(b"", "no readable certificate"), (b"x" * 70_000, "more than 65536")])
def test_a_certificate_that_is_none_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "crt").write_bytes(data)
    with pytest.raises(EifError, match=words):
        read_signatory(str(tmp_path / "crt"))


@pytest.mark.parametrize("kind", ["rsa", "secp256k1"])
def test_a_certificate_of_another_kind_of_key_is_refused(tmp_path: Path, kind: str) -> None:
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256K1())
    (tmp_path / "crt").write_bytes(certificate_for(key, 36500).public_bytes(Encoding.PEM))
    with pytest.raises(EifError, match=r"cannot sign: .*the curves P-256, P-384 and P-521"):
        read_signatory(str(tmp_path / "crt"))


def test_a_key_that_cannot_be_read_is_refused(tmp_path: Path, someone: Signer) -> None:
    signatory = signatory_of(tmp_path, someone)
    encrypted = someone.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    rsa_key = rsa.generate_private_key(65537, 2048)
    for data, words in (
        (b"", "holds no usable key"),
        (b"junk", "holds no usable key"),
        (someone.pem, "holds no usable key"),
        (encrypted, "holds no usable key: Password was not given"),
        (rsa_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "does not hold the key"),
    ):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(EifError, match=words):
            with_private_key(signatory, str(tmp_path / "bad"))
    with pytest.raises(EifError, match="nothing is there"):
        with_private_key(signatory, str(tmp_path / "missing"))


# Images that may not be signed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Layout(crc=1).build(), "it is damaged: its checksum is 0x[0-9a-f]{8}, but its header says 0x00000001"),
        (Layout(tail=b"x").build(), "can be read in more than one way"),
        (Layout(version=2, sections=[*SMALL[:2], *SMALL[3:]]).build(), "version 2 of the format has no place"),
        (Layout(sections=SMALL[:2]).build(), "it cannot boot"),
        (Layout(sections=[*SMALL, *[(RAMDISK, b"x")] * 26]).build(), "32 sections at most, not 33"),
        (b"junk", "no enclave image"),
    ],
)
def test_an_image_that_may_not_be_signed_stays_as_it_is(image: Path, someone: Signer, data: bytes, words: str) -> None:
    image.write_bytes(data)
    certificate, key = files_of(image.parent, someone)
    before = (sorted(os.listdir(image.parent)), len(os.listdir("/proc/self/fd")))
    with pytest.raises(EifError, match=words):
        sign_image(image, with_private_key(read_signatory(certificate), key))
    assert image.read_bytes() == data
    assert (sorted(os.listdir(image.parent)), len(os.listdir("/proc/self/fd"))) == before


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_never_signed(tmp_path_factory: pytest.TempPathFactory, place: int, change: int) -> None:
    data = bytearray(Layout().build())
    data[place % len(data)] ^= change
    path = tmp_path_factory.getbasetemp() / "changed.eif"
    path.write_bytes(data)
    with pytest.raises(EifError):
        sign_image(path, lambda pcr0: section(b"", b""))
    assert path.read_bytes() == data


def test_a_truncated_image_is_never_signed(image: Path) -> None:
    whole = Layout(sections=[(KERNEL, b"kernel"), (CMDLINE, b"panic=1"), (RAMDISK, b"ramdisk")]).build()
    for length in range(len(whole)):
        image.write_bytes(whole[:length])
        with pytest.raises(EifError):
            sign_image(image, lambda pcr0: section(b"", b""))
        assert image.stat().st_size == length


# The key is elsewhere


@pytest.mark.parametrize("curve", [0, 1, 2])
@pytest.mark.parametrize("form", ["der", "raw"])
def test_a_device_signs_what_is_printed(image: Path, tmp_path: Path, curve: int, form: str) -> None:
    someone = lasting_signer(curve)
    signatory = signatory_of(tmp_path, someone)
    payload = payload_for(image, signatory)
    made = someone.key.sign(payload.to_be_signed, ec.ECDSA(someone.hash))
    if form == "raw":
        made = b"".join(number.to_bytes(someone.half, "big") for number in decode_dss_signature(made))
    (tmp_path / "signature").write_bytes(made)
    sign_image(image, with_signature(signatory, str(tmp_path / "signature")))
    with EifImage.open(image) as found:
        measured = measure(found)
        assert found.signature is not None
        assert check_signature(parse_signature(found.read(found.signature)), measured.pcr0).problem == ""
        assert measured.crc32 == found.header.crc32


def test_what_is_printed_is_the_sig_structure_and_its_hash(image: Path, tmp_path: Path, someone: Signer) -> None:
    payload = payload_for(image, signatory_of(tmp_path, someone))
    pcr0 = pcr(b"".join(data for kind, data in SMALL if kind != METADATA))
    body = cbor2.dumps({"register_index": 0, "register_value": list(bytes.fromhex(pcr0))})
    assert payload.to_be_signed == cbor2.dumps(["Signature1", cbor2.dumps({1: -35}), b"", body])
    shown = payload.as_json()
    assert (shown["PCR0"], shown["Algorithm"], shown["HashAlgorithm"]) == (pcr0, "ES384", "sha384")
    assert shown["Digest"] == {
        "Hex": hashlib.sha384(payload.to_be_signed).hexdigest(),
        "Base64": base64.b64encode(hashlib.sha384(payload.to_be_signed).digest()).decode(),
    }
    payload.write(str(tmp_path / "raw"))
    assert (tmp_path / "raw").read_bytes() == payload.to_be_signed


def test_a_signature_of_another_image_key_or_shape_is_refused(image: Path, tmp_path: Path, someone: Signer) -> None:
    signatory = signatory_of(tmp_path, someone)
    right = payload_for(image, signatory).to_be_signed
    before = image.read_bytes()
    for made, words in (
        (someone.key.sign(right + b"x", ec.ECDSA(someone.hash)), "not one by the certificate's key"),
        (signer().key.sign(right, ec.ECDSA(someone.hash)), "not one by the certificate's key"),
        (bytes(2 * someone.half), "not one by the certificate's key"),
        (b"\xff" * 2 * someone.half, "not one by the certificate's key"),
        (b"", "holds neither r and s nor"),
        (b"MEUCIQ==", "holds neither r and s nor"),
        (someone.key.sign(right, ec.ECDSA(someone.hash)) + b"\n", "holds neither r and s nor"),
    ):
        (tmp_path / "signature").write_bytes(made)
        with pytest.raises(EifError, match=words):
            sign_image(image, with_signature(signatory, str(tmp_path / "signature")))
        assert image.read_bytes() == before


def test_openssl_makes_the_certificate_and_the_signature(image: Path, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        missing("openssl", "the program is not installed")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, timeout=30, capture_output=True)

    openssl("ecparam", "-name", "secp384r1", "-genkey", "-out", "key")
    openssl("req", "-new", "-x509", "-key", "key", "-sha384", "-days", "2", "-subj", "/CN=me", "-out", "crt")
    signatory = read_signatory(str(tmp_path / "crt"))
    payload_for(image, signatory).write(str(tmp_path / "payload"))
    openssl("dgst", "-sha384", "-sign", "key", "-out", "signature", "payload")
    detached = sign_image(image, with_signature(signatory, str(tmp_path / "signature")), tmp_path / "detached.eif")
    direct = sign_image(image, with_private_key(signatory, str(tmp_path / "key")))
    assert (detached.pcr0, detached.pcr8) == (direct.pcr0, direct.pcr8)


def test_memory_stays_flat_however_large_the_image_is(image: Path, someone: Signer) -> None:
    image.write_bytes(Layout(sections=[*SMALL, (RAMDISK, bytes(48 << 20))]).build())
    certificate, key = files_of(image.parent, someone)
    sign = with_private_key(read_signatory(certificate), key)
    tracemalloc.start()
    try:
        sign_image(image, sign)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_the_signature_is_the_last_section_of_the_tables(image: Path, someone: Signer) -> None:
    signed(image, someone)
    with EifImage.open(image) as found:
        assert [part.index for part in found.sections] == list(range(found.header.section_count))
        assert found.sections[-1].type is SectionType.SIGNATURE
        assert found.sections[-1].end == found.size_bytes
