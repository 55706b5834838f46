"""GDN against its closed form, and its two ways of storing the same numbers."""

import math

import pytest
import torch

from jscc.export.models.af import Af
from jscc.export.models.gdn import FoldedGdn, Gdn, fold_gdns
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.models.precision import halve


def with_values(beta, gamma, **options):
    """A GDN of two planes whose formula has these numbers, above every bound."""
    gdn = Gdn(2, **options)
    pedestal = 2.0**-36
    with torch.no_grad():
        gdn.beta.copy_((torch.tensor(beta) + pedestal).sqrt())
        gdn.gamma.copy_((torch.tensor(gamma) + pedestal).sqrt())
    return gdn


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("fold", [False, True])
def test_two_planes_by_hand(bare, inverse, fold):
    gdn = with_values([0.5, 2.0], [[0.25, 0.5], [1.0, 0.125]], inverse=inverse, bare=bare)
    module = FoldedGdn(gdn) if fold else gdn
    x = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1)
    norms = [math.sqrt(0.5 + 0.25 * 9 + 0.5 * 4), math.sqrt(2 + 9 + 0.125 * 4)]
    expected = [3 * norms[0], -2 * norms[1]] if inverse else [3 / norms[0], -2 / norms[1]]
    assert module(x).flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bare", [False, True])
def test_values_below_the_bounds(bare):
    """beta stays at 1e-6 and gamma at 0, whatever is stored."""
    gdn = Gdn(2, bare=bare)
    with torch.no_grad():
        gdn.beta.fill_(-3.0)
        gdn.gamma.fill_(-1e-3)
    with torch.no_grad():
        beta, gamma = gdn.effective()
    assert beta.tolist() == pytest.approx([1e-6, 1e-6], rel=1e-5)
    assert not gamma.any()


def test_gradient_passes_below_the_bound():
    gdn = Gdn(1)
    with torch.no_grad():
        gdn.gamma.fill_(-1.0)
    gdn.effective()[1].sum().backward()
    assert gdn.gamma.grad.item() > 0


def drawn(network, rng):
    """Random weights; those of the normalisations on either side of their bounds."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, Gdn):
                part.gamma.add_(0.02 * torch.randn(part.gamma.shape, generator=rng))
            elif isinstance(part, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                scale = part.weight[0].numel() ** -0.5
                part.weight.copy_(scale * torch.randn(part.weight.shape, generator=rng))
    return network.requires_grad_(False)


@pytest.mark.parametrize("build", [lambda: Af(8, 4), lambda: Pdjscc(16, 2)])
def test_folding_changes_names_and_no_numbers(build, rng):
    network = drawn(build(), rng)
    count = sum(isinstance(part, Gdn) for part in network.modules())
    image = torch.rand(2, 3, 32, 48, generator=rng)
    snr = torch.tensor([[1.0], [13.0]])
    code = network.encoder(image, snr)
    decoded = network.decoder(code, snr)
    fold_gdns(network)
    assert sum(isinstance(part, FoldedGdn) for part in network.modules()) == count > 0
    assert not any(isinstance(part, Gdn) for part in network.modules())
    assert torch.allclose(network.encoder(image, snr), code, rtol=1e-4, atol=1e-6)
    assert torch.allclose(network.decoder(code, snr), decoded, rtol=1e-4, atol=1e-6)


def test_half_precision_keeps_the_squares_in_single():
    """Features of 300 have squares beyond float16; a beta of 1e-6 is below its resolution."""
    folded = FoldedGdn(with_values([1e-6, 1e-6], [[0.5, 0.0], [0.0, 0.5]]))
    half = halve(torch.nn.Sequential(folded))
    x = torch.tensor([300.0, 1e-4]).reshape(1, 2, 1, 1)
    assert torch.allclose(half(x), folded(x), rtol=1e-3)
    assert half(x).flatten()[0].item() == pytest.approx(math.sqrt(2), rel=1e-3)
