"""Every public module, class, function and method says what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("benchmarks", "calibration", "export", "kernels", "runtime", ".src")
MODULES = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
# A torch module's class docstring describes its one method.
UNDOCUMENTED = {"forward"}

Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def public(node: Node, where: str) -> Iterator[tuple[str, Node]]:
    """`node` and all public definitions below it that can be reached by name."""
    yield where, node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and not child.name.startswith("_") and child.name not in UNDOCUMENTED:
            yield from public(child, f"{where}.{child.name}")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bare = [where for where, node in public(tree, path.stem) if not ast.get_docstring(node)]
    assert bare == []
