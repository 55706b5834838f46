"""The attention that PyTorch's exporter writes is the one that the runtime recognises."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from jscc.export.lower import Sizes, lower
from jscc.export.models.attention import attend, join_heads, split_heads
from jscc.export.system import StageSpec
from jscc.runtime.backends.attention import fused
from jscc.runtime.ports import Port

PLANES, HEADS = 12, 3


class Network(nn.Module):
    """Self-attention over a latent, twice, the second with keys and values swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(PLANES, 3 * PLANES)

    def forward(self, latent: Tensor) -> Tensor:
        tokens = self.project(latent.flatten(2).transpose(1, 2))
        query, key, value = (split_heads(part, HEADS) for part in tokens.chunk(3, dim=-1))
        mixed = join_heads(attend(query, key, value) + attend(query, value, key))
        return mixed.transpose(1, 2).unflatten(2, latent.shape[2:])


def test_exported_attention_is_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network().eval()
    latent = Port("latent", "float32", ("batch", PLANES, "height/8", "width/8"))
    answer = Port("answer", "float32", ("batch", PLANES, "height/8", "width/8"))
    lower(StageSpec("network", lambda: network, (latent,), (answer,)), tmp_path, Sizes(64), "fp32")
    data = (tmp_path / "network.onnx").read_bytes()
    changed = fused(data)
    ops = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert ops.count("MultiHeadAttention") == 2
    assert "Softmax" not in ops
    onnx.checker.check_model(onnx.load_from_string(changed))
    session = ort.InferenceSession(changed, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for shape in ((1, PLANES, 8, 8), (3, PLANES, 16, 24)):
        array = rng.standard_normal(shape, np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(array)).numpy()
        (got,) = session.run(None, {"latent": array})
        np.testing.assert_allclose(got, expected, atol=5e-6)
