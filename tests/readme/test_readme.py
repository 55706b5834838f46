"""The README: its commands exist with the options that it gives them, its links lead somewhere."""

import functools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jscc.benchmarks.readme_tables import main as readme_tables
from jscc.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.removeprefix("$ ")
    for language, block in BLOCKS
    if language == "console"
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("$ ")
]
LINKS = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
HEADINGS = re.findall(r"^#+ (.+)$", README, re.MULTILINE)


def commands(program: str) -> list[str]:
    return [command for command in COMMANDS if shlex.split(command)[0] == program]


@functools.cache
def help_of(*command: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "jscc", *command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_block_says_its_language():
    assert {language for language, _ in BLOCKS} <= {"console", "python"}
    assert len(BLOCKS) == len(re.findall(r"^```\w", README, re.MULTILINE))


def test_every_command_is_of_a_known_program():
    known = {"make", "jscc", "pip"}
    assert [command for command in COMMANDS if shlex.split(command)[0] not in known] == []


@pytest.mark.parametrize("command", commands("jscc"))
def test_jscc_commands_and_their_options_exist(command):
    name, *arguments = shlex.split(command)[1:]
    text = help_of(name)
    if arguments and f"jscc {name} {arguments[0]}" in " ".join(text.split()):
        text = help_of(name, arguments.pop(0))
    for argument in arguments:
        if re.fullmatch(r"-[a-z]|--[a-z-]+", argument):
            assert re.search(rf"(?<![\w-]){re.escape(argument)}\b", text), argument


def check_receiving(folder, printed):
    assert json.loads(printed)["seed"] == 1
    with Image.open(folder / "received.png") as received:
        assert received.size == (40, 24)


def check_own_modules(folder, printed):
    assert printed == ""
    manifest = Bundle.open(folder / "mine.jscc").manifest
    assert (manifest.system, manifest.signal.planes) == ("generative_jscc", 16)


# Of each Python example: what it writes, and what holds then.
EXAMPLES = {"received.png": check_receiving, "mine.jscc": check_own_modules}


@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_python_examples_run(code, shared_bundles, tmp_path):
    shutil.copytree(shared_bundles["codec"].path, tmp_path / "diffjscc.jscc")
    pixels = np.random.default_rng(5).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (written,) = [name for name in EXAMPLES if f'"{name}"' in code]
    EXAMPLES[written](tmp_path, ran.stdout)


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command):
    make = shutil.which("make")
    assert make is not None
    ran = subprocess.run(
        [make, "--dry-run", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("command", commands("pip"))
def test_pip_commands_name_our_packages(command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = " ".join(
        [*project["dependencies"], *(need for each in extras.values() for need in each)]
    )
    for argument in shlex.split(command)[2:]:
        if not argument.startswith("-"):
            name, _, extra = argument.rstrip("]").partition("[")
            assert name == project["name"] or re.search(rf"\b{name}\b", needs), argument
            assert extra == "" or extra in extras, argument


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition("#")
    assert (ROOT / path).exists()
    if not path:
        assert anchor in {heading.lower().replace(" ", "-") for heading in HEADINGS}


def test_every_source_folder_is_introduced():
    folders = {"benchmarks", "calibration", "export", "kernels", "runtime", "tests"}
    assert folders <= set(LINKS)


def test_tables_are_those_of_the_result_files():
    assert readme_tables(["--check"]) == 0
