"""Attacks on the exporter: rows 7, 8 and 14 of the fault table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from jscc.export import proof
from jscc.export.cli import main
from jscc.export.codecs import Encode

if TYPE_CHECKING:
    from pathlib import Path


def nothing_left(folder: Path) -> bool:
    """Whether only the checkpoint's own folder is there."""
    return sorted(path.name for path in folder.iterdir()) == ["checkpoint"]


def test_row_07_graph_that_differs_from_the_checkpoint(
    codec_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    honest = proof.run_graph

    def wrong(*arguments: Any) -> Any:
        return {name: array + 1e-2 for name, array in honest(*arguments).items()}

    monkeypatch.setattr(proof, "run_graph", wrong)
    command = ["--model", "deepjscc", "--checkpoint", str(codec_checkpoint)]
    assert main([*command, "-o", str(tmp_path / "out.jscc")]) == 65
    message = capsys.readouterr().err
    assert "stage 'encode', port 'planes': got a graph that differs from torch by 1.00e-02" in (
        message
    )
    assert "on average" in message
    assert "E_PARITY" in message
    assert nothing_left(tmp_path)


def test_row_08_operation_that_onnx_does_not_have(
    codec_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def forward(self: Encode, image: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(self.network(image, snr_db.unsqueeze(1)))

    monkeypatch.setattr(Encode, "forward", forward)
    command = ["--model", "deepjscc", "--checkpoint", str(codec_checkpoint)]
    assert main([*command, "-o", str(tmp_path / "out.jscc")]) == 65
    message = capsys.readouterr().err
    assert "stage 'encode', module 'itself': got" in message
    assert "special_airy_ai" in message
    assert "E_EXPORT_OP" in message
    assert message.count("\n") == 1
    assert nothing_left(tmp_path)


def test_row_08_control_flow_that_depends_on_data(
    codec_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def forward(self: nn.ReLU, x: torch.Tensor) -> torch.Tensor:
        return x if x.mean() > 0 else -x

    monkeypatch.setattr(nn.ReLU, "forward", forward)
    command = ["--model", "deepjscc", "--checkpoint", str(codec_checkpoint)]
    assert main([*command, "-o", str(tmp_path / "out.jscc")]) == 65
    message = capsys.readouterr().err
    assert "stage 'encode', module 'network.net.3': got" in message
    assert "E_EXPORT_OP" in message
    assert message.count("\n") == 1
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt, 130), (SystemExit(143), 143)])
def test_row_14_interrupted_export(
    codec_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: Any,
    status: int,
) -> None:
    """What SIGINT and SIGTERM raise: the temporary folder goes, nothing is at the destination."""

    def interrupted(*_: Any) -> Any:
        raise raised

    monkeypatch.setattr(proof, "run_graph", interrupted)
    command = ["--model", "deepjscc", "--checkpoint", str(codec_checkpoint)]
    try:
        found = main([*command, "-o", str(tmp_path / "out.jscc")])
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert nothing_left(tmp_path)
