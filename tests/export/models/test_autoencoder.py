"""The autoencoder against golden vectors, and its shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from jscc.export.checkpoint import read_checkpoint
from jscc.export.models.autoencoder import Autoencoder, split_moments

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "diffjscc" / "tiny-cnn"
TOLERANCE = 2e-5
SCALE = 0.18215
DDCONFIG = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
}


def assert_close(got, want):
    assert float((got - want).abs().max()) <= TOLERANCE * float(want.abs().max())


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"golden vectors are not here: {GOLDEN}")
    params = yaml.safe_load((GOLDEN / "config.yaml").read_text())["params"]["first_stage_config"]
    tensors = read_checkpoint(GOLDEN / "model.ckpt").tensors
    return params["params"], tensors, load_file(GOLDEN / "io.safetensors")


def load(params, tensors, prefix, *, strict=True):
    model = Autoencoder.from_config(params).eval()
    mine = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    assert not model.load_state_dict(mine, strict=strict).unexpected_keys
    return model


@torch.no_grad()
def test_first_stage_agrees_with_upstream(golden):
    params, tensors, io = golden
    model = load(params, tensors, "first_stage_model.")
    image = io["out.snrA.jscc.x_init"]
    assert_close(model.moments(2 * image - 1), io["out.vae.target_moments"])
    decoded = model.decode(io["out.vae.target_mode"] * (1 / SCALE))
    assert_close((decoded + 1) / 2, io["out.vae.decode_of_mode"])


@torch.no_grad()
def test_small_variances_show_the_epsilon_of_the_norms(golden):
    params, tensors, io = golden
    model = load(params, tensors, "first_stage_model.")
    decoded = model.decode(0.003 * io["out.vae.target_mode"] * (1 / SCALE))
    assert_close(((decoded + 1) / 2)[:, :, ::4, ::4], io["out.lowvar.decoded_s4"])


@pytest.mark.parametrize("snr", ["A", "B"])
@torch.no_grad()
def test_condition_encoder_agrees_with_upstream(golden, snr):
    params, tensors, io = golden
    model = load(params, tensors, "cond_encoder.", strict=False)
    moments = model.moments(2 * io[f"out.snr{snr}.jscc.x_init"] - 1)
    assert_close(moments, io[f"out.snr{snr}.cond_moments"])
    assert_close(SCALE * split_moments(moments)[0], io[f"out.snr{snr}.c_spatial"])


@torch.no_grad()
def test_shapes():
    model = Autoencoder.from_config({"embed_dim": 3, "ddconfig": DDCONFIG}).eval()
    moments = model.moments(torch.zeros(2, 3, 16, 24))
    assert moments.shape == (2, 6, 4, 6)
    assert model.decode(moments[:, :3]).shape == (2, 3, 16, 24)


def test_attends_where_the_configuration_says():
    config = DDCONFIG | {"attn_resolutions": [16]}
    names = set(Autoencoder.from_config({"embed_dim": 4, "ddconfig": config}).state_dict())
    assert {"encoder.down.1.attn.0.q.weight", "decoder.up.1.attn.1.q.weight"} <= names
    assert not {name for name in names if ".down.0.attn" in name or ".up.2.attn" in name}


@torch.no_grad()
def test_without_blocks_only_the_decoder_widens():
    config = DDCONFIG | {"num_res_blocks": 0}
    model = Autoencoder.from_config({"embed_dim": 4, "ddconfig": config}).eval()
    assert model.encoder.mid.block_1.conv1.out_channels == 32
    assert model.decoder.mid.block_1.conv1.out_channels == 64
    assert model.decode(model.moments(torch.zeros(1, 3, 16, 16))[:, :4]).shape == (1, 3, 16, 16)


def test_clamps_the_log_variance():
    mean, log_variance = split_moments(torch.tensor([-99.0, -99.0, 99.0])[[0, 2]].view(1, 2, 1, 1))
    assert float(mean) == -99.0
    assert float(log_variance) == 20.0


def test_refuses_a_latent_without_variance():
    with pytest.raises(ValueError, match="got double_z False, expected True"):
        Autoencoder.from_config({"embed_dim": 4, "ddconfig": DDCONFIG | {"double_z": False}})
