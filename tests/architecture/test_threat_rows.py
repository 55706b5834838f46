"""Every fault that this version answers for has a test that names its row."""

import ast
import re
from pathlib import Path

ATTACKS = Path(__file__).resolve().parents[1] / "attacks"

# Rows of the fault table: checkpoints and export, bundles, symbols, engines, outputs.
REQUIRED = {*range(1, 9), *range(15, 23), *range(26, 38), *range(49, 53), 55}


def test_every_required_row_has_a_test():
    rows = {
        int(found.group(1))
        for path in ATTACKS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (found := re.match(r"test_row_(\d\d)_", node.name))
    }
    assert sorted(REQUIRED - rows) == []
