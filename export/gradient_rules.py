"""Gradient rules: backward operations that ONNX lacks, written in operations that it has.

Most backward operations of PyTorch decompose into arithmetic by its own rules. Those below do not,
or do so in a form that is slow or not dynamic in ONNX Runtime: the data gradients of convolution,
pooling and resizing, and group normalisation, whose statistics the gradient needs too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from jscc.export.gradient_resize import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Size = int | torch.SymInt
    Table = dict[Any, Callable[..., Any]]

aten = torch.ops.aten

# PyTorch's own rules suffice for these.
DECOMPOSED = (
    aten._log_softmax_backward_data,
    aten._prelu_kernel_backward,
    aten._softmax_backward_data,
    aten.elu_backward,
    aten.gelu_backward,
    aten.glu_backward,
    aten.hardsigmoid_backward,
    aten.hardswish_backward,
    aten.hardtanh_backward,
    aten.leaky_relu_backward,
    aten.log_sigmoid_backward,
    aten.logit_backward,
    aten.mse_loss_backward,
    aten.native_batch_norm_backward,
    aten.native_layer_norm_backward,
    aten.select_backward,
    aten.sigmoid_backward,
    aten.silu_backward,
    aten.slice_backward,
    aten.smooth_l1_loss_backward,
    aten.softplus_backward,
    aten.softshrink_backward,
    aten.tanh_backward,
    aten.threshold_backward,
    aten.unfold_backward,
    # Their second and third outputs, mean and deviation, have no counterpart in ONNX.
    aten.native_batch_norm,
    aten.native_layer_norm,
    # Operations with an output argument or none at all, left behind by the rules above.
    aten.empty_like,
    aten.new_empty,
    aten.new_zeros,
    aten.ones_like,
    aten.zeros_like,
)


def table() -> Table:
    """The decompositions under which a gradient is traced."""
    return {**get_decompositions(DECOMPOSED), **_RULES}


def convolution_backward(
    grad: Tensor,
    data: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,  # noqa: ARG001 - the order of aten's arguments
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,  # noqa: FBT001
    output_padding: Sequence[int],  # noqa: ARG001
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of ``aten.convolution`` that `output_mask` asks for: data, weight, bias."""
    dims = data.dim() - 2
    settings = (_spread(stride, dims), _spread(padding, dims), _spread(dilation, dims))
    by_data = by_weight = by_bias = None
    if output_mask[0] and transposed:
        by_data = _convolve(grad, weight, *settings, groups)
    elif output_mask[0]:
        by_data = _by_data(grad, data, weight, *settings, groups)
    if output_mask[1]:
        by_weight = _by_weight(grad, data, weight, *settings, transposed=transposed, groups=groups)
    if output_mask[2]:
        by_bias = grad.sum([0, *range(2, grad.dim())])
    return by_data, by_weight, by_bias


def _by_data(
    grad: Tensor,
    data: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """What the data of a plain convolution gets.

    With stride 1 this is a convolution with the kernel turned round. The turning stands in the
    graph, so that the bundle holds every weight once; an engine folds it when it loads. Other
    strides make a transposed convolution.
    """
    if groups == 1 and list(weight.shape[2:]) == [1] and (stride, padding) == ([1], [0]):
        # A product: TensorRT for RTX 1.7 takes the convolution, and fails to compile what is
        # around it.
        return weight.squeeze(2).transpose(0, 1) @ grad
    reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
    margins = [far - near for far, near in zip(reach, padding, strict=True)]
    if all(step == 1 for step in stride) and min(margins) >= 0:
        turned = _turn(weight, groups)
        return _convolve(grad, turned, stride, margins, dilation, groups)
    # Rows and columns at the end of the data that no step of the stride reached.
    extra = [
        _known(size - ((short - 1) * step - 2 * near + far + 1))
        for size, short, step, near, far in zip(
            data.shape[2:], grad.shape[2:], stride, padding, reach, strict=True
        )
    ]
    spread: Tensor = aten.convolution(
        grad, weight, None, stride, padding, dilation, True, extra, groups
    )
    return spread


def _convolve(
    data: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    unused = [0] * len(stride)
    made: Tensor = aten.convolution(
        data, weight, None, stride, padding, dilation, False, unused, groups
    )
    return made


def _turn(weight: Tensor, groups: int) -> Tensor:
    """Weight [out, in / groups, …] as [in, out / groups, …], every kernel turned round."""
    axes = [axis for axis in range(2, weight.dim()) if weight.shape[axis] > 1]
    turned = torch.flip(weight, axes) if axes else weight
    if groups == 1:
        return turned.transpose(0, 1)
    split = torch.unflatten(turned, 0, (groups, -1)).transpose(1, 2)
    return split.flatten(0, 1)


def _by_weight(
    grad: Tensor,
    data: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *,
    transposed: bool,
    groups: int,
) -> Tensor:
    """What the weight gets: the data convolved with the gradient, images in the features' place.

    Networks that make their own kernels, like StyleGAN2's modulated convolutions, need it.
    """
    moving, fixed = (grad, data) if transposed else (data, grad)
    parts = [
        _convolve(some.transpose(0, 1), other.transpose(0, 1), dilation, padding, stride, 1)
        for some, other in zip(moving.chunk(groups, 1), fixed.chunk(groups, 1), strict=True)
    ]
    made = torch.cat([part.transpose(0, 1) for part in parts])
    # A stride that leaves rows over makes the kernel too large.
    for axis, size in enumerate(weight.shape[2:], start=2):
        made = made.narrow(axis, 0, size)
    return made


def avg_pool2d_backward(
    grad: Tensor,
    data: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,  # noqa: FBT001 - the order of aten's arguments
    count_include_pad: bool,  # noqa: FBT001
    divisor_override: int | None,
) -> Any:
    """The gradient of an average pooling: each value spread evenly over its window."""
    kernel = _spread(kernel_size, 2)
    steps = _spread(stride, 2) if stride else kernel
    pads = _spread(padding, 2)
    if ceil_mode or (any(pads) and not count_include_pad):
        return NotImplemented
    area = divisor_override or kernel[0] * kernel[1]
    if steps == kernel and not any(pads) and kernel[0] == kernel[1] and _divides(kernel, data):
        spread: Tensor = nearest(grad, kernel[0]) if kernel[0] > 1 else grad
        return spread / area
    window = grad.new_full((data.shape[1], 1, *kernel), 1.0 / area)
    return _by_data(grad, data, window, steps, pads, [1, 1], int(data.shape[1]))


def max_pool2d_backward(
    grad: Tensor,
    data: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,  # noqa: FBT001 - the order of aten's arguments
    indices: Tensor,  # noqa: ARG001 - TensorRT has no second output of a pooling
) -> Any:
    """The gradient of a maximum: each value goes to the first in its window that is the largest.

    Convolutions with one 1 in each kernel lay the windows' places side by side, and back.
    """
    kernel = _spread(kernel_size, 2)
    steps = _spread(stride, 2) if stride else kernel
    if ceil_mode or any(padding) or set(dilation) != {1}:
        return NotImplemented
    planes, places = int(data.shape[1]), kernel[0] * kernel[1]
    numbers = torch.arange(places, device=data.device)
    each = (numbers[:, None] == numbers).to(data.dtype).reshape(places, 1, *kernel)
    single = each.repeat(planes, 1, 1, 1)
    laid = _convolve(data, single, steps, [0, 0], [1, 1], planes)
    windows = torch.unflatten(laid, 1, (planes, places))
    largest = (windows == windows.amax(2, keepdim=True)).to(data.dtype)
    ranked = largest * (places - numbers).to(data.dtype).reshape(-1, 1, 1)
    first = (ranked == ranked.amax(2, keepdim=True)).to(data.dtype)
    spread = (grad.unsqueeze(2) * first).flatten(1, 2)
    return _by_data(spread, data, single, steps, [0, 0], [1, 1], planes)


def _divides(kernel: list[int], data: Tensor) -> bool:
    return all(_known(size % step) == 0 for size, step in zip(data.shape[2:], kernel, strict=True))


def native_group_norm(
    data: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: Size,
    features: Size,  # noqa: ARG001 - the order of aten's arguments
    positions: Size,  # noqa: ARG001
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group normalisation with its mean and reciprocal deviation [batch, groups, 1, 1].

    The last two axes are for `native_group_norm_backward`, which so repeats no operation.
    """
    grouped = data.reshape(batch, groups, -1, data.shape[-1])
    mean = _mean(grouped)
    centred = grouped - mean
    scale = torch.rsqrt(_mean(centred * centred) + eps)
    made = (centred * scale).reshape(data.shape)
    ones = [1] * (data.dim() - 2)
    if weight is not None:
        made = made * weight.reshape(1, -1, *ones)
    if bias is not None:
        made = made + bias.reshape(1, -1, *ones)
    return made, mean, scale


def _mean(grouped: Tensor) -> Tensor:
    """Mean over the last two axes, one after the other.

    ONNX Runtime adds up in plain float32, which loses digits over hundreds of thousands of terms.
    """
    return grouped.mean(-1, keepdim=True).mean(-2, keepdim=True)


def native_group_norm_backward(
    grad: Tensor,
    data: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    batch: Size,
    features: Size,  # noqa: ARG001 - the order of aten's arguments
    positions: Size,  # noqa: ARG001
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """The data gradient: scale · (g − ⟨g⟩ − x̂ ⟨g x̂⟩), g weighted, means over each group.

    Yuxin Wu, Kaiming He, "Group Normalization", arXiv 1803.08494, eq. 1 and 6, differentiated.
    """
    if output_mask[1] or output_mask[2]:
        return NotImplemented
    ones = [1] * (data.dim() - 2)
    weighted = grad if weight is None else grad * weight.reshape(1, -1, *ones)
    pulled = weighted.reshape(batch, groups, -1, data.shape[-1])
    normal = (data.reshape(batch, groups, -1, data.shape[-1]) - mean) * scale
    made = (pulled - _mean(pulled) - normal * _mean(pulled * normal)) * scale
    return made.reshape(data.shape), None, None


def linalg_vector_norm(
    data: Tensor,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,  # noqa: FBT001, FBT002
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """The 2-norm over the last axes as a product of the data with itself.

    ONNX Runtime's ReduceL2 adds up in plain float32: 2e-4 off over a million terms.
    """
    rank = data.dim()
    axes = sorted(axis % rank for axis in dim) if dim else list(range(rank))
    if ord != 2 or dtype not in (None, data.dtype) or axes != list(range(axes[0], rank)):
        return NotImplemented
    rows = data.reshape(*data.shape[: axes[0]], 1, -1)
    norm = (rows @ rows.transpose(-1, -2)).sqrt()
    return norm.reshape(*data.shape[: axes[0]], *([1] * len(axes) if keepdim else []))


def reflection_pad_backward(grad: Tensor, data: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a reflection: what was mirrored falls back on what it was mirrored from."""
    for axis, before, after in _sides(data, padding):
        size = data.shape[axis]
        made = grad.narrow(axis, before, size)
        if before:
            mirrored = grad.narrow(axis, 0, before).flip(axis)
            made = made + _place(mirrored, axis, 1, size - 1 - before)
        if after:
            mirrored = grad.narrow(axis, before + size, after).flip(axis)
            made = made + _place(mirrored, axis, size - 1 - after, 1)
        grad = made
    return grad


def replication_pad_backward(grad: Tensor, data: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of repeated edges: all that was repeated adds up in the edge."""
    for axis, before, after in _sides(data, padding):
        size = data.shape[axis]
        made = grad.narrow(axis, before, size)
        if before:
            edge = grad.narrow(axis, 0, before).sum(axis, keepdim=True)
            made = made + _place(edge, axis, 0, size - 1)
        if after:
            edge = grad.narrow(axis, before + size, after).sum(axis, keepdim=True)
            made = made + _place(edge, axis, size - 1, 0)
        grad = made
    return grad


def _sides(data: Tensor, padding: Sequence[int]) -> list[tuple[int, int, int]]:
    """Axis, padding before and padding after, of every axis that was padded."""
    last = data.dim() - 1
    return [
        (last - place, padding[2 * place], padding[2 * place + 1])
        for place in range(len(padding) // 2)
    ]


def _place(part: Tensor, axis: int, before: Size, after: Size) -> Tensor:
    """Zeros before and after `part` along `axis`."""
    pads: list[Size] = [*([0, 0] * (part.dim() - 1 - axis)), before, after]
    placed: Tensor = aten.constant_pad_nd(part, pads)
    return placed


def _safe_softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax; rows that a mask closes altogether, which this makes NaN, occur in no network."""
    return torch.softmax(scores, dim, dtype=dtype)


def _spread(setting: Sequence[int], dims: int) -> list[int]:
    return list(setting) * dims if len(setting) == 1 else list(setting)


def _known(size: Size) -> int:
    """A size that is the same for all images, as stride arithmetic on padded images is.

    Where it is not the graph fails at other sizes than the traced ones; lowering proves it there.
    """
    return size if isinstance(size, int) else int(size.node.hint)


_RULES: Table = {
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
    aten.linalg_vector_norm.default: linalg_vector_norm,
    aten.native_group_norm.default: native_group_norm,
    aten.native_group_norm_backward.default: native_group_norm_backward,
    aten.reflection_pad1d_backward.default: reflection_pad_backward,
    aten.reflection_pad2d_backward.default: reflection_pad_backward,
    aten.replication_pad1d_backward.default: replication_pad_backward,
    aten.replication_pad2d_backward.default: replication_pad_backward,
    aten._safe_softmax.default: _safe_softmax,
}
