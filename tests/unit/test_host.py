"""`pyrune check`: what it says of machines, here directory trees that look like them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pyrune.backend import BackendName
from pyrune.host import Finding, Verdict, can_run, look_over
from tests.support.command import COMMAND

Tree = Callable[[Mapping[str, str]], Path]

ALLOCATED = {
    "sys/module/nitro_enclaves/parameters/ne_cpus": "1,3\n",
    "sys/module/vsock/refcnt": "1\n",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,2\n",
    "sys/devices/system/node/node0/cpulist": "0,2\n",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages": "256\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "256\n",
    "sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages": "0\n",
    "etc/nitro_enclaves/allocator.yaml": "---\n# MiB\nmemory_mib: 512\ncpu_count: 2\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def plant(files: Mapping[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return plant


def _about(subject: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.subject == subject]


def test_a_machine_with_nothing_lacks_what_nitro_needs_and_says_how_to_get_it(tree: Tree) -> None:
    findings = look_over(tree({}))
    assert not can_run(BackendName.NITRO, findings)
    missing = {f.subject: f for f in findings if f.verdict is Verdict.MISSING and f.backend is BackendName.NITRO}
    assert set(missing) == {"device", "driver", "cpu pool", "huge pages", "vsock"}
    assert all(finding.remedy for finding in missing.values())


def test_a_machine_that_is_set_up_lacks_only_the_device(tree: Tree) -> None:
    findings = look_over(tree(ALLOCATED))
    nitro = [f for f in findings if f.backend is BackendName.NITRO and f.verdict is Verdict.MISSING]
    assert [finding.subject for finding in nitro] == ["device"]
    assert _about("cpu pool", findings)[0].text == "2 CPUs (1,3) on NUMA node 0"
    assert "256 of 2 MiB" in _about("huge pages", findings)[0].text
    assert "memory_mib 512, cpu_count 2" in _about("allocator", findings)[0].text


def test_half_a_core_in_the_pool_is_missing_the_other_half(tree: Tree) -> None:
    findings = look_over(tree(ALLOCATED | {"sys/module/nitro_enclaves/parameters/ne_cpus": "1\n"}))
    assert [f.verdict for f in _about("cpu pool", findings)] == [Verdict.READY, Verdict.MISSING]


def test_too_few_huge_pages_are_told_with_the_least_that_is_needed(tree: Tree) -> None:
    few = {name: "31\n" for name in ALLOCATED if name.endswith("free_hugepages")}
    (finding,) = _about("huge pages", look_over(tree(ALLOCATED | few)))
    assert finding.verdict is Verdict.MISSING
    assert "31 of 2 MiB; an enclave needs 64 MiB or more" in finding.text


def test_an_allocator_file_with_both_ways_to_name_cpus_is_noted(tree: Tree) -> None:
    both = {"etc/nitro_enclaves/allocator.yaml": "memory_mib: 512\ncpu_count: 2 # two\ncpu_pool: 1,3\n"}
    assert [f.verdict for f in _about("allocator", look_over(tree(both)))] == [Verdict.READY, Verdict.NOTED]


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ('{"runtimes": {"enclave": {"path": "/opt/bin/pyrune"}}}', Verdict.READY),
        ('{"runtimes": {"runc": {"path": "/usr/bin/runc"}}}', Verdict.NOTED),
        ('{"runtimes": null}', Verdict.NOTED),
        ("{", Verdict.NOTED),
        ("[]", Verdict.NOTED),
    ],
)
def test_the_docker_entry_is_looked_for_by_its_program(tree: Tree, content: str, verdict: Verdict) -> None:
    (finding,) = _about("docker", look_over(tree({"etc/docker/daemon.json": content})))
    assert finding.verdict is verdict


def test_the_command_prints_a_line_or_a_json_object_for_each_finding() -> None:
    environment = {"PATH": os.environ["PATH"]}
    text, listed = (
        subprocess.run(
            [COMMAND, "--backend", "local", "check", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        for options in ([], ["--json"])
    )
    findings = json.loads(listed.stdout)
    assert {"subject", "verdict", "text", "remedy", "backend"} == set(findings[0])
    for finding in findings:
        assert f"{finding['subject']}: {finding['text']}" in text.stdout
    lacks = any(f["verdict"] == "missing" and f["backend"] == "local" for f in findings)
    assert text.returncode == listed.returncode == int(lacks)
