"""Resizing whose gradient is known, kept as one operation while it is traced with open sizes.

PyTorch takes ``interpolate`` apart into gathers there, which cost ONNX Runtime ten times as much as
its Resize. These two operations stand in for it during a trace and are put back afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from torch.fx import GraphModule

    Size = int | torch.SymInt


@torch.library.custom_op("jscc::nearest", mutates_args=())
def nearest(data: Tensor, factor: int) -> Tensor:
    """Repeat every pixel of `data` [B, F, H, W] `factor` times along both edges."""
    return functional.interpolate(data, scale_factor=factor, mode="nearest")


@nearest.register_fake
def _(data: Tensor, factor: int) -> Tensor:
    batch, features, height, width = data.shape
    return data.new_empty(batch, features, height * factor, width * factor)


def _nearest_setup(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.factor = inputs[1]


def _nearest_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return functional.avg_pool2d(grad, ctx.factor) * ctx.factor**2, None


@torch.library.custom_op("jscc::bilinear", mutates_args=())
def bilinear(data: Tensor, up: int, down: int) -> Tensor:
    """Resize `data` [B, F, H, W] to ``size * up // down``, corners not aligned."""
    return functional.interpolate(data, scale_factor=up / down, mode="bilinear")


@bilinear.register_fake
def _(data: Tensor, up: int, down: int) -> Tensor:
    batch, features, height, width = data.shape
    return data.new_empty(batch, features, height * up // down, width * up // down)


def _bilinear_setup(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.sizes, ctx.ratio = inputs[0].shape[2:], inputs[2] / inputs[1]


def _bilinear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    rows, columns = (
        _taps(small, large, ctx.ratio, grad)
        for small, large in zip(ctx.sizes, grad.shape[2:], strict=True)
    )
    return rows.transpose(0, 1) @ grad @ columns, None, None


def _taps(small: Size, large: Size, ratio: float, like: Tensor) -> Tensor:
    """How much of each of `small` values is in each of `large` interpolated ones [large, small]."""
    middles = (_count(large, like) + 0.5) * ratio - 0.5
    places = _count(small, like)
    # Beyond the outermost values nothing is extrapolated.
    middles = torch.minimum(middles.clamp(min=0), places[-1:])
    return (1 - (middles[:, None] - places).abs()).clamp(min=0)


def _count(size: Size, like: Tensor) -> Tensor:
    """0, 1, … below `size`, which may be open."""
    return torch.arange(size, dtype=like.dtype)  # type: ignore[arg-type]  # may be a SymInt


nearest.register_autograd(_nearest_backward, setup_context=_nearest_setup)
bilinear.register_autograd(_bilinear_backward, setup_context=_bilinear_setup)


def restore(traced: GraphModule) -> None:
    """Put PyTorch's own operations in the place of the two above."""
    aten = torch.ops.aten
    for node in traced.graph.nodes:
        if node.target is torch.ops.jscc.nearest.default:
            data, factor = node.args
            node.target = aten.upsample_nearest2d.vec
            node.args = (data, None, [float(factor)] * 2)
        elif node.target is torch.ops.jscc.bilinear.default:
            data, up, down = node.args
            node.target = aten.upsample_bilinear2d.vec
            node.args = (data, None, False, [up / down] * 2)
    traced.recompile()
