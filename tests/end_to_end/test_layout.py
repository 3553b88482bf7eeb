"""docs/architecture.md says who may import whom; this holds the code to it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "device": {"device"},
    "export": {"export", "device"},
    "firmware_sim": {"firmware_sim", "device"},
    "host": {"host", "export", "firmware_sim", "device"},
    "host/data": {"host.data", "device"},
    "host/depth": {"host.depth", "host.training", "host.networks", "host.data", "host.progress", "device"},
    "host/networks": {"host.networks", "host.data"},
    "host/session": {"host.session", "host.data", "host.lesson", "host.figures", "host.progress", "device"},
    "host/training": {"host.training", "host.networks", "host.data", "host.entropy", "host.progress", "device"},
    "host/paper": {"host", "device"},
}
TORCH = {"host", "export"}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def under(name: str, part: str) -> bool:
    """Whether a dotted name is `part` or lies in it."""
    return f"{name}.".startswith(f"{part}.")


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_import_only_what_they_may(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 3
    for path in files:
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top == "entropi" and rest:
                assert any(under(rest, part) or under(part, rest) for part in ALLOWED[folder]), f"{path} imports {name}"
            if top in ("torch", "torchvision"):
                assert folder.partition("/")[0] in TORCH, f"{path.name} imports {name}"
            if top == "tensorflow":
                assert path.name in ("tflite_worker.py", "train_worker.py")
            if top == "tflite_micro":
                assert path.name == "tflm_worker.py"


def test_every_folder_is_described():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for folder in ALLOWED:
        assert f"`{folder}/`" in text
        for path in (ROOT / folder).rglob("*.py"):
            assert path.read_text() == "" or ast.get_docstring(ast.parse(path.read_text())), f"{path} says nothing"
