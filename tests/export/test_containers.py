"""State dicts inside other objects, as trainers save both halves of a codec or a GAN."""

import pytest
import torch

from jscc.export.checkpoint import read_checkpoint
from jscc.runtime.errors import CheckpointError


def saved(folder, content):
    torch.save(content, folder / "model.pth")
    return read_checkpoint(folder / "model.pth")


def test_both_halves_of_a_codec(tmp_path):
    checkpoint = saved(
        tmp_path,
        {
            "encoder": {"a": torch.ones(2), "count": 3},
            "decoder": {"a": torch.zeros(3)},
            "optimizer": {"state": {}, "lr": 0.1},
            "modem": {},
            "epoch": 3,
        },
    )
    assert {name: tuple(t.shape) for name, t in checkpoint.tensors.items()} == {
        "encoder.a": (2,),
        "decoder.a": (3,),
    }
    assert checkpoint.ignored == ("optimizer", "modem", "epoch", "encoder.count")


def test_averaged_generator_and_the_centre_of_its_latents(tmp_path):
    own = {"input.input": torch.ones(1, 4)}
    checkpoint = saved(
        tmp_path,
        {
            "g": {"input.input": torch.zeros(1, 4)},
            "d": {"conv.weight": torch.zeros(1)},
            "g_ema": own,
            "g_optim": {"state": {}},
            "latent_avg": torch.full((4,), 2.0),
            "ada_aug_p": 0.0,
        },
    )
    assert list(checkpoint.tensors) == ["input.input", "latent_avg"]
    assert torch.equal(checkpoint.tensors["input.input"], torch.ones(1, 4))
    assert torch.equal(checkpoint.tensors["latent_avg"], torch.full((4,), 2.0))
    assert checkpoint.ignored == ("g", "d", "g_optim", "ada_aug_p")


def test_one_half_is_no_codec(tmp_path):
    with pytest.raises(CheckpointError, match="a dict with the keys 'encoder', 'epoch'") as caught:
        saved(tmp_path, {"encoder": {"a": torch.ones(1)}, "epoch": 1})
    assert caught.value.code == "E_CKPT_LAYOUT"


def test_a_state_dict_may_have_halves_of_its_own(tmp_path):
    content = {"state_dict": {"encoder.a": torch.ones(1)}, "encoder": {"b": torch.ones(1)}}
    assert list(saved(tmp_path, content).tensors) == ["encoder.a"]


def test_halves_whose_names_are_no_text(tmp_path):
    content = {"encoder": {1: torch.ones(1)}, "decoder": {"a": torch.ones(1)}}
    with pytest.raises(CheckpointError, match="whose keys are not all text"):
        saved(tmp_path, content)
