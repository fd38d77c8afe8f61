from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrune.annotations import ARGUMENTS, KEYS, EnclaveRequest, LogLevel, enclave_request
from pyrune.enclave_type import BOOT_TIMEOUT, VARIABLES
from pyrune.errors import AnnotationError

NITRO = "AwsNitroEnclaves"


def request(env: tuple[str, ...] = (), **keys: str) -> EnclaveRequest:
    """The request of a bundle with the type and `keys`, where runtime_args is enclave.runtime.args."""
    annotations = {f"enclave.{name.replace('_', '.', 1)}": value for name, value in keys.items()}
    found = enclave_request({"enclave.type": NITRO, **annotations}, env)
    assert found is not None
    return found


def refusal(env: tuple[str, ...] = (), **keys: str) -> AnnotationError:
    with pytest.raises(AnnotationError) as caught:
        request(env, **keys)
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    return caught.value


def test_an_ordinary_bundle_asks_for_nothing() -> None:
    assert enclave_request({}, ("A=1",)) is None
    assert enclave_request({"enclave.type": ""}, ("ENCLAVE_TYPE=",)) is None


def test_a_type_alone_leaves_everything_open() -> None:
    assert request() == EnclaveRequest()


def test_the_example_of_rune_is_understood() -> None:
    found = request(runtime_args="image=/var/lib/hello.eif memory=512 vcpus=1")
    assert found == EnclaveRequest(image="/var/lib/hello.eif", memory_mib=512, vcpus=1)


def test_cpus_may_be_named_in_ranges() -> None:
    assert request(runtime_args="cpu_ids=2-3:7:5").cpu_ids == (2, 3, 7, 5)


@pytest.mark.parametrize("cpus", ["0", "1:", ":1", "1-", "-1", "1-2-3", "x", "01", "3-2", "1:1-2", "1-5000", "1;2"])
def test_what_names_no_cpus_is_refused(cpus: str) -> None:
    with pytest.raises(AnnotationError, match="cpu_ids"):
        request(runtime_args=f"cpu_ids={cpus}")


def test_cpus_are_named_or_counted_but_not_both() -> None:
    with pytest.raises(AnnotationError, match="vcpus= and cpu_ids= are both given; remove one of the two"):
        request(runtime_args="vcpus=2 cpu_ids=1-2")


def test_everything_can_be_said_by_annotations() -> None:
    found = request(
        ("A=1",),
        runtime_args="image=/a,memory=2G,vcpus=4,cid=16,debug=true",
        runtime_loglevel="debug",
        boot_timeout="2.5",
    )
    assert found == EnclaveRequest(
        image="/a",
        memory_mib=2048,
        vcpus=4,
        cid=16,
        debug=True,
        loglevel=LogLevel.DEBUG,
        boot_timeout_s=2.5,
        env=("A=1",),
    )


def test_nearly_everything_can_be_said_by_variables_which_then_are_gone() -> None:
    env = (
        "PATH=/bin",
        f"ENCLAVE_TYPE={NITRO}",
        "ENCLAVE_RUNTIME_ARGS=image=/a memory=64 debug=false",
        "ENCLAVE_MODE=theirs",
        "ENCLAVE_RUNTIME_LOGLEVEL=off",
        "ENCLAVE_RUNTIME_PATH=/lib/x.so",
        "ENCLAVE_RA_TYPE=",
        "ENCLAVE_RA_EPID_SPID",
        "HOME=/",
        "no equals sign",
    )
    found = enclave_request({}, env)
    assert found == EnclaveRequest(
        image="/a",
        memory_mib=64,
        loglevel=LogLevel.OFF,
        notes=("ENCLAVE_RUNTIME_PATH is not needed: pyrune loads no enclave library",),
        env=("PATH=/bin", "ENCLAVE_MODE=theirs", "HOME=/", "no equals sign"),
    )


def test_an_environment_is_not_in_a_repr() -> None:
    assert "secret" not in repr(request(("TOKEN=secret",)))


def test_annotation_and_variable_may_agree() -> None:
    args = "image=/a debug=true"
    assert request((f"ENCLAVE_RUNTIME_ARGS={args}",), runtime_args=args).debug


@pytest.mark.parametrize("value", ["image=/b", "", "image=/a "])
def test_annotation_and_variable_may_not_differ(value: str) -> None:
    error = refusal((f"ENCLAVE_RUNTIME_ARGS={value}",), runtime_args="image=/a")
    assert str(error).startswith("ENCLAVE_RUNTIME_ARGS: differs from the annotation enclave.runtime.args")


def test_a_variable_cannot_turn_debug_mode_on() -> None:
    error = refusal(("ENCLAVE_RUNTIME_ARGS=image=/a debug=true",))
    assert error.key == "ENCLAVE_RUNTIME_ARGS"
    assert error.remedy == "put debug=true into the annotation enclave.runtime.args"


@pytest.mark.parametrize("args", ["", " ", ",", " , ,"])
def test_no_arguments_are_fine(args: str) -> None:
    assert request(runtime_args=args) == EnclaveRequest()


@pytest.mark.parametrize("separator", [" ", ",", ", ", "   ", " ,, "])
def test_spaces_and_commas_separate(separator: str) -> None:
    args = separator.join(["", "image=/a=b", "memory=1", ""])
    assert request(runtime_args=args) == EnclaveRequest(image="/a=b", memory_mib=1)


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("1", 1),
        ("512", 512),
        ("512M", 512),
        ("2G", 2048),
        ("3T", 3 << 20),
        (str(1 << 40), 1 << 40),
        (f"{1 << 20}T", 1 << 40),
    ],
)
def test_memory_is_mib_or_has_a_suffix(text: str, mib: int) -> None:
    assert request(runtime_args=f"memory={text}").memory_mib == mib


NONSENSE_NUMBERS = ["x", "-1", "+1", "1_0", "1.0", "1e3", "0x10", "010", "\u0663", "1\n", "\t1", "9" * 400]
OUT_OF_RANGE = [("vcpus", "0"), ("vcpus", "4097"), ("memory", "0"), ("memory", "0G"), ("memory", f"{(1 << 40) + 1}")]
BAD_CIDS = [("cid", str(cid)) for cid in (0, 1, 2, 3, (1 << 32) - 1, 1 << 32)]
BAD_MEMORY = [("memory", text) for text in ("512m", "2g", "1K", "1MiB", "1GB", "M", "1MM", "1.5G", "9999999T")]
BAD_IMAGES = [("image", path) for path in ("a", "./a", "~/a", "/a\0", "/a\n", "/\x1b[2J", "/\ud800", "/" + "a" * 4096)]
BAD_FLAGS = [("debug", word) for word in ("1", "yes", "True", "TRUE", "on")]
BAD_ARGUMENTS = [
    *((name, text) for name in ("memory", "vcpus", "cid") for text in NONSENSE_NUMBERS),
    *OUT_OF_RANGE,
    *BAD_CIDS,
    *BAD_MEMORY,
    *BAD_IMAGES,
    *BAD_FLAGS,
    *((argument.name, "") for argument in ARGUMENTS),
]


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS)
def test_a_nonsense_value_is_refused_by_the_name_of_its_argument(name: str, value: str) -> None:
    error = refusal(runtime_args=f"{name}={value}")
    assert error.key == "enclave.runtime.args"
    assert name in error.problem
    assert len(str(error)) < 400


@pytest.mark.parametrize(
    "args",
    [
        *(f"{argument.name}=s3cret" for argument in ARGUMENTS),
        "s3cret",
        "s3cret=1",
        "s3cret=",
        "=s3cret",
        "image=/s3cret\n",
        "image=/a image=/s3cret",
    ],
)
def test_a_value_of_a_variable_is_never_quoted(args: str) -> None:
    error = refusal((f"ENCLAVE_RUNTIME_ARGS={args}",))
    assert error.key == "ENCLAVE_RUNTIME_ARGS"
    assert "s3cret" not in str(error)


@pytest.mark.parametrize("args", ["memory=77777777T", "vcpus=77777777", "cid=77777777777"])
def test_nor_is_a_number_of_a_variable(args: str) -> None:
    assert "77777777" not in str(refusal((f"ENCLAVE_RUNTIME_ARGS={args}",)))


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ("image", "'image' is not of the form key=value"),
        ("memory=1 M", "'M' is not of the form key=value"),
        ("=", "the key '' is unknown"),
        ("cpus=1", "the key 'cpus' is unknown"),
        ("Memory=1", "the key 'Memory' is unknown"),
        ("memory=1 memory=1", "memory= is given twice"),
        ("memory=", "memory= has no value"),
        ("memory=0", f"memory=0 is not from 1 to {1 << 40} MiB"),
        ("vcpus=999999", "vcpus=999999 is not from 1 to 4096"),
        ("cid=3", "cid=3 is not from 4 to 4294967294"),
        ("image=a.eif", "image=a.eif is not an absolute path"),
    ],
)
def test_the_words_for_wrong_arguments(args: str, problem: str) -> None:
    assert refusal(runtime_args=args).problem == problem


@pytest.mark.parametrize("cid", [4, (1 << 32) - 2])
def test_the_first_and_the_last_address_can_be_had(cid: int) -> None:
    assert request(runtime_args=f"cid={cid}").cid == cid


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("0.5", 0.5), ("86400", 86400.0)])
def test_a_boot_may_be_given_a_time(text: str, seconds: float) -> None:
    assert request(boot_timeout=text).boot_timeout_s == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "86401", "1e3", "inf", "nan", "5s", " 5", "5\n", "1.", "\u0663"]
)
def test_a_nonsense_time_is_refused(text: str) -> None:
    assert refusal(boot_timeout=text).key == "enclave.boot.timeout"


@pytest.mark.parametrize("level", LogLevel)
def test_every_log_level_of_rune_is_known(level: LogLevel) -> None:
    assert request(runtime_loglevel=level.value.upper()) == EnclaveRequest(loglevel=level)


def test_warn_is_warning_and_nothing_is_info() -> None:
    assert request(runtime_loglevel="warn").loglevel == LogLevel.WARNING
    assert request(runtime_loglevel="") == EnclaveRequest(loglevel=LogLevel.INFO)


def test_an_unknown_log_level_is_info_with_a_note() -> None:
    found = request(runtime_loglevel="loud\n")
    assert found.loglevel == LogLevel.INFO
    assert found.notes == (r"enclave.runtime.loglevel: 'loud\n' is no log level; info is used",)
    assert "s3cret" not in " ".join(request(("ENCLAVE_RUNTIME_LOGLEVEL=s3cret",)).notes)


def test_the_path_of_a_library_is_noted_as_needless() -> None:
    found = request(runtime_path="/usr/lib/libpal_ne.so")
    assert found.notes == ("enclave.runtime.path is not needed: pyrune loads no enclave library",)
    assert request(runtime_path="").notes == ()


@pytest.mark.parametrize("name", ["ra_type", "ra_epid_spid", "ra_epid_subscription_key"])
def test_what_is_for_sgx_must_be_empty(name: str) -> None:
    key = f"enclave.attestation.{name}"
    assert enclave_request({"enclave.type": NITRO, key: ""}, ()) == EnclaveRequest()
    with pytest.raises(AnnotationError, match="SGX") as caught:
        enclave_request({"enclave.type": NITRO, key: "x"}, ())
    assert caught.value.key == key
    with pytest.raises(AnnotationError, match="SGX") as caught:
        enclave_request({"enclave.type": NITRO}, (f"{VARIABLES[key]}=x",))
    assert caught.value.key == VARIABLES[key]


def test_the_table_holds_every_key_once() -> None:
    assert {key.annotation: key.variable for key in KEYS} == {**VARIABLES, BOOT_TIMEOUT: None}
    assert len({key.annotation for key in KEYS}) == len(KEYS)
    assert all(row.meaning and row.default for row in (*KEYS, *ARGUMENTS))


ANNOTATION_KEYS = st.sampled_from([*VARIABLES, BOOT_TIMEOUT, "enclave.x"]) | st.text(max_size=10)
ENTRIES = st.builds("{}={}".format, st.sampled_from([*VARIABLES.values(), "X"]), st.text(max_size=20))
TEXTS = st.text(max_size=40) | st.sampled_from([NITRO, "image=/a", "memory=1G vcpus=2"])


@settings(deadline=None)
@given(st.dictionaries(ANNOTATION_KEYS, TEXTS, max_size=5), st.lists(ENTRIES | TEXTS, max_size=5), st.booleans())
def test_anything_at_all_is_taken_or_refused_in_our_words(
    annotations: dict[str, str], env: list[str], typed: bool
) -> None:
    if typed:
        annotations["enclave.type"] = NITRO
    try:
        found = enclave_request(annotations, tuple(env))
        said = found.notes if found else ()
    except AnnotationError as exc:
        said = (str(exc),)
    assert all(sentence.isprintable() for sentence in said)
