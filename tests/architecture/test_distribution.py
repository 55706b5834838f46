"""What the built distributions hold: every way of building gives the same, complete package."""

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDERS = ("benchmarks", "calibration", "export", "kernels", "runtime")
# Recorded figures are for readers of the repository; tests and training logs for its developers.
LEFT_OUT = ("benchmarks/results/",)
DATA = ("export/architectures/", "export/reference/", "kernels/")


def expected_contents(project_files: tuple[str, ...]) -> set[str]:
    """What a wheel should hold: code, kernel sources, configurations, reference weights, cards."""
    kept = {
        name
        for name in project_files
        if name.partition("/")[0] in FOLDERS
        and not name.startswith(LEFT_OUT)
        and (name.endswith(".py") or name.startswith(DATA))
    }
    return {f"jscc/{name}" for name in kept} | {
        *("jscc/__init__.py", "jscc/__main__.py", "jscc/py.typed")
    }


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_the_whole_package(wheel, project_files):
    assert contents(wheel) == expected_contents(project_files)


def test_the_wheel_carries_its_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert b"Apache License" in archive.read(licence)


def test_a_wheel_built_from_the_sdist_is_the_same(wheel, build_wheel, source_copy, tmp_path):
    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source_copy,
        check=True,
        capture_output=True,
    )
    (sdist,) = tmp_path.glob("jscc_edge-*.tar.gz")
    assert contents(build_wheel(sdist, tmp_path)) == contents(wheel)


def test_the_editable_install_is_this_checkout():
    import jscc.runtime.errors as installed

    here = Path(__file__).resolve().parents[2]
    assert Path(installed.__file__).resolve() == here / "runtime" / "errors.py"


def test_both_commands_are_declared():
    scripts = metadata.distribution("jscc-edge").entry_points.select(group="console_scripts")
    assert {script.name for script in scripts} == {"jscc", "jscc-export"}
