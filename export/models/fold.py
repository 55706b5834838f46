"""Fold: merges batch normalisation into the convolution before it.

Sergey Ioffe, Christian Szegedy, "Batch Normalization: Accelerating Deep Network Training by
Reducing Internal Covariate Shift", arXiv 1502.03167, algorithm 2, lines 10-11: with the running
statistics the layer is affine per feature, so that it vanishes in weight and bias.
"""

import copy
from typing import Final

import torch
from torch import Tensor, nn

FOLDABLE: Final = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Return a copy of `module` in inference mode without the batch normalisations it can lose.

    A normalisation is folded where it follows a convolution, a transposed convolution or a linear
    layer inside an `nn.Sequential` and has running statistics. The factors are computed in
    float64, so the copy differs from `module` by rounding only.
    """
    folded = copy.deepcopy(module).eval()
    for part in folded.modules():
        if isinstance(part, nn.Sequential):
            _fold_sequence(part)
    return folded


def _fold_sequence(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        layer, norm = layers[index], layers[index + 1]
        if isinstance(layer, FOLDABLE) and isinstance(norm, NORMS) and norm.track_running_stats:
            _fold(layer, norm)
            # The indices of the others are part of their names.
            layers[index + 1] = nn.Identity()


def _fold(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> None:
    """Make `layer` compute what `norm` made of its output."""
    scale, shift = _affine(norm)
    weight = layer.weight.detach()
    with torch.no_grad():
        scaled = weight.double() * _along_outputs(layer, scale)
        bias = shift if layer.bias is None else shift + layer.bias.double() * scale
        layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor and the offset per feature, float64, that `norm` is at inference."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "fold: got a batch normalisation without running statistics, expected both. "
            "Load the checkpoint first."
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _along_outputs(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, scale: Tensor) -> Tensor:
    """Shape `scale` [outputs] so that it multiplies the weight of `layer` per output."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    # A transposed convolution has [inputs, outputs / groups, …], inputs sorted by group.
    groups = layer.groups
    per_input = scale.reshape(groups, -1).repeat_interleave(layer.in_channels // groups, dim=0)
    return per_input[:, :, None, None]
