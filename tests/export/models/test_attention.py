"""Attention equals its formula in float64, at every rank and in both precisions."""

import pytest
import torch

from jscc.export.models.attention import attend, join_heads, split_heads


def formula(query, key, value, bias=None):
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return (scores + (0 if bias is None else bias.double())).softmax(-1) @ value


def draw(rng, *shape):
    return torch.randn(shape, generator=rng)


@pytest.mark.parametrize("lead", [(2, 3), (2, 5, 3), (2,)])
def test_float32_attention_follows_the_formula(rng, lead):
    query, key, value = draw(rng, *lead, 7, 4), draw(rng, *lead, 9, 4), draw(rng, *lead, 9, 4)
    bias = draw(rng, 7, 9)
    for extra in (None, bias):
        got = attend(query, key, value, extra)
        assert (got - formula(query, key, value, extra)).abs().max() < 1e-6


def test_one_key_serves_the_whole_batch(rng):
    query, key, value = draw(rng, 3, 2, 7, 4), draw(rng, 1, 2, 9, 4), draw(rng, 1, 2, 9, 4)
    assert (attend(query, key, value) - formula(query, key, value)).abs().max() < 1e-6


@pytest.mark.parametrize("lead", [(2, 3), (2, 5, 3)])
def test_half_attention_follows_the_formula(rng, lead):
    query, key, value = (draw(rng, *lead, 8, 4).half() for _ in range(3))
    got = attend(query, key, value, draw(rng, 8, 8) * 0)
    assert got.dtype == torch.float16
    assert (got - formula(query, key, value)).abs().max() < 2e-3


def test_half_attention_survives_scores_beyond_half_precision(rng):
    query, key = draw(rng, 1, 1, 8, 64).half() * 300, draw(rng, 1, 1, 8, 64).half() * 300
    value = draw(rng, 1, 1, 8, 64).half()
    assert (query @ key.transpose(-1, -2)).isinf().any()
    assert (attend(query, key, value) - formula(query, key, value)).abs().max() < 2e-3


def test_heads_are_neighbouring_features():
    tokens = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    heads = split_heads(tokens, 2)
    assert torch.equal(heads[:, 1], tokens[..., 4:])
    assert torch.equal(join_heads(heads), tokens)
