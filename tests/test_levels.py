"""Imports point down only: the levels of docs/architecture.md, walked by `ast`."""

import ast
from pathlib import Path

import pytest

LEVELS = {
    "typing": 0,
    "kv": 1,
    "rope": 1,
    "kernels": 2,
    "compiled": 2,
    "memory": 3,
    "mixers": 3,
    "decoder": 4,
    "data": 5,
    "models": 5,
    "bound": 6,
    "loop": 6,
    "asking": 6,
    "finite": 6,
    "programs": 6,
    "pieces": 6,
    "saved_form": 6,
    "saves": 6,
    "saving": 6,
    "resuming": 6,
    "training": 6,
    "report": 6,
    "feeding": 6,
    "replies": 6,
    "session": 7,
    "serve": 8,
    "experiments": 9,
}
CORE = ("typing", "kv", "rope", "kernels", "memory", "mixers")
CORE_PACKAGES = {"jax", "jaxtyping", "numpy"}
ROOT = Path(__file__).resolve().parent.parent / "jaxmem"
FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "jaxmem":
                names |= {f"jaxmem.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            names.add(".relative")
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    mine = LEVELS[part_of(path)]
    for name in imported(path):
        assert name != ".relative", f"{path} uses a relative import; write the full name"
        if name.startswith("jaxmem."):
            theirs = LEVELS[name.split(".")[1]]
            same = name.split(".")[1] == part_of(path)
            assert theirs < mine or theirs == mine, f"{path} (level {mine}) imports {name}"
            if part_of(path) in CORE:
                assert same or theirs < mine


def test_core_imports_jax_only():
    for path in FILES:
        if part_of(path) not in CORE:
            continue
        for name in imported(path):
            top = name.split(".")[0]
            stdlib = top in __import__("sys").stdlib_module_names
            assert stdlib or top == "jaxmem" or top in CORE_PACKAGES, f"{path} imports {name}"


def test_every_level_is_known():
    assert {part_of(p) for p in FILES} <= set(LEVELS)
