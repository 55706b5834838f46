"""The export command: what it refuses before the long work, and what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny_checkpoint
from jscc.export.cli import main, parse_size
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def refused(capsys: Any, *command: str) -> tuple[int, str]:
    """Run the command, which must fail; returns its status and its one line."""
    status = main(command)
    message = capsys.readouterr().err
    assert message.startswith("jscc-export: ")
    assert message.count("\n") == 1
    return status, message


def test_unknown_system_lists_the_known_ones(tmp_path: Path, capsys: Any) -> None:
    status, message = refused(capsys, "--model", "difjscc", "-o", str(tmp_path / "x"))
    assert status == 2
    assert "got 'difjscc', expected one of " in message
    assert "deepjscc, diffjscc" in message


def test_size_that_is_no_size() -> None:
    with pytest.raises(UsageError, match="got '512', expected HEIGHTxWIDTH"):
        parse_size("512")
    assert parse_size("512x768") == (512, 768)
    assert parse_size("dynamic") is None


def test_size_that_the_network_cannot_have(
    codec_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ("--model", "deepjscc", "--checkpoint", str(codec_checkpoint), "--size", "100x64")
    status, message = refused(capsys, *command, "-o", str(tmp_path / "x.jscc"))
    assert status == 2
    assert "got 100x64, expected multiples of 16" in message


def test_destination_is_looked_at_first(
    codec_checkpoint: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "x.jscc"
    destination.mkdir()
    monkeypatch.setattr("jscc.export.exporter.lower", None)  # would fail if it were reached
    command = ("--model", "deepjscc", "--checkpoint", str(codec_checkpoint))
    status, message = refused(capsys, *command, "-o", str(destination))
    assert status == 73
    assert "E_EXISTS" in message


def test_checkpoint_without_configuration(tmp_path: Path, capsys: Any) -> None:
    """Weights tell the codec of a ControlLDM, but not all of the rest."""
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint")
    (folder / "config.yaml").unlink()
    command = ("--model", "diffjscc", "--checkpoint", str(folder / "model.ckpt"))
    status, message = refused(capsys, *command, "-o", str(tmp_path / "x.jscc"))
    assert status == 65
    assert "got 'diffjscc_cnn', expected the target 'model.cldm.ControlLDM'" in message


def test_weights_that_no_stage_takes(tmp_path: Path, capsys: Any) -> None:
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint")
    state = torch.load(folder / "model.ckpt", weights_only=True)
    state["state_dict"]["discriminator.0.weight"] = torch.ones(1)
    torch.save(state, folder / "model.ckpt")
    command = ("--model", "diffjscc", "--checkpoint", str(folder))
    status, message = refused(capsys, *command, "-o", str(tmp_path / "x.jscc"))
    assert status == 65
    assert "got 1 weights that no stage takes (discriminator.0.weight)" in message


def test_configuration_of_another_system(
    codec_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ("--model", "diffjscc", "--checkpoint", str(codec_checkpoint))
    status, message = refused(capsys, *command, "-o", str(tmp_path / "x.jscc"))
    assert status == 65
    assert "no stage takes" in message


def test_prompt_without_text_mode(tmp_path: Path, capsys: Any) -> None:
    command = ("--model", "diffjscc", "--prompt", "a cat", "-o", str(tmp_path / "x.jscc"))
    status, message = refused(capsys, *command)
    assert status == 2
    assert "got a prompt with --text none, expected --text fixed" in message


def test_prompt_for_a_checkpoint_without_text_tower(tmp_path: Path, capsys: Any) -> None:
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint")
    command = ("--model", "diffjscc", "--checkpoint", str(folder), "--text", "fixed")
    status, message = refused(capsys, *command, "--prompt", "a cat", "-o", str(tmp_path / "x"))
    assert status == 2
    assert "this checkpoint has no text tower" in message


def test_random_weights_want_a_configuration_and_no_checkpoint(
    codec_checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    command = ("--model", "deepjscc", "--random-weights", "1", "-o", str(tmp_path / "x.jscc"))
    assert "got no --config" in refused(capsys, *command)[1]
    both = (*command, "--checkpoint", str(codec_checkpoint))
    assert "got --checkpoint" in refused(capsys, *both)[1]


def test_codec_out_of_a_whole_checkpoint_at_one_size_in_one_file(
    tmp_path: Path, capsys: Any
) -> None:
    """`--model deepjscc` takes the codec of a DiffJSCC file; size and container are options."""
    folder = tiny_checkpoint.write_control_ldm(tmp_path / "checkpoint")
    path = tmp_path / "codec.jscc"
    command = ["--model", "deepjscc", "--checkpoint", str(folder), "--size", "64x96"]
    assert main([*command, "--single-file", "--licence", "MIT", "-o", str(path)]) == 0
    assert "decode/reconstruction: differs from torch by" in capsys.readouterr().out
    bundle = Bundle.open(path)
    assert path.is_file()
    assert bundle.manifest.source.licence == "MIT"
    assert bundle.manifest.stages["decode"].outputs[0].shape == ("batch", 3, 64, 96)
    assert bundle.manifest.selftest is not None


def test_half_precision(
    codec_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "half.jscc"
    command = ["--model", "deepjscc", "--checkpoint", str(codec_checkpoint)]
    assert main([*command, "--precision", "fp16", "-o", str(path)]) == 0
    manifest = Bundle.open(path).manifest
    assert manifest.precision == "fp16"
    parity = manifest.parity["decode"]["reconstruction"]
    assert 0 < parity.max_abs < 0.02
    assert parity.psnr_db is not None
    assert parity.psnr_db > 45
    request.getfixturevalue("tensorrt_takes")(Bundle.open(path))
