"""A stage traced with its axes counted in multiples is the same graph to everybody else."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from jscc.export.counted import Counting
from jscc.export.lower import Sizes, lower
from jscc.export.system import StageSpec
from jscc.runtime.ports import Port

IMAGE = Port("image", "float32", ("batch", 3, "height", "width"))
HINT = Port("hint", "float32", ("batch", "planes", "height/4", "width/4"))
SCALE = Port("scale", "float32", ("batch",))
PICTURE = Port("picture", "float32", ("batch", 3, "height", "width"))
UNITS = {"height": 32, "width": 32, "planes": 6}


class Windows(nn.Module):
    """Normalises each window of 8x8 pixels and adds the mean of the hints."""

    def forward(self, image: Tensor, hint: Tensor, scale: Tensor) -> Tensor:
        batch, _, height, width = image.shape
        x = image.reshape(batch, 3, height // 8, 8, width // 8, 8)
        x = x - x.mean(dim=(3, 5), keepdim=True)
        x = x.reshape(batch, 3, height, width) * scale[:, None, None, None]
        wide = hint.mean(dim=1, keepdim=True).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return x + wide


def test_axes_are_split_where_their_size_is_a_multiple() -> None:
    counting = Counting.of((IMAGE, HINT, SCALE), UNITS)
    assert counting.splits == (((2, 32), (3, 32)), ((1, 6), (2, 8), (3, 8)), ())
    tensors = (torch.rand(2, 3, 64, 96), torch.rand(2, 12, 16, 24), torch.rand(2))
    cut = counting.cut(tensors)
    assert [tuple(each.shape) for each in cut] == [
        (2, 3, 2, 32, 3, 32),
        (2, 2, 6, 2, 8, 3, 8),
        (2,),
    ]
    opened = counting.open_axes((IMAGE, HINT, SCALE))
    assert [sorted(each) for each in opened] == [[0, 2, 4], [0, 1, 3, 5], [0]]
    module = Windows()
    assert torch.equal(counting.wrap(module)(*cut), module(*tensors))


def test_an_axis_that_its_divisor_does_not_divide_stays_whole() -> None:
    port = Port("hint", "float32", ("batch", 4, "height/5", "width/32"))
    assert Counting.of((port,), UNITS).splits == ((),)


def test_the_graph_takes_whole_inputs_of_any_size(tmp_path: Path) -> None:
    """`lower` itself compares with torch at sizes that were not traced; here at yet others."""
    spec = StageSpec(
        "windows",
        lambda: Windows(),
        (IMAGE, HINT, SCALE),
        (PICTURE,),
        rates=(6, 12),
        counted=True,
    )
    lowered = lower(spec, tmp_path, Sizes(32), "fp32")
    path = tmp_path / "windows.onnx"
    graph = onnx.load(path).graph
    for value, port in zip(graph.input, spec.inputs, strict=True):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert (value.name, tuple(dims)) == (port.name, port.shape)
    assert lowered.entry.inputs == spec.inputs
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, planes, height, width in ((1, 6, 32, 32), (3, 18, 160, 32), (2, 12, 64, 224)):
        shapes = ((batch, 3, height, width), (batch, planes, height // 4, width // 4), (batch,))
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        expected = Windows()(*map(torch.from_numpy, arrays)).numpy()
        (got,) = session.run(None, dict(zip(("image", "hint", "scale"), arrays, strict=True)))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
