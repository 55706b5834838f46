"""TextTower gives the published tower's context."""

import json

import pytest
import torch

from jscc.export.models.text import TextConfig, TextTower
from jscc.export.systems.diffjscc import TEXT_UNUSED
from jscc.runtime.errors import CheckpointError

PREFIX = "cond_stage_model.model."
SMALL = TextConfig(width=16, heads=2, layers=3, context_length=7, vocab_size=20)


@pytest.fixture(scope="module")
def text_cfg(cnn):
    return json.loads((cnn.folder / "tiny-text-16.json").read_text())["text_cfg"]


def test_context_matches_golden(cnn, text_cfg):
    params = cnn.params("cond_stage_config")
    tower = cnn.load(lambda: TextTower.from_config(params, text_cfg), PREFIX, TEXT_UNUSED)
    with torch.no_grad():
        got = tower(cnn.tensors["out.text.tokens"])
    assert cnn.gap("text.context", got) < 2e-6


def test_missing_weights_are_noticed(cnn, text_cfg):
    params = {**cnn.params("cond_stage_config"), "layer": "last"}
    cut = {k: v for k, v in cnn.weights.items() if "resblocks.2.ln_1" not in k}
    with pytest.raises(CheckpointError, match="2 of 4"):
        type(cnn)(cnn.folder, cnn.config, {}, cut).load(
            lambda: TextTower.from_config(params, text_cfg), PREFIX, TEXT_UNUSED
        )


def test_a_token_sees_only_those_before_it(randomise):
    tower = randomise(TextTower(SMALL))
    tokens = torch.arange(7)[None]
    other = tokens.clone()
    other[0, 4] = 19
    gap = (tower(tokens) - tower(other)).abs().amax(dim=-1)[0]
    assert gap[:4].max() == 0
    assert gap[4:].min() > 1e-3


def test_last_layer_is_built_only_when_asked_for():
    params = {"arch": "tiny", "freeze": True}
    cfg = {"width": 16, "heads": 2, "layers": 3, "vocab_size": 20}
    counts = [
        len(TextTower.from_config({**params, "layer": layer}, cfg).transformer.resblocks)
        for layer in ("last", "penultimate")
    ]
    assert counts == [3, 2]


def test_defaults_are_those_of_vit_h_14():
    with torch.device("meta"):
        tower = TextTower.from_config({"layer": "penultimate"})
    assert tower.config == TextConfig(1024, 16, 24, 77, 49408)


def test_tower_built_on_meta_keeps_its_mask(randomise):
    with torch.device("meta"):
        tower = TextTower(SMALL)
    whole = randomise(TextTower(SMALL))
    tower.load_state_dict(whole.state_dict(), assign=True)
    tokens = torch.arange(7)[None]
    assert torch.equal(tower(tokens), whole(tokens))
    assert tower.mask[0, 1] == -torch.inf


@pytest.mark.parametrize(
    ("params", "text_cfg", "message"),
    [
        ({"layer": "pooled"}, None, "layer: got 'pooled', expected one of"),
        ({"arch": "ViT-L-14"}, None, "arch: got 'ViT-L-14' without its text_cfg"),
        ({}, {"hf_model_name": "x"}, r"text_cfg: got unknown keys \['hf_model_name'\]"),
        ({}, {"width": 0}, "text_cfg.width: got 0, expected a positive integer"),
        ({}, {"width": 10, "heads": 4}, "text_cfg.width: got 10, expected a multiple of heads"),
        ({"layer": "penultimate"}, {"layers": 1}, "got 1 layers, expected more than 1"),
    ],
)
def test_unusable_configurations_are_refused(params, text_cfg, message):
    with pytest.raises(ValueError, match=message):
        TextTower.from_config(params, text_cfg)
