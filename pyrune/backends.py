"""Which back end runs an enclave: the choice, and the one place that imports either.

`auto` never means a virtual machine without protection: a workload that was meant to be confidential does not slip into
one because a device is missing.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyrune.backend import Backend, BackendName
from pyrune.errors import BackendError

AUTO = "auto"
NITRO_DEVICE = Path("/dev/nitro_enclaves")
ENVIRONMENT_VARIABLE = "PYRUNE_BACKEND"


def choose_backend(wanted: str) -> BackendName:
    """What `wanted` (auto, nitro or local) means on this machine. Raises BackendError."""
    if wanted != AUTO:
        return BackendName(wanted)
    if _is_device(NITRO_DEVICE):
        return BackendName.NITRO
    raise BackendError(
        f"this machine has no Nitro Enclaves: the device {NITRO_DEVICE} is missing",
        remedy=f"to run the image in a local virtual machine, which protects nothing, say so: "
        f"--backend local, or {ENVIRONMENT_VARIABLE}=local",
    )


def load_backend(name: BackendName) -> Backend:
    """The back end itself."""
    match name:
        case BackendName.LOCAL:
            from pyrune.local.backend import LocalBackend

            return LocalBackend()
        case BackendName.NITRO:
            from pyrune.ne.backend import NitroBackend

            return NitroBackend()


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False
