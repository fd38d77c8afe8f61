"""Whole lives of enclaves, and what the driver saw of them, in order."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from pyrune.eif.measure import measure
from pyrune.eif.reader import EifImage
from tests.emulated_driver.scenario import Behaviour, Heartbeat
from tests.nitro.conftest import NitroMaker
from tests.nitro.nitro import CREATE, START
from tests.unit.eif.images import RAMDISK, SIGNATURE, SMALL, Layout
from tests.unit.eif.signing import certificate_for, signer


def test_a_life_from_create_to_delete_is_these_calls_in_this_order(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    machine = pyrune.machine
    pyrune.create("one", pyrune.nitro_bundle(image))
    assert pyrune.status("one") == "created"
    assert machine.calls("open", "socket", "bind", "listen", *(name for name in CREATE)) == [*CREATE, "socket"]
    [enclave] = machine.enclaves
    assert (enclave.state, enclave.memory_bytes, enclave.vcpus) == ("init", 64 << 20, [1, 5])

    pyrune.ok("start", "one")
    assert pyrune.status("one") == "running"
    assert machine.calls() == [*CREATE, "socket", *START, "accept"]
    [found] = machine.events("image")
    assert (found["good"], found["compared_bytes"], found["moved_pages"]) == (True, image.stat().st_size, 0)
    assert machine.events("heartbeat")[0]["answered"]

    pyrune.ok("kill", "one", "TERM")
    pyrune.wait_for_status("one", "stopped")
    assert machine.leaks() == []
    record = json.loads(pyrune.file("one", "enclave.json"))
    assert record["exit_status"] == 143
    pyrune.ok("delete", "one")
    assert machine.calls() == [*CREATE, "socket", *START, "accept"]


def test_state_tells_cid_measurements_and_back_end(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    with EifImage.open(image) as opened:
        pcrs = measure(opened)
    known = {"backend": "nitro", "memory_mib": "64", "vcpus": "2"}
    known |= {"pcr0": pcrs.pcr0, "pcr1": pcrs.pcr1, "pcr2": pcrs.pcr2}
    assert pyrune.annotations("one") == known
    pyrune.ok("start", "one")
    assert pyrune.annotations("one") == known | {"cid": "16"}


def test_a_heartbeat_before_the_start_returns_is_answered(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(heartbeat=Heartbeat.BEFORE),))
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("start", "one")
    assert pyrune.status("one") == "running"
    assert pyrune.machine.events("heartbeat")[0]["answered"]


def test_an_enclave_that_ends_by_itself_gives_status_0(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(exit_after_s=0.5),))
    assert pyrune("run", "--bundle", str(pyrune.nitro_bundle(image)), "one").returncode == 0
    assert pyrune.machine.leaks() == []


def test_kill_ends_it_and_the_driver_has_everything_back(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("start", "one")
    pyrune.ok("kill", "one", "KILL")
    pyrune.wait_for_status("one", "stopped")
    pyrune.ok("delete", "one")
    assert pyrune.machine.leaks() == []


def test_delete_force_ends_a_running_enclave(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("start", "one")
    pyrune.ok("delete", "--force", "one")
    assert pyrune.machine.leaks() == []


def test_a_created_enclave_is_given_back_without_having_run(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("kill", "one", "TERM")
    pyrune.wait_for_status("one", "stopped")
    assert pyrune.machine.leaks() == []
    pyrune.ok("delete", "one")
    assert "NE_START_ENCLAVE" not in pyrune.machine.calls()


def test_a_given_cid_is_the_enclaves(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, more="cid=1234"))
    assert pyrune.annotations("one")["cid"] == "1234"
    pyrune.ok("start", "one")
    assert [enclave.cid for enclave in pyrune.machine.enclaves] == [1234]


def test_an_odd_count_of_vcpus_is_rounded_up_to_full_cores(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, vcpus="3"))
    assert pyrune.annotations("one")["vcpus"] == "4"
    pyrune.ok("start", "one")
    assert "4 vCPUs instead of 3: only full cores" in pyrune.file("one", "monitor.log")


def test_named_cpus_are_the_enclaves(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, vcpus="", more="cpu_ids=6:2"))
    assert pyrune.annotations("one")["vcpus"] == "2"
    pyrune.ok("start", "one")
    assert [enclave.vcpus for enclave in pyrune.machine.enclaves] == [[6, 2]]


def test_half_a_core_by_name_is_refused_by_the_driver(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, vcpus="", more="cpu_ids=2"))
    message = pyrune.refused("start", "one")
    assert "the enclave has only one of two CPUs of a core (error 269); give it both" in message
    assert pyrune.machine.leaks() == []


def test_a_named_cpu_that_is_another_enclaves_is_told(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(pages=66)
    pyrune.create("one", pyrune.nitro_bundle(image, vcpus="", more="cpu_ids=2:6"))
    bundle = pyrune.nitro_bundle(image, vcpus="", more="cpu_ids=1:6")
    message = pyrune.refused("create", "--bundle", str(bundle), "two")
    assert message.startswith("CPU 6 cannot be given to the enclave (NE_ADD_VCPU): that CPU is not free in the enclave")
    assert len(pyrune.machine.enclaves) == 1


def test_an_odd_size_is_rounded_up_and_the_excess_noted(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, memory="65"))
    assert pyrune.annotations("one")["memory_mib"] == "66"
    assert "memory of 66 MiB in 1 region" in pyrune.file("one", "monitor.log")


# Debug mode


def test_in_debug_mode_the_console_goes_to_standard_output_from_its_first_byte(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(console="first words\nlast words\n", exit_after_s=0.5),))
    done = pyrune("run", "--bundle", str(pyrune.nitro_bundle(image, more="debug=true")), "one")
    assert (done.returncode, done.stdout) == (0, "first words\nlast words\n")


def test_in_debug_mode_the_console_stays_readable_until_delete(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(console="panic: no such luck\n", heartbeat=Heartbeat.NEVER, exit_after_s=0.3),))
    pyrune.create("one", pyrune.nitro_bundle(image, more="debug=true"))
    message = pyrune.refused("start", "one")
    assert message == "the enclave powered off before it had booted; its console ended with: panic: no such luck"
    assert pyrune.status("one") == "stopped"
    assert pyrune.file("one", "console.log") == "panic: no such luck\n"
    pyrune.ok("delete", "one")
    assert not (pyrune.root / "one").exists()


def test_a_panic_on_the_console_gives_status_255_and_its_line(nitro: NitroMaker, image: Path) -> None:
    panic = "[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\n"
    pyrune = nitro(enclaves=(Behaviour(console=panic, exit_after_s=0.5),))
    done = pyrune("run", "--bundle", str(pyrune.nitro_bundle(image, more="debug=true")), "one")
    assert done.returncode == 255


def test_in_debug_mode_state_shows_zeros_beside_the_images_pcrs(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    pyrune.create("one", pyrune.nitro_bundle(image, more="debug=true"))
    with EifImage.open(image) as opened:
        pcrs = measure(opened)
    found = pyrune.annotations("one")
    assert found["debug"] == "true"
    assert {found[name] for name in ("pcr0", "pcr1", "pcr2")} == {"0" * 96}
    assert (found["image_pcr0"], found["image_pcr1"], found["image_pcr2"]) == (pcrs.pcr0, pcrs.pcr1, pcrs.pcr2)


def test_without_debug_mode_the_log_says_once_that_there_is_no_console(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(console="nobody hears this\n"),))
    pyrune.create("one", pyrune.nitro_bundle(image))
    pyrune.ok("start", "one")
    assert pyrune.file("one", "monitor.log").count("it has no console") == 1
    assert "connect" not in pyrune.machine.calls()
    assert not pyrune.machine.enclaves[0].debug


# A boot that does not come to its end


def test_a_boot_without_heartbeat_has_a_deadline(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(heartbeat=Heartbeat.NEVER),))
    bundle = pyrune.nitro_bundle(image)
    config = json.loads((bundle / "config.json").read_text())
    config["annotations"]["enclave.boot.timeout"] = "1"
    (bundle / "config.json").write_text(json.dumps(config))
    pyrune.create("one", bundle)
    assert pyrune.refused("start", "one") == "the enclave has not booted within 1 s"
    assert pyrune.machine.leaks() == []


def test_a_wrong_heartbeat_boots_nothing(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(heartbeat_byte=0x42),))
    pyrune.create("one", pyrune.nitro_bundle(image))
    assert pyrune.refused("start", "one") == "the enclave powered off before it had booted"


def test_a_beat_of_another_cid_boots_nothing(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(enclaves=(Behaviour(), Behaviour(heartbeat=Heartbeat.NEVER)), pages=66)
    pyrune.create("first", pyrune.nitro_bundle(image))
    pyrune.ok("start", "first")
    pyrune.create("second", pyrune.nitro_bundle(image))
    start = pyrune.machine.start(super(type(pyrune), pyrune).argv("start", "second"))
    pyrune.machine.wait_for_event("image", 2)
    assert pyrune.machine.control("beat", enclave=1) == {"answered": False}
    assert start.poll() is None
    assert pyrune.status("second") == "created"
    pyrune.ok("kill", "second", "KILL")
    assert pyrune.machine.finish(start).returncode == 1


# What is refused before anything is taken


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (
            "62",
            "the enclave is given 62 MiB of memory, and no enclave may have less than 64 MiB; say memory=64 or more",
        ),
        (
            "2G",
            "the enclave needs 2048 MiB in huge pages on NUMA node 0; free there: 34 of 2 MiB; raise memory_mib in ",
        ),
    ],
)
def test_memory_that_cannot_be_is_refused(nitro: NitroMaker, image: Path, memory: str, message: str) -> None:
    pyrune = nitro(pages=34)
    found = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image, memory=memory)), "one")
    assert found.startswith(message)
    assert pyrune.machine.leaks() == []
    assert ("NE_CREATE_VM" in pyrune.machine.calls()) == (memory == "2G")


def test_memory_on_another_node_than_the_pools_is_none(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(numa_node=1)
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    assert message.startswith("the enclave needs 64 MiB in huge pages on NUMA node 1; free there: none; ")
    assert pyrune.machine.leaks() == []


def test_less_than_four_times_the_image_is_refused_with_the_reason(nitro: NitroMaker, tmp_path: Path) -> None:
    large = tmp_path / "large.eif"
    flags = int(os.uname().machine == "aarch64")
    large.write_bytes(Layout([*SMALL, (RAMDISK, bytes(17 << 20))], flags=flags).build())
    pyrune = nitro()
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(large)), "one")
    assert message == (
        "the enclave is given 64 MiB of memory, and its image of 18 MiB needs 4 times its size: it stays in memory "
        "while its kernel unpacks the ramdisks beside it; say memory=70 or more"
    )
    assert pyrune.machine.calls() == []


def test_an_image_for_other_processors_is_refused(nitro: NitroMaker, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.eif"
    foreign.write_bytes(Layout(flags=int(os.uname().machine != "aarch64")).build())
    pyrune = nitro()
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(foreign)), "one")
    assert f"and this machine's are {os.uname().machine}" in message
    assert pyrune.machine.calls() == []


def test_a_damaged_image_is_refused_and_everything_given_back(nitro: NitroMaker, image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.eif"
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    pyrune = nitro()
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(damaged)), "one")
    assert "it is damaged: its checksum is 0x" in message
    assert "NE_SET_USER_MEMORY_REGION" not in pyrune.machine.calls()
    assert pyrune.machine.leaks() == []


def test_a_signature_for_another_image_is_refused(nitro: NitroMaker, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    someone = dataclasses.replace(signer(), key=key, certificate=certificate_for(key, days=36500))
    signed = tmp_path / "signed.eif"
    flags = int(os.uname().machine == "aarch64")
    signed.write_bytes(Layout([*SMALL, (SIGNATURE, someone.section("ab" * 48))], flags=flags).build())
    pyrune = nitro()
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(signed)), "one")
    assert "its signature does not hold: the signature is for another PCR0 than the image has" in message
    assert pyrune.machine.leaks() == []


def test_an_expired_signature_is_refused_before_anything_is_taken(nitro: NitroMaker, tmp_path: Path) -> None:
    signed = tmp_path / "signed.eif"
    flags = int(os.uname().machine == "aarch64")
    signed.write_bytes(Layout([*SMALL, (SIGNATURE, signer().section("ab" * 48))], flags=flags).build())
    pyrune = nitro()
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(signed)), "one")
    assert "its signature does not hold: the signing certificate is valid only from Apr" in message
    assert pyrune.machine.calls() == []


def test_more_vcpus_than_the_pool_has_are_refused(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro()
    assert pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image, vcpus="6")), "one").startswith(
        "the enclave is given 6 vCPUs, more than the enclave CPU pool of 4 CPUs (1-2,5-6) has; say vcpus=4 or less"
    )
    assert pyrune.machine.calls() == []


def test_more_vcpus_than_are_free_are_refused_with_how_many_are(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(pages=66)
    pyrune.create("one", pyrune.nitro_bundle(image))
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image, vcpus="4")), "two")
    assert "the enclave is given 4 vCPUs, but only 2 are free in the enclave CPU pool of 4 CPUs (1-2,5-6)" in message
    assert "stop another enclave, or raise cpu_count" in message
    assert len(pyrune.machine.enclaves) == 1


def test_no_device_is_told_with_how_to_get_one(nitro: NitroMaker, image: Path) -> None:
    pyrune = nitro(device=False)
    message = pyrune.refused("create", "--bundle", str(pyrune.nitro_bundle(image)), "one")
    assert message.startswith("/dev/nitro_enclaves cannot be opened: the device is missing (error 2); launch the inst")
