"""Who may import whom. docs/architecture.md shows the same table; a module that it does not name fails here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pyrune

PACKAGE = Path(pyrune.__file__).parent

# Lowest first. A package (eif, local, ...) stands for all its modules, which may import each other.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "linux": set(),
    "reactor": set(),
    "log": {"errors"},
    "process": {"errors", "linux"},
    "document": {"errors"},
    "backend": {"reactor"},
    "enclave_type": {"document", "errors"},
    "annotations": {"document", "enclave_type", "errors"},
    "config": {"document", "errors"},
    "bundle": {"config", "document", "errors"},
    "spec": {"annotations", "document", "enclave_type", "errors"},
    "state": {"backend", "errors", "linux"},
    "terminal": {"errors", "linux"},
    "eif": {"errors"},
    "guest": {"eif", "errors", "process"},
    "compose": {"bundle", "config", "document", "eif", "errors"},
    "vsock": {"reactor"},
    "ne": {"backend", "eif", "errors", "linux", "process", "reactor", "vsock"},
    "local": {"backend", "eif", "errors", "linux", "process", "reactor", "vsock"},
    "backends": {"backend", "errors", "local", "ne"},
    "monitor": {"backend", "backends", "errors", "linux", "log", "process", "reactor", "state", "terminal"},
    "host": {"backend", "eif", "local", "ne", "process"},
    "runc": {"errors", "process"},
    "lifecycle": {
        *("annotations", "backend", "bundle", "document", "eif", "enclave_type", "errors", "linux", "log"),
        *("monitor", "process", "state", "terminal"),
    },
    "grammar": {"errors"},
    "answer": {"errors"},
    "eif_cli": {"answer", "compose", "eif", "errors", "grammar"},
    "cli": {
        *("annotations", "answer", "backend", "backends", "bundle", "config", "document", "eif_cli", "enclave_type"),
        *("errors", "grammar", "host", "lifecycle", "linux", "log", "process", "runc", "spec", "state"),
    },
    "__main__": {"cli"},
}


def _layer(module: str) -> str:
    """`pyrune.local.qmp` is of the layer `local`."""
    return module.split(".")[1]


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield ".".join(["pyrune", *(part for part in parts if part != "__init__")]), path


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "pyrune":
                yield from (f"pyrune.{alias.name}" for alias in node.names)
            elif node.module is not None:
                yield node.module


def test_every_module_has_a_layer() -> None:
    assert {_layer(module) for module, _ in _modules()} <= set(LAYERS)


def test_no_layer_imports_above_itself() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in _modules()
        for imported in _imports(path)
        if imported.startswith("pyrune.")
        and _layer(imported) not in (_layer(module), "__version__")
        and _layer(imported) not in LAYERS[_layer(module)]
    ]
    assert wrong == []


def test_the_table_has_no_circles() -> None:
    seen: set[str] = set()
    for layer, below in LAYERS.items():
        assert below <= seen, f"{layer} stands above what it imports"
        seen.add(layer)


def test_only_one_module_starts_programs() -> None:
    starters = [
        module
        for module, path in _modules()
        if "subprocess" in _imports(path) or "os.fork" in path.read_text() or "os.exec" in path.read_text()
    ]
    # The guest's build is a program of the project's own making, not part of the runtime.
    assert [module for module in starters if not module.startswith("pyrune.guest")] == ["pyrune.process"]
