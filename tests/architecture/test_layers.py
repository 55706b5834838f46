"""The layers of the design: what may import what, and that the linter would see a breach."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = sorted(path.stem for path in (ROOT / "export" / "systems").glob("[a-z]*.py"))
PACKAGE = ROOT / ".src" / "jscc"
FOLDERS = ("benchmarks", "calibration", "export", "kernels", "runtime")

# One forbidden import per line: the importing module, what it imports.
BREACHES = (
    ("kernels", "jscc.runtime"),
    ("kernels", "jscc.export"),
    ("kernels", "onnxruntime"),
    ("kernels", "PIL"),
    ("kernels", "torch"),
    ("runtime", "jscc.export"),
    ("runtime", "jscc.calibration"),
    ("runtime", "jscc.benchmarks"),
    ("runtime", "torch"),
    ("runtime", "onnx"),
    ("runtime", "openvino"),
    ("runtime", "triton"),
    ("runtime", "scipy"),
    ("runtime", "safetensors"),
    ("calibration", "jscc.export"),
    ("calibration", "jscc.kernels"),
    ("calibration", "jscc.benchmarks"),
    ("export", "jscc.calibration"),
    ("export", "jscc.benchmarks"),
)
LAWFUL = (
    ("export", "jscc.runtime"),
    ("export", "jscc.kernels"),
    ("export", "torch"),
    ("calibration", "jscc.runtime"),
    ("runtime", "jscc.kernels"),
    ("runtime", "onnxruntime"),
    ("runtime", "PIL"),
    ("kernels", "numpy"),
    ("benchmarks", "jscc.runtime"),
    ("benchmarks", "jscc.export"),
)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def lint_planted(tree: Path, imports: tuple[tuple[str, str], ...]) -> str:
    """Run the project's contracts over an empty `jscc` that holds only `imports`."""
    for folder in FOLDERS:
        (tree / "jscc" / folder).mkdir(parents=True)
        (tree / "jscc" / folder / "__init__.py").touch()
    (tree / "jscc" / "__init__.py").touch()
    (tree / "jscc" / "__main__.py").touch()
    for index, (folder, target) in enumerate(imports):
        (tree / "jscc" / folder / f"planted_{index}.py").write_text(f"import {target}\n")
    shutil.copy(ROOT / "pyproject.toml", tree)
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    ran = subprocess.run(
        [sys.executable, "-c", command], cwd=tree, capture_output=True, text=True, check=False
    )
    assert "Could not" not in ran.stdout + ran.stderr, ran.stdout + ran.stderr
    return ran.stdout


def test_the_contracts_see_every_breach(tmp_path):
    report = lint_planted(tmp_path, BREACHES)
    missed = [
        f"jscc.{folder} -> {target}"
        for index, (folder, target) in enumerate(BREACHES)
        if f"jscc.{folder}.planted_{index} -> {target}" not in report
    ]
    assert missed == []


def test_the_contracts_allow_what_the_design_allows(tmp_path):
    report = lint_planted(tmp_path, LAWFUL)
    assert "4 kept, 0 broken" in report, report


@pytest.mark.parametrize("folder", FOLDERS)
def test_source_folders_are_linked_relatively(folder):
    link = PACKAGE / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{folder}"
    assert link.resolve() == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_source_folder_is_a_package(folder):
    bare = {
        path.parent.relative_to(ROOT).as_posix()
        for path in modules(folder)
        if not (path.parent / "__init__.py").is_file()
    }
    assert bare == set()


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_imports_from_a_package_root(folder):
    """`from jscc.runtime import x` is for modules x only: roots define nothing to import."""
    found = []
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(path, a.name) for a in node.names if is_root(a.name)]
            elif isinstance(node, ast.ImportFrom) and is_root(node.module or ""):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [(path, name) for name in names if not is_module(name)]
    assert [f"{path.relative_to(ROOT)}: {name}" for path, name in found] == []


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_root(name: str) -> bool:
    return name == "jscc" or name in {f"jscc.{folder}" for folder in FOLDERS}


def test_test_files_have_unique_names():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def names_of_systems(text: str) -> list[str]:
    """Names of systems in `text`, however their words are joined."""
    words = "|".join(name.replace("_", "[-_ ]?") for name in SYSTEMS)
    return re.findall(rf"(?<![a-z])(?:{words})(?![a-z])", text, re.IGNORECASE)


@pytest.mark.parametrize("path", modules("runtime"), ids=lambda path: path.name)
def test_the_runtime_names_no_system(path):
    assert names_of_systems(path.read_text(encoding="utf-8")) == []


def test_a_system_s_name_would_be_seen():
    assert {"deepjscc", "diffjscc", "sing_zero"} <= set(SYSTEMS)
    for text in ("if system == 'sing_zero':", "as DiffJSCC does", "for SING-Zero and others"):
        assert len(names_of_systems(text)) == 1
    assert names_of_systems("single processing steps of jscc") == []
