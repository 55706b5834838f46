"""An export that calibrates: two commands in a row, one bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from jscc.export.cli import main
from jscc.runtime.bundle import Bundle

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_second_command_that_fails_leaves_nothing(
    codec_checkpoint: Path, pictures: Path, tmp_path: Path, capfd: Any
) -> None:
    (pictures / "2.png").unlink()
    more = ("--precision", "int8", "--calib", str(pictures))
    assert main(command(codec_checkpoint, tmp_path / "x.jscc", *more)) != 0
    assert "got 2, expected 3 or more" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "checkpoint"}


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (["--precision", "int8"], "--precision int8: got no --calib, expected"),
        (["--calib", "d"], "--precision fp32: got --calib, expected"),
        (["--precision", "int8", "--calib", "nowhere"], "--calib: got no file in 'nowhere'"),
        (["--calib-option", "limit=3"], "--calib-option: got one without --calib"),
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
