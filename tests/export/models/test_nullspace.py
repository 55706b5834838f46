"""Null space: A and A⁺ are what they are called; the guide keeps what was measured."""

from __future__ import annotations

import math
import re

import pytest
import torch

from jscc.export.models.nullspace import NullSpace, Operator, SingularBasis

TEXTS = [
    "identity",
    "avgpool:2",
    "avgpool:4",
    "color",
    "color:0.299,0.587,0.114",
    "mask",
    "avgpool:4+color",
    "color+mask",
    "mask+avgpool:2+color:0.3,0.5,0.2",
]


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def parts(text: str, rng: torch.Generator) -> tuple[Operator, torch.Tensor | None, torch.Tensor]:
    """An operator, its mask (whole and broken blocks) and an image, in double precision."""
    operator = Operator.parse(text)
    image = torch.randn(2, 3, 8, 12, generator=rng, dtype=torch.float64)
    mask = (torch.rand(2, 1, 8, 12, generator=rng) < 0.8).double()
    mask[:, :, :4, :8] = 1.0
    return operator, mask if operator.masked else None, image


@pytest.mark.parametrize("text", TEXTS)
def test_the_pseudo_inverse_is_one(text, rng):
    """Penrose's four conditions; A A⁺ is the identity on all that A can return."""
    operator, mask, image = parts(text, rng)
    measured = operator.apply(image, mask)
    assert torch.allclose(operator.apply(operator.invert(measured, mask), mask), measured)
    other = torch.randn(measured.shape, generator=rng, dtype=torch.float64)
    back = operator.invert(other, mask)
    assert torch.allclose(operator.invert(operator.apply(back, mask), mask), back)
    another = torch.randn(image.shape, generator=rng, dtype=torch.float64)
    left = (operator.project(image, mask) * another).sum()
    assert torch.allclose(left, (image * operator.project(another, mask)).sum())
    probe = torch.randn(measured.shape, generator=rng, dtype=torch.float64)
    there = operator.apply(operator.invert(other, mask), mask)
    back_there = operator.apply(operator.invert(probe, mask), mask)
    assert torch.allclose((there * probe).sum(), (other * back_there).sum())


@pytest.mark.parametrize("text", TEXTS)
def test_what_a_keeps_is_a_projection(text, rng):
    operator, mask, image = parts(text, rng)
    kept = operator.project(image, mask)
    assert torch.allclose(operator.project(kept, mask), kept)
    assert kept.square().sum() <= image.square().sum() * (1 + 1e-12)
    assert torch.allclose(operator.apply(image - kept, mask), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("text", TEXTS)
def test_every_singular_value_is_the_one_it_says(text, rng):
    operator, mask, image = parts(text, rng)
    ratio = operator.apply(image, mask).norm() / operator.project(image, mask).norm()
    assert float(ratio) == pytest.approx(operator.singular_value)


def test_order_does_not_matter_and_a_broken_block_is_unknown(rng):
    texts = ("mask+avgpool:4+color", "color+avgpool:4+mask")
    assert Operator.parse(texts[0]) == Operator.parse(texts[1])
    operator, mask, image = parts(texts[0], rng)
    assert mask is not None
    mask[:, :, 0, 0] = 0.0
    measured = operator.apply(image, mask)
    assert not measured[:, :, 0, 0].any()
    block = image[:, :, :4, 4:8].mean(dim=(1, 2, 3))
    assert torch.allclose(measured[:, 0, 0, 1], block)


@pytest.mark.parametrize(
    "text",
    ["", "blur", "avgpool", "avgpool:0", "avgpool:1", "avgpool:999", "color:1,2", "color:0,0,0",
     "color:1..,2,3", "mask+mask", "identity+mask", "avgpool:2+avgpool:2"],
)  # fmt: skip
def test_other_operators_are_refused(text):
    shown = text if "+" in text and "identity" not in text else text.partition("+")[0]
    message = f"operator: got {shown!r}, expected identity, or parts"
    with pytest.raises(ValueError, match=re.escape(message)):
        Operator.parse(text)


def guided(
    operator: Operator, compat: str, image: torch.Tensor, rng: torch.Generator,
    *, left: float, sigma_y: float, eta: float = 0.85, mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The corrected estimate, the direction and the target of one step."""
    numbers = [torch.full((len(image),), value, dtype=torch.float64) for value in
               (left, eta, sigma_y)]  # fmt: skip
    eps, noise, truth = (
        torch.randn(image.shape, generator=rng, dtype=torch.float64) for _ in range(3)
    )
    target = operator.project(truth, mask)
    clean, direction = NullSpace(operator, compat)(
        image, eps, target, mask, numbers[0], noise, numbers[1], numbers[2]
    )
    return clean, direction, target


@pytest.mark.parametrize("text", ["avgpool:2", "avgpool:4", "color", "color:0.299,0.587,0.114"])
def test_the_singular_basis_is_one(text, rng):
    """V keeps lengths, and its first column alone is what A looks at."""
    operator, _, image = parts(text, rng)
    basis = SingularBasis(operator)
    coordinates = basis.split(image)
    assert torch.allclose(basis.turn(coordinates).norm(), image.norm())
    first = torch.zeros_like(coordinates)
    first[:, 0] = coordinates[:, 0]
    seen = basis.turn(first)
    assert torch.allclose(operator.project(seen), seen)
    unseen = operator.project(basis.turn(coordinates - first))
    assert torch.allclose(unseen, torch.zeros_like(unseen))


@pytest.mark.parametrize("text", ["identity", "mask", "avgpool:2+color", "avgpool:2+mask"])
def test_no_singular_basis_is_published_for_other_operators(text):
    with pytest.raises(ValueError, match=r"compat ddnm-svd: got Operator\(scale="):
        NullSpace(Operator.parse(text), "ddnm-svd")


def test_turned_noise_differs_in_the_old_noise_only(rng):
    """Seen from new noise, whose axes mean nothing, the two forms are alike."""
    operator, _, image = parts("avgpool:2", rng)
    seeds = [torch.Generator().manual_seed(9) for _ in range(4)]
    forms = {}
    for eta, pair in ((1.0, seeds[:2]), (0.5, seeds[2:])):
        for compat, seed in zip(("none", "ddnm-svd"), pair, strict=True):
            clean, noise, _ = guided(operator, compat, image, seed, left=0.4, sigma_y=0.1, eta=eta)
            forms[eta, compat] = clean, noise
        assert torch.equal(forms[eta, "none"][0], forms[eta, "ddnm-svd"][0])
        gap = forms[eta, "none"][1].square().mean() - forms[eta, "ddnm-svd"][1].square().mean()
        assert abs(float(gap)) < 0.05


@pytest.mark.parametrize("compat", ["none", "ddnm-simplified"])
@pytest.mark.parametrize("text", TEXTS)
def test_without_noise_the_measured_part_is_taken_over_and_the_rest_left(text, compat, rng):
    operator, mask, image = parts(text, rng)
    clean, _, target = guided(operator, compat, image, rng, left=0.3, sigma_y=0.0, mask=mask)
    assert torch.allclose(operator.project(clean, mask), target)
    rest = image - operator.project(image, mask)
    assert torch.allclose(clean - operator.project(clean, mask), rest)


def test_where_the_measurement_is_noisier_than_the_level_only_a_share_is_taken(rng):
    operator, _, image = parts("avgpool:2", rng)
    left, sigma_y, eta = 0.99, 0.2, 0.6
    clean, _, target = guided(operator, "none", image, rng, left=left, sigma_y=sigma_y, eta=eta)
    reach = math.sqrt(left) * 2 * sigma_y / operator.singular_value
    share = math.sqrt(1 - left) * math.sqrt(1 - eta**2) / reach
    assert 0 < share < 0.3
    kept = operator.project(image)
    assert torch.allclose(operator.project(clean), kept + share * (target - kept))


@pytest.mark.parametrize("sigma_y", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("left", [0.2, 0.9, 0.999])
def test_noise_of_the_next_level_has_its_variance(sigma_y, left):
    """What was measured brings noise of its own; with what is added it makes up the level's."""
    rng = torch.Generator().manual_seed(5)
    operator = Operator.parse("avgpool:2")
    image = torch.zeros(1, 3, 256, 256, dtype=torch.float64)
    _, direction, _ = guided(operator, "none", image, rng, left=left, sigma_y=sigma_y)
    level = 1 - left
    outside = direction - operator.project(direction)
    assert float(outside.var()) == pytest.approx(level * 0.75, rel=0.02)
    inside = float(operator.project(direction).var())
    brought = left * (2 * sigma_y / operator.singular_value) ** 2
    if brought == 0.0:
        assert inside == pytest.approx(level * 0.25, rel=0.05)
    elif brought < level:
        assert inside == pytest.approx((level - brought) * 0.25, rel=0.05)
    else:
        assert inside == pytest.approx(level * 0.85**2 * 0.25, rel=0.05)


def test_the_simplified_form_makes_too_little_noise():
    rng = torch.Generator().manual_seed(5)
    operator, left = Operator.parse("avgpool:2"), 0.9
    image = torch.zeros(1, 3, 256, 256, dtype=torch.float64)
    _, direction, _ = guided(operator, "ddnm-simplified", image, rng, left=left, sigma_y=0.0)
    assert float(direction.var()) == pytest.approx((1 - left) * (1 - left**2), rel=0.02)


def test_the_last_step_adds_nothing(rng):
    operator, _, image = parts("color", rng)
    for compat in ("none", "ddnm-simplified"):
        for sigma_y in (0.0, 0.1):
            _, direction, _ = guided(operator, compat, image, rng, left=1.0, sigma_y=sigma_y)
            assert not direction.any()
