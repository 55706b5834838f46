"""GDN: generalised divisive normalisation, with the parameters that published checkpoints hold.

Johannes Ballé, Valero Laparra, Eero P. Simoncelli, "Density Modeling of Images using a Generalized
Normalization Transformation", arXiv 1511.06281, equation 1 with exponents 2 and 1/2. Stored are
square roots: `beta` and `gamma` of the formula are `max(stored, bound)^2 - pedestal`. CompressAI's
checkpoints hold the bounds and pedestals too, those of pytorch-gdn do not; the values are the same.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

OFFSET: Final = 2.0**-18
PEDESTAL: Final = OFFSET**2
BETA_MIN: Final = 1e-6
GAMMA_START: Final = 0.1


class _Bound(nn.Module):
    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([bound]))


class _Stored(nn.Module):
    """The bound and the pedestal of one parameter, where the checkpoints hold them."""

    pedestal: Tensor
    lower_bound: _Bound

    def __init__(self, minimum: float) -> None:
        super().__init__()
        self.register_buffer("pedestal", torch.tensor([PEDESTAL]))
        self.lower_bound = _Bound((minimum + PEDESTAL) ** 0.5)

    def forward(self, stored: Tensor) -> Tensor:
        return _positive(stored, self.lower_bound.bound, self.pedestal)  # type: ignore[arg-type]


def _positive(stored: Tensor, bound: Tensor, pedestal: Tensor) -> Tensor:
    kept = torch.maximum(stored, bound)
    if torch.is_grad_enabled() and stored.requires_grad:
        # Below the bound the value is the bound's; the gradient passes, so that none is stuck.
        kept = stored + (kept - stored).detach()
    return kept * kept - pedestal


class Gdn(nn.Module):
    """`x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)`; the inverse multiplies.

    Args:
        width: Number of planes.
        inverse: Multiply instead of divide.
        bare: The checkpoint holds `beta` and `gamma` only, as pytorch-gdn's do.
    """

    def __init__(self, width: int, *, inverse: bool = False, bare: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.bare = bare
        self.beta = nn.Parameter((torch.ones(width) + PEDESTAL).sqrt())
        self.gamma = nn.Parameter((GAMMA_START * torch.eye(width) + PEDESTAL).sqrt())
        if not bare:
            self.beta_reparam = _Stored(BETA_MIN)
            self.gamma_reparam = _Stored(0.0)

    def effective(self) -> tuple[Tensor, Tensor]:
        """`beta` [width] and `gamma` [width, width] of the formula."""
        if not self.bare:
            return self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)
        pedestal = self.beta.new_tensor(PEDESTAL)
        bounds = (self.beta.new_tensor((least + PEDESTAL) ** 0.5) for least in (BETA_MIN, 0.0))
        beta, gamma = (
            _positive(stored, bound, pedestal)
            for stored, bound in zip((self.beta, self.gamma), bounds, strict=True)
        )
        return beta, gamma

    def forward(self, x: Tensor) -> Tensor:
        beta, gamma = self.effective()
        norm = functional.conv2d(x * x, gamma[:, :, None, None], beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class FoldedGdn(nn.Module):
    """The same with `beta` and `gamma` of the formula as weights.

    The squares leave the range of half precision, so it keeps to float32.
    """

    keep_float32: Final = True

    def __init__(self, gdn: Gdn) -> None:
        super().__init__()
        self.inverse = gdn.inverse
        beta, gamma = (value.detach() for value in gdn.effective())
        self.beta = nn.Parameter(beta, requires_grad=False)
        self.gamma = nn.Parameter(gamma[:, :, None, None].clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        norm = functional.conv2d(x * x, self.gamma, self.beta)
        return x * torch.sqrt(norm) if self.inverse else x / torch.sqrt(norm)


def fold_gdns(module: nn.Module) -> nn.Module:
    """Replace every GDN inside `module`, its weights loaded, by its folded form; returns it."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Gdn):
            owner, _, own = name.rpartition(".")
            setattr(module.get_submodule(owner), own, FoldedGdn(part))
    return module
