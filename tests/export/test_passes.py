"""The passes leave a smaller graph that computes the same and keeps the names of its edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnxscript.rewriter.rules.common import slice_split_rule
from torch import Tensor, nn

from jscc.export.passes import RULES, shrink


class Clumsy(nn.Module):
    """Operations that change nothing, one done twice, arithmetic of shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        once = self.convolve(image * 1 + 0)
        again = self.convolve(image)
        rows = once.reshape(image.shape[0], 4, -1).transpose(1, 2).transpose(1, 2)
        half = rows.shape[-1] // 2
        return once + again, rows[..., :half] * rows[..., half:]


def translated(module: nn.Module, image: Tensor, **choices: Any) -> ir.Model:
    program = torch.onnx.export(
        module.eval(),
        (image,),
        input_names=["image"],
        output_names=["sum", "product"],
        opset_version=20,
        dynamo=True,
        verbose=False,
        **choices,
    )
    assert program is not None
    return program.model


def run(model: ir.Model, image: Tensor) -> list[Any]:
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(["sum", "product"], {"image": image.numpy()}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_graphs_shrink_as_torch_would_shrink_them() -> None:
    torch.manual_seed(0)
    module, image = Clumsy(), torch.rand(2, 3, 8, 6)
    plain = translated(module, image, optimize=False)
    before, nodes = run(plain, image), len(plain.graph)
    shrink(plain)
    theirs = translated(module, image, optimize=True)
    assert len(plain.graph) < nodes
    assert [node.op_type for node in plain.graph] == [node.op_type for node in theirs.graph]
    for own, other in zip(run(plain, image), before, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_no_rule_walks_the_graph_for_each_of_its_nodes() -> None:
    assert slice_split_rule not in RULES
    assert RULES
