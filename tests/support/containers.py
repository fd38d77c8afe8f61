"""Records of containers, as `create` writes them."""

from __future__ import annotations

import os

from pyrune.linux import ProcessIdentity
from pyrune.state import ContainerRecord, Status


def new_record(container_id: str = "c1", creator: ProcessIdentity | None = None) -> ContainerRecord:
    """The first record of a container, whose creator is the calling process unless another is named."""
    return ContainerRecord(
        oci_version="1.0.2",
        id=container_id,
        bundle="/bundle",
        rootfs="/bundle/rootfs",
        created="2024-01-01T00:00:00.000000Z",
        annotations={"enclave.type": "AwsNitroEnclaves"},
        written_status=Status.CREATING,
        creator=creator or ProcessIdentity.of(os.getpid()),
    )
