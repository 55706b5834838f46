"""Folding leaves the numbers alone and takes the normalisations away."""

import pytest
import torch
from torch import nn

from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.fold import fold_batch_norms

PREFIX = "preprocess_model."


def norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]


def relative_gap(got, expected):
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), (2, 6, 5, 7)),
        (nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 6, 5, 7)),
        (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8, eps=1e-2), (2, 6, 5, 7)),
        (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False), (2, 6, 5, 7)),
        (
            nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.BatchNorm2d(8),
            (2, 6, 5, 7),
        ),
        (nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 5, 7)),
        (nn.Linear(6, 8), nn.BatchNorm1d(8), (5, 6)),
    ],
    ids=["conv", "bias", "groups", "plain", "transposed", "transposed-groups", "linear"],
)
def test_folded_layers_agree_to_rounding(layer, norm, shape, rng, randomise):
    module = randomise(nn.Sequential(layer, norm, nn.ReLU()))
    x = torch.randn(shape, generator=rng)
    folded = fold_batch_norms(module)
    assert norms(folded) == []
    assert relative_gap(folded(x), module(x)) < 1e-6
    exact = module.double()(x.double())
    assert relative_gap(folded.double()(x.double()), exact) < 1e-6


def test_the_source_is_left_alone(rng, randomise):
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fold_batch_norms(module)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_names_of_other_layers_stay(randomise):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    assert set(fold_batch_norms(module).state_dict()) == {
        f"{index}.{field}" for index in (0, 2) for field in ("weight", "bias")
    }


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
    ids=["before", "apart", "untracked"],
)
def test_norms_that_cannot_go_stay(module, rng):
    x = torch.randn(2, 3, 4, 4, generator=rng)
    folded = fold_batch_norms(module)
    assert len(norms(folded)) == 1
    assert torch.equal(folded(x), module.eval()(x))


def test_folded_codec_matches_golden(cnn):
    codec = cnn.load(lambda: DeepJscc.from_config(cnn.params("preprocess_config")), PREFIX)
    folded = fold_batch_norms(codec)
    assert len(norms(codec)) == 19
    assert norms(folded) == []
    image = cnn.tensors["in.x_u8"].permute(2, 0, 1)[None].float() / 255
    for name, snr_db in (("A", 1.0), ("B", 10.0)):
        csi = torch.tensor([[snr_db]])
        with torch.no_grad():
            assert cnn.gap(f"snr{name}.jscc.z", folded.E(image, csi)) < 2e-6
            picture = folded.G(cnn.tensors[f"out.snr{name}.jscc.eq"], csi)
            assert cnn.gap(f"snr{name}.jscc.x_init", picture) < 2e-6
