"""Adversarial losses and critics against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from jscc.export.reference.adversarial import (
    critic_loss,
    frozen,
    gradient_penalty,
    model_loss,
    path_lengths,
)
from jscc.export.reference.critics import PatchCritic, ResidualCritic, Scaled, blur_pool, spread
from jscc.export.reference.optimizer import Muon


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_losses_of_a_critic_that_cannot_tell_are_logarithms_of_two():
    undecided = torch.zeros(3)
    assert float(model_loss(undecided)) == pytest.approx(math.log(2))
    assert float(critic_loss(undecided, undecided)) == pytest.approx(2 * math.log(2))


def test_losses_of_a_critic_that_is_sure():
    sure = torch.full((2, 1, 4, 4), 50.0)
    assert float(critic_loss(sure, -sure)) == pytest.approx(0, abs=1e-6)
    assert float(critic_loss(-sure, sure)) == pytest.approx(100)
    # Non-saturating: the model still descends at full slope when every picture is seen through.
    logits = torch.tensor([-50.0], requires_grad=True)
    model_loss(logits).backward()
    assert logits.grad.tolist() == pytest.approx([-1.0])


def test_the_penalty_of_a_linear_critic_is_the_squared_norm_of_its_weights():
    weights = drawn(3, 5, 4)
    penalty = gradient_penalty(
        lambda x: (x * weights).sum(dim=(1, 2, 3)), drawn(2, 3, 5, 4, seed=1)
    ).detach()
    assert float(penalty) == pytest.approx(float(weights.square().sum()), rel=1e-6)


def test_the_penalty_of_a_quadratic_critic_is_the_pictures_power():
    real = drawn(4, 3, 2, 2)
    penalty = gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real).detach()
    assert float(penalty) == pytest.approx(float(real.square().sum()) / 4, rel=1e-6)


def test_the_penalty_reaches_the_critics_weights():
    """D(x) = w sum(x): the penalty is w^2 times the number of values; the slope is 2w times it."""
    weight = torch.tensor(3.0, requires_grad=True)
    gradient_penalty(lambda x: weight * x.sum(dim=(1, 2, 3)), drawn(2, 3, 2, 2)).backward()
    assert float(weight.grad) == pytest.approx(2 * 3 * 12)


def test_path_lengths_of_a_linear_generator():
    """Where one pixel is looked at, the length is the norm of its row of the Jacobian."""
    jacobian = drawn(3 * 4 * 4, 2 * 6).requires_grad_()
    styles = drawn(5, 2, 6, seed=1).requires_grad_()
    image = (styles.flatten(1) @ jacobian.T).view(5, 3, 4, 4)
    noise = torch.zeros(5, 3, 4, 4)
    looked_at = [0, 7, 13, 20, 47]
    for index, place in enumerate(looked_at):
        noise[index].view(-1)[place] = 1
    lengths = path_lengths(image, styles, noise)
    # Two rows of styles: the mean of their squared norms; sixteen pixels: a quarter.
    expected = jacobian[looked_at].norm(dim=1) / math.sqrt(2) / 4
    assert lengths.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    lengths.sum().backward()
    assert float(jacobian.grad[looked_at].abs().min()) > 0


def test_a_frozen_network_passes_gradients_and_keeps_none():
    network = nn.Linear(3, 1)
    x = drawn(2, 3).requires_grad_()
    with frozen(network):
        network(x).sum().backward()
    assert network.weight.grad is None
    assert float(x.grad.abs().sum()) > 0
    with pytest.raises(RuntimeError, match="some failure"), frozen(network):
        raise RuntimeError("some failure")
    assert all(p.requires_grad for p in network.parameters())


def test_the_blur_is_binomial():
    impulse = torch.zeros(1, 2, 8, 8)
    impulse[0, 0, 3, 4] = 1
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    # Output (i,j) sees inputs 2i-1..2i+2: row 3 is tap 2 of i = 1 and tap 0 of i = 2.
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = torch.outer(taps[[2, 0]], taps[[3, 1]])
    assert torch.allclose(blur_pool(impulse)[0, 0], expected)
    assert float(blur_pool(impulse)[0, 1].abs().max()) == 0


@pytest.mark.parametrize(("count", "group"), [(4, 4), (4, 2), (3, 2)])
def test_the_spread_of_a_batch_is_a_plane(count, group):
    values = torch.tensor([0.0, 2.0, 4.0, 6.0])[:count]
    x = values[:, None, None, None].expand(count, 5, 3, 2)
    plane = spread(x, group)[:, 5]
    # Groups take every (count / group)-th picture; where that is no whole number, all are one.
    expected = {
        (4, 4): [math.sqrt(5)] * 4,
        (4, 2): [2.0] * 4,
        (3, 2): [math.sqrt(8 / 3)] * 3,
    }[count, group]
    assert spread(x, group).shape == (count, 6, 3, 2)
    assert plane.mean(dim=(1, 2)).tolist() == pytest.approx(expected)
    assert float(plane.std(dim=(1, 2)).max()) < 1e-6


def test_scaled_convolutions_begin_at_unit_variance():
    torch.manual_seed(0)
    layer = Scaled(32, 64, 3)
    assert float(layer.weight.detach().std()) == pytest.approx(1, rel=0.02)
    inner = layer(drawn(4, 32, 12, 12)).detach()[:, :, 1:-1, 1:-1]
    assert float(inner.std()) == pytest.approx(1, rel=0.05)


def test_a_residual_critic_gives_one_logit_per_picture():
    torch.manual_seed(0)
    critic = ResidualCritic((4, 6, 8))
    pictures = drawn(4, 3, 16, 16)
    assert critic(pictures).shape == (4,)
    # All but the spread is one picture's own: a batch of the same gives the same for each.
    same = critic(pictures[:1].expand(4, -1, -1, -1)).detach()
    assert float((same - same[0]).abs().max()) < 1e-5


def test_a_patch_critic_bounds_its_layers_and_leaves_the_code_alone():
    torch.manual_seed(0)
    critic = PatchCritic(planes=2, width=4)
    image, code = drawn(2, 3, 32, 32).requires_grad_(), drawn(2, 2, 8, 8, seed=1).requires_grad_()
    logits = critic(image, code)
    assert logits.shape == (2, 1, 2, 2)
    logits.sum().backward()
    assert code.grad is None
    assert float(image.grad.abs().sum()) > 0
    assert not torch.equal(logits, critic(image, -code))  # told, all the same
    for _ in range(50):  # power iterations
        critic(image, code)
    for layer in critic.layers[::2]:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1, abs=0.05)


def test_muon_takes_a_leading_axis_of_one_for_none():
    weight, slope = drawn(6, 4, 3, 3), drawn(6, 4, 3, 3, seed=1)
    moved = []
    for shape in ((6, 4, 3, 3), (1, 6, 4, 3, 3)):
        parameter = nn.Parameter(weight.clone().view(shape))
        parameter.grad = slope.view(shape)
        Muon([parameter], lr=0.1, weight_decay=0.0).step()
        moved.append(parameter.detach().view(6, 4, 3, 3))
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], weight)
