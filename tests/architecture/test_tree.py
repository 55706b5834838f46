"""What may lie in the project, and what its source may not say or call."""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("benchmarks", "calibration", "export", "kernels", "runtime", ".src")
TOP_LEVEL = {
    *("CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml"),
    *("benchmarks", "calibration", "export", "kernels", "runtime", "tests"),
}
# Absolute paths of the machine that somebody happened to work on. The pattern is put together
# so that this file does not hold what it looks for.
MACHINE_PATH = re.compile(
    "(?<![A-Za-z0-9_.])/(?:" + "|".join(["work", "farm", "home/[a-z]+", "root"]) + ")/"
)
MAX_FILE_MIB = 40

# Modules that may do what nobody else may, each with the reason.
AUDITED = {
    # What one of its own worker processes wrote a moment before, without pickles.
    "benchmarks/guided.py": {"numpy.load"},
    "benchmarks/peer_case.py": {"numpy.load"},
    # A SafeLoader that refuses duplicate keys too.
    "export/config.py": {"yaml.load"},
}
BANNED_IMPORTS = {
    *("cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"),
}
BANNED_CALLS = {
    *("eval", "exec", "compile", "os.system", "os.popen"),
    *("numpy.load", "numpy.fromfile", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("shutil.unpack_archive", "pandas.read_pickle", "torch.jit.load"),
}


def python_sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield name, ast.parse(path.read_text(encoding="utf-8"), filename=name)


def test_the_top_level_holds_what_is_agreed(project_files):
    found = {name.partition("/")[0] for name in project_files}
    assert {name for name in found if not name.startswith(".")} <= TOP_LEVEL


def test_links_are_relative_and_stay_inside(project_files):
    links = [name for name in project_files if (ROOT / name).is_symlink()]
    assert sorted(links) == [
        f".src/jscc/{folder}" for folder in sorted(SOURCES) if folder[0] != "."
    ]
    for link in links:
        target = os.readlink(ROOT / link)
        assert not os.path.isabs(target)
        assert (ROOT / link).resolve().is_relative_to(ROOT)


def test_no_file_names_a_machine_path(project_files):
    found = []
    for name in project_files:
        data = (ROOT / name).read_bytes() if not (ROOT / name).is_symlink() else b""
        if b"\0" not in data:
            text = data.decode("utf-8", "replace")
            found += [f"{name}: {hit.group()}" for hit in MACHINE_PATH.finditer(text)]
    assert found == []


def test_no_file_is_oversized(project_files):
    sizes = {name: (ROOT / name).lstat().st_size / 2**20 for name in project_files}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_MIB} == {}


def breaches(tree: ast.Module) -> Iterator[str]:
    """Names of the dangerous imports and calls in `tree`."""
    aliases = {"np": "numpy", "_pickle": "pickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name] = alias.name
                if alias.name.partition(".")[0] in BANNED_IMPORTS:
                    yield alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = full
            if (node.module or "").partition(".")[0] in BANNED_IMPORTS:
                yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call):
            yield from dangerous_call(node, aliases)


def dangerous_call(node: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    name = ast.unparse(node.func)
    head, dot, rest = name.partition(".")
    name = aliases.get(head, head) + dot + rest
    keywords = {word.arg: word.value for word in node.keywords}
    if name in BANNED_CALLS:
        yield name
    if name.endswith((".extractall", ".recv_pyobj")):
        yield name.rpartition(".")[2]
    if name == "torch.load" and ast.unparse(keywords.get("weights_only", node)) != "True":
        yield "torch.load without weights_only=True"
    if "shell" in keywords and ast.unparse(keywords["shell"]) != "False":
        yield "shell=True"


def test_dangerous_calls_stay_in_audited_modules():
    found = [
        f"{name}: {breach}"
        for name, tree in python_sources()
        for breach in breaches(tree)
        if breach not in AUDITED.get(name, set())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "breach"),
    [
        ("import pickle", "pickle"),
        ("from pickle import Unpickler", "pickle"),
        ("import numpy as n; n.load('x')", "numpy.load"),
        ("from numpy import load; load('x')", "numpy.load"),
        ("np.fromfile('x')", "numpy.fromfile"),
        ("eval('1')", "eval"),
        ("import os; os.system('x')", "os.system"),
        ("import yaml; yaml.load(x)", "yaml.load"),
        ("archive.extractall()", "extractall"),
        ("subprocess.run('x', shell=True)", "shell=True"),
        ("import torch; torch.load('x')", "torch.load without weights_only=True"),
        (
            "import torch; torch.load('x', weights_only=False)",
            "torch.load without weights_only=True",
        ),
    ],
)
def test_the_search_finds_what_it_looks_for(line, breach):
    assert breach in list(breaches(ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["model.eval()", "json.load(f)", "torch.load(f, weights_only=True)"]
)
def test_the_search_leaves_harmless_calls_alone(line):
    assert list(breaches(ast.parse(line))) == []


def test_changelog_and_package_agree_on_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert entries[0] == project["version"]


def test_the_version_is_written_once():
    """Code asks importlib.metadata; only pyproject.toml and CHANGELOG.md spell the version."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    spelled = [
        name
        for name, tree in python_sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in (version, f"jscc-edge {version}")
    ]
    assert spelled == []
