"""pyrune under the emulated driver, as the tests call it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tests.emulated_driver.machine import NitroMachine
from tests.support.command import Pyrune, wait_until

MEETING = Path("/run/pyrune-heartbeat")
# The calls of a create, and of a start, of an enclave with one region and two vCPUs.
CREATE = ("open", "NE_CREATE_VM", "NE_GET_IMAGE_LOAD_INFO", "NE_SET_USER_MEMORY_REGION", "NE_ADD_VCPU", "NE_ADD_VCPU")
START = ("bind", "listen", "NE_START_ENCLAVE")


class Nitro(Pyrune):
    """Every call runs on `machine`."""

    def __init__(self, directory: Path, machine: NitroMachine) -> None:
        super().__init__(directory, backend="nitro")
        self.machine = machine

    def argv(self, *arguments: str) -> list[str]:
        return [*self.machine.prefix, *super().argv(*arguments)]

    def nitro_bundle(self, image: Path, *, memory: str = "64", vcpus: str = "2", more: str = "") -> Path:
        """A bundle; `more` goes into enclave.runtime.args, such as "debug=true cid=99"."""
        arguments = f"image={image} memory={memory} {f'vcpus={vcpus}' if vcpus else ''} {more}"
        path = self.directory / f"bundle-{len(list(self.directory.glob('bundle-*')))}"
        (path / "rootfs").mkdir(parents=True)
        config = {
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}, "env": []},
            "root": {"path": "rootfs"},
            "annotations": {"enclave.type": "AwsNitroEnclaves", "enclave.runtime.args": arguments},
        }
        (path / "config.json").write_text(json.dumps(config))
        return path

    def create(self, container_id: str, bundle: Path) -> None:
        self.ok("create", "--bundle", str(bundle), container_id)

    def refused(self, *arguments: str) -> str:
        """A call that must fail with status 1. Returns its message."""
        done = self(*arguments)
        assert done.returncode == 1, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stderr.count("level=error") == 1, done.stderr
        _, _, message = done.stderr.partition("msg=")
        return str(json.loads(message))

    def annotations(self, container_id: str) -> Mapping[str, str]:
        """Those of `state` that pyrune has added, without their common prefix."""
        found = json.loads(self.ok("state", container_id))["annotations"]
        start = "enclave.state."
        return {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}

    def wait_for_status(self, container_id: str, status: str) -> None:
        wait_until(lambda: self.status(container_id) == status, f"{container_id} does not become {status}")

    def require_nothing_left(self) -> None:
        """Whatever was taken is back: slots, cores, huge pages, containers, the place where starters meet."""
        wait_until(lambda: not self.machine.leaks(), f"left: {self.machine.leaks()}", timeout_s=10)
        assert sorted(path.name for path in self.root.glob("*")) == []
        if MEETING.is_dir():
            names = [name for name in os.listdir(MEETING) if int(name.partition(".")[0]) in self.machine.programs]
            assert names == []
