"""Optimizer: orthogonalised momentum for matrices, AdamW for everything else.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with the
step size of Jingyuan Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4,
which lets both kinds of parameter share one learning rate. torch's own Muon takes two-dimensional
parameters only; here a convolution is the matrix [out, in*kh*kw].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.reference.precision import emulated

if TYPE_CHECKING:
    from collections.abc import Iterable

MOMENTUM: Final = 0.95
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS: Final = 5
BETAS: Final = (0.9, 0.98)


class Muon(torch.optim.Optimizer):
    """Steps of constant spectral size along the momentum."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient; a `closure` is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                direction = _matrix(parameter.grad.lerp(momentum, MOMENTUM))
                size = 0.2 * max(direction.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(
                    orthogonalise(direction).view(parameter.shape), alpha=-group["lr"] * size
                )


def _matrix(weight: Tensor) -> Tensor:
    """Returns [out, in*kh*kw]; StyleGAN2's convolutions are stored with an axis of 1 before."""
    return (weight[0] if weight.ndim == 5 else weight).flatten(1)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Returns roughly U V^T of `matrix` = U S V^T, by five Newton-Schulz steps.

    In bfloat16, where the device computes in it.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.float() if emulated(matrix.device) else matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)  # type: ignore[no-any-return]


def build_optimizers(
    model: nn.Module,
    *,
    matrices: set[str],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = BETAS,
) -> list[torch.optim.Optimizer]:
    """Returns Muon for the parameters named in `matrices` and AdamW for the others."""
    chosen = [p for name, p in model.named_parameters() if name in matrices]
    others = [p for name, p in model.named_parameters() if name not in matrices]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=0.0),
    ]
    if chosen:
        optimizers.append(Muon(chosen, lr=lr, weight_decay=weight_decay))
    return optimizers
