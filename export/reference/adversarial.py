"""Adversarial losses: a model against a critic, and what keeps the two in balance."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def model_loss(judged: Tensor) -> Tensor:
    """Returns the non-saturating loss of pictures that the critic gave the logits `judged`.

    Ian J. Goodfellow et al., "Generative Adversarial Networks", arXiv 1406.2661, section 3.
    """
    return functional.softplus(-judged.float()).mean()


def critic_loss(real: Tensor, made: Tensor) -> Tensor:
    """Returns the logistic loss of the critic's logits of real and of made pictures."""
    return functional.softplus(-real.float()).mean() + functional.softplus(made.float()).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Returns R1 without its factor: the mean squared norm of the critic's gradient at `real`.

    Lars Mescheder, Andreas Geiger, Sebastian Nowozin, "Which Training Methods for GANs do actually
    Converge?", arXiv 1801.04406, equation 9.

    Args:
        critic: From pictures [B,3,H,W] to logits, those of one picture independent of the others.
        real: Real pictures.
    """
    real = real.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(real).float().sum(), real, create_graph=True)
    return slope.float().square().sum(dim=(1, 2, 3)).mean()


def path_lengths(image: Tensor, styles: Tensor, noise: Tensor) -> Tensor:
    """Returns how far `image` moves with `styles`, per picture [B].

    Tero Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958,
    equation 4: the norm of the transposed Jacobian times a random picture.

    Args:
        image: Pictures [B,3,H,W] with a graph to `styles`.
        styles: What they were made of, [B,rows,width]; the rows' squared norms are averaged.
        noise: Standard normal, the shape of `image`.
    """
    height, width = image.shape[2:]
    moved = (image.float() * noise).sum() / (height * width) ** 0.5
    (slope,) = torch.autograd.grad(moved, styles, create_graph=True)
    return slope.float().square().sum(dim=2).mean(dim=1).sqrt()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Lets gradients pass through `network` to its inputs, but not to its weights."""
    network.requires_grad_(requires_grad=False)
    try:
        yield
    finally:
        network.requires_grad_(requires_grad=True)
