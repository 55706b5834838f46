"""What the architecture tests share: the project's files, and one wheel built from them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def list_project_files() -> tuple[str, ...]:
    """Every file that is or would be committed, relative to the root; links count as files."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    names = sorted(set(listing.stdout.split("\0")) - {""})
    return tuple(name for name in names if (ROOT / name).is_symlink() or (ROOT / name).exists())


@pytest.fixture(scope="session")
def project_files() -> tuple[str, ...]:
    """Every file that is or would be committed, relative to the root."""
    return list_project_files()


@pytest.fixture(scope="session")
def source_copy(tmp_path_factory: pytest.TempPathFactory, project_files: tuple[str, ...]) -> Path:
    """A copy of the project without anything that git ignores, as a fresh clone would be."""
    copy = tmp_path_factory.mktemp("source")
    for name in project_files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def _build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of `source` (a folder or an sdist) with this environment's setuptools."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)),
            str(source),
        ],
        check=True,
    )
    (wheel,) = folder.glob("jscc_edge-*.whl")
    return wheel


@pytest.fixture(scope="session")
def build_wheel() -> Callable[[Path, Path], Path]:
    """Builds the wheel of its first argument into its second."""
    return _build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory, source_copy: Path) -> Path:
    """The wheel built from a fresh copy of the project."""
    return _build_wheel(source_copy, tmp_path_factory.mktemp("wheel"))
