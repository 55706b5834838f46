"""Gradient rules against autograd where many values are alike: ties go to the first."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from jscc.export.gradient_rules import convolution_backward, max_pool2d_backward


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (3, 3), (2, 3)])
def test_ties_of_a_maximum_go_to_the_first(kernel: int, stride: int) -> None:
    """Of three values in a window of nine, at least three are alike."""
    generator = torch.Generator().manual_seed(kernel)
    data = torch.randint(0, 3, (2, 4, 13, 11), generator=generator).float().requires_grad_()
    pooled, indices = functional.max_pool2d(data, kernel, stride, return_indices=True)
    grad = torch.randn(pooled.shape, generator=generator)
    pooled.backward(grad)
    size, steps = [kernel] * 2, [stride] * 2
    got = max_pool2d_backward(grad, data.detach(), size, steps, [0, 0], [1, 1], False, indices)
    assert data.grad is not None
    assert torch.allclose(got, data.grad, atol=1e-6)


@pytest.mark.parametrize("settings", [([1, 1], [1, 1], False), ([0, 0], [2, 2], False)])
def test_what_the_rule_does_not_know_is_left_to_others(
    settings: tuple[list[int], list[int], bool],
) -> None:
    data, grad = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)
    got = max_pool2d_backward(grad, data, [3, 3], [2, 2], *settings, grad)
    assert got is NotImplemented


def test_a_product_over_positions_has_a_product_s_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    data, weight = torch.randn(2, 5, 7, generator=generator), torch.randn(4, 5, 1)
    data.requires_grad_()
    made = functional.conv1d(data, weight)
    grad = torch.randn(made.shape, generator=generator)
    made.backward(grad)
    options = (None, [1], [0], [1], False, [0], 1, [True, False, False])
    got, *_ = convolution_backward(grad, data.detach(), weight, *options)
    assert data.grad is not None
    assert got is not None
    assert torch.allclose(got, data.grad, atol=1e-5)
