"""The choice of a back end: confidential by default, a plain virtual machine only when it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrune import backends
from pyrune.backend import BackendName, boot_deadline_s
from pyrune.backends import AUTO, choose_backend, load_backend
from pyrune.errors import BackendError
from tests.support.programs import output_of


def test_auto_is_nitro_where_there_is_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NITRO_DEVICE", Path("/dev/null"))
    assert choose_backend(AUTO) is BackendName.NITRO


@pytest.mark.parametrize("kind", ["nothing", "file", "directory"])
def test_auto_never_means_a_plain_virtual_machine(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "nitro_enclaves"
    if kind == "file":
        place.touch()
    elif kind == "directory":
        place.mkdir()
    monkeypatch.setattr(backends, "NITRO_DEVICE", place)
    with pytest.raises(BackendError) as caught:
        choose_backend(AUTO)
    text = str(caught.value)
    assert text.endswith("--backend local, or PYRUNE_BACKEND=local")
    # docker would take these words for a command that was not found.
    assert "no such file" not in text.lower()
    assert "not found" not in text.lower()


@pytest.mark.parametrize("name", BackendName)
def test_what_is_named_is_taken(name: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NITRO_DEVICE", Path("/nowhere"))
    assert choose_backend(name.value) is name


@pytest.mark.parametrize("name", BackendName)
def test_only_the_chosen_back_end_is_loaded(name: BackendName) -> None:
    load_backend(name)
    code = f"""
import sys
from pyrune.backend import BackendName
from pyrune.backends import load_backend
assert not [module for module in sys.modules if module.startswith(("pyrune.local.", "pyrune.ne."))]
load_backend(BackendName({name.value!r}))
print(*sorted({{module.split(".")[1] for module in sys.modules if module.startswith(("pyrune.local.", "pyrune.ne."))}}))
"""
    assert output_of(code).split() == [{"local": "local", "nitro": "ne"}[name.value]]


@pytest.mark.parametrize(
    ("image_bytes", "memory_mib", "seconds"),
    [
        *((1, 1, 180), (6 << 30, 100 << 10, 180), ((6 << 30) + 1, 100 << 10, 270), (6 << 30, (100 << 10) + 1, 270)),
        (60 << 30, 1000 << 10, 1800),
    ],
)
def test_a_boot_may_take_longer_the_more_there_is_to_load(image_bytes: int, memory_mib: int, seconds: float) -> None:
    assert boot_deadline_s(image_bytes, memory_mib) == seconds
