"""An export that calibrates: two commands in a row, one bundle."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jscc.export.cli import main
from jscc.runtime.bundle import Bundle


def command(checkpoint: Path, target: Path, *more: str) -> list[str]:
    return ["--model", "deepjscc", "--checkpoint", str(checkpoint), "-o", str(target), *more]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(3):
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_one_command_gives_a_bundle_of_eight_bits(
    codec_checkpoint: Path, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target = tmp_path / "x.jscc"
    more = ("--precision", "int8", "--calib", str(pictures), "--single-file")
    options = ("--calib-option", "budget=psnr=20", "--calib-option", "snr=1,13")
    assert main(command(codec_checkpoint, target, *more, *options)) == 0
    manifest = Bundle.open(target).manifest
    assert manifest.precision == "int8"
    assert manifest.calibration is not None
    assert manifest.calibration["snrs_db"] == [1.0, 13.0]
    assert target.is_file()
    left = {path.name for path in tmp_path.iterdir()}
    reports = {"x.calibration.md", "x.calibration.svg"}
    assert left == {"pictures", "checkpoint", "x.jscc", *reports}
    request.getfixturevalue("tensorrt_takes")(Bundle.open(target))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "got 2, expected 3 or more"),
        (("--calib-option", "budget=psnr=much"), "--budget: got 'psnr=much'"),
        (("--calib-option", "smoth=1"), "--smoth"),
    ],
)
def test_what_the_calibration_refuses_shows_before_the_export(
    codec_checkpoint: Path, pictures: Path, tmp_path: Path, capfd: Any, options: Any, said: str
) -> None:
    (pictures / "2.png").unlink()
    more = ("--precision", "int8", "--calib", str(pictures), *options)
    assert main(command(codec_checkpoint, tmp_path / "x.jscc", *more)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("jscc calibrate: ")
    assert said in line
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "checkpoint"}


@pytest.mark.parametrize("failing", ["export", "calibrate"])
def test_a_command_that_fails_leaves_nothing(
    codec_checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: Any, failing: str
) -> None:
    ran = []

    def run(line: list[str], *, check: bool) -> SimpleNamespace:
        name = line[3]
        ran.append("check" if "--check" in line else name)
        if name == "export":
            Path(line[line.index("-o") + 1]).mkdir()
        return SimpleNamespace(returncode=70 if ran[-1] == failing else 0)

    monkeypatch.setattr(subprocess, "run", run)
    more = ("--precision", "int8", "--calib", str(pictures))
    assert main(command(codec_checkpoint, tmp_path / "x.jscc", *more)) == 70
    assert ran == ["check", "export", "calibrate"][: 2 + (failing == "calibrate")]
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "checkpoint"}


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (["--precision", "int8"], "--precision int8: got no --calib, expected"),
        (["--calib", "d"], "--precision fp32: got --calib, expected"),
        (["--precision", "int8", "--calib", "nowhere"], "--calib: got no file in 'nowhere'"),
        (["--calib-option", "limit=3"], "--calib-option: got one without --calib"),
        (
            ["--precision", "int8", "--calib", ".", "--calib-option=check"],
            "--calib-option: got 'check', expected an option of jscc calibrate that the export",
        ),
        (
            ["--precision", "int8", "--calib", ".", "--calib-option=out=y.jscc"],
            "--calib-option: got 'out', expected an option",
        ),
        (
            ["--precision", "int8", "--calib", ".", "--calib-option", "--limit"],
            "--calib-option: got '--limit', expected NAME=VALUE",
        ),
    ],
)
def test_options_that_do_not_go_together(
    codec_checkpoint: Path, tmp_path: Path, capsys: Any, more: list[str], shown: str
) -> None:
    more = [f"--calib-option={each}" if each == "--limit" else each for each in more]
    more = [each for each in more if each != "--calib-option" or "limit=3" in more]
    assert main(command(codec_checkpoint, tmp_path / "x.jscc", *more)) == 2
    assert shown in capsys.readouterr().err
