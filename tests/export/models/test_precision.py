"""Half precision stays close to float32, with the islands where they are promised."""

import json

import pytest
import torch
from torch import nn

from jscc.export.codecs import SWIN_REBUILT
from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.fold import fold_batch_norms
from jscc.export.models.precision import Float32Island, halve
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.models.text import TextTower
from jscc.export.models.unet import Control, Unet
from jscc.export.systems.diffjscc import TEXT_UNUSED

CLOSE = 5e-3


def relative_gap(got, expected):
    return float((got.float() - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def control(cnn):
    params = cnn.params("control_stage_config")
    return cnn.load(lambda: Control.from_config(params), "control_model.")


@pytest.fixture(scope="module")
def unet(cnn):
    params = cnn.params("unet_config")
    return cnn.load(lambda: Unet.from_config(params), "model.diffusion_model.")


def test_denoiser_stays_close(cnn, control, unet):
    x, t = cnn.tensors["in.single.x_t"], cnn.tensors["in.single.t"].float()
    hint = torch.cat([cnn.tensors[f"out.snr{name}.c_spatial"] for name in "AB"])
    context = cnn.tensors["out.text.context"][:2]
    control, unet = halve(control), halve(unet)
    with torch.no_grad():
        kv = control.project_context(context)
        residuals = control(x, hint, t, torch.tensor([1.0, 10.0]), kv)
        eps = unet(x, t, unet.project_context(context), residuals)
    assert {out.dtype for out in (*residuals, eps, kv)} == {torch.float32}
    for index, residual in enumerate(residuals):
        assert cnn.gap(f"single.control.{index:02d}", residual) < CLOSE
    assert cnn.gap("single.eps", eps) < CLOSE


def test_embeddings_of_scalars_lose_nothing(control):
    t, snr_db = torch.tensor([901.0]), torch.tensor([1.0003])
    with torch.no_grad():
        assert torch.equal(halve(control).embed(t, snr_db), control.embed(t, snr_db))


def test_text_tower_stays_close(cnn):
    cfg = json.loads((cnn.folder / "tiny-text-16.json").read_text())["text_cfg"]
    params = cnn.params("cond_stage_config")
    prefix = "cond_stage_model.model."
    tower = halve(cnn.load(lambda: TextTower.from_config(params, cfg), prefix, TEXT_UNUSED))
    assert tower.positional_embedding.dtype == torch.float16
    assert tower.transformer.resblocks[0].attn.in_proj_weight.dtype == torch.float16
    with torch.no_grad():
        got = tower(cnn.tensors["out.text.tokens"])
    assert got.dtype == torch.float32
    assert cnn.gap("text.context", got) < CLOSE


def test_swin_codec_stays_close(swin):
    params = swin.config["params"]
    ignore = (*SWIN_REBUILT, "decoder.absolute_pos_embed")
    codec = halve(swin.load(lambda: DeepJsccSwin.from_config(params), "", ignore))
    image = swin.tensors["in.128x192.x_u8"].permute(2, 0, 1)[None].float() / 255
    csi = torch.tensor([[1.0]])
    with torch.no_grad():
        z = codec.encoder(image, csi).flatten(2).transpose(1, 2)
        received = swin.tensors["out.128x192.snrA.awgn.rx"].transpose(1, 2).unflatten(2, (8, 12))
        picture = codec.decoder(received, csi)
    assert z.dtype == picture.dtype == torch.float32
    assert swin.gap("128x192.snrA.awgn.z", z) < CLOSE
    assert swin.gap("128x192.snrA.awgn.x_hat", picture) < 2e-2


def test_autoencoder_stays_close(cnn):
    params = cnn.params("first_stage_config")
    whole = cnn.load(lambda: Autoencoder.from_config(params), "first_stage_model.")
    half = halve(whole)
    image = 2 * cnn.tensors["out.snrA.jscc.x_init"][..., :64, :64] - 1
    latent = cnn.tensors["out.vae.target_mode"][..., :8, :8] / 0.18215
    with torch.no_grad():
        assert relative_gap(half.moments(image), whole.moments(image)) < CLOSE
        assert relative_gap(half.decode(latent), whole.decode(latent)) < CLOSE


def test_codec_stays_close(cnn):
    params = cnn.params("preprocess_config")
    codec = cnn.load(lambda: DeepJscc.from_config(params), "preprocess_model.")
    folded = fold_batch_norms(codec)
    encoder, decoder = halve(folded.E), halve(folded.G)
    image = cnn.tensors["in.x_u8"].permute(2, 0, 1)[None].float() / 255
    csi = torch.tensor([[1.0]])
    with torch.no_grad():
        z, picture = encoder(image, csi), decoder(cnn.tensors["out.snrA.jscc.eq"], csi)
    assert z.dtype == picture.dtype == torch.float32
    assert cnn.gap("snrA.jscc.z", z) < CLOSE
    assert cnn.gap("snrA.jscc.x_init", picture) < CLOSE


def test_only_islands_keep_float32_weights(control):
    for name, module in halve(control).named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            island = ".inner" in name or "_embed." in name
            expected = torch.float32 if island else torch.float16
            assert parameter.dtype == expected, f"{name}.{key}"


def test_the_source_is_left_alone(control):
    halve(control)
    assert {parameter.dtype for parameter in control.parameters()} == {torch.float32}
    assert not any(isinstance(module, Float32Island) for module in control.modules())


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.GroupNorm(2, 4), (2, 4, 3, 3)),
        (nn.LayerNorm(4), (2, 5, 4)),
        (nn.BatchNorm2d(4), (2, 4, 3, 3)),
    ],
    ids=["group", "layer", "batch"],
)
def test_norms_compute_in_float32(norm, shape, rng):
    """Values whose squares leave the range of float16."""
    x = 1000 * torch.randn(shape, generator=rng)
    half, seen = halve(norm), []
    half.inner.register_forward_hook(
        lambda module, inputs, output: seen.extend([inputs[0], module.weight, output])
    )
    with torch.no_grad():
        got = half(x.half())
        assert relative_gap(got, norm.eval()(x)) < CLOSE
    assert {tensor.dtype for tensor in seen} == {torch.float32}


def test_outputs_in_containers_are_float32(rng):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x), [x.argmax()]

    first, (second,) = halve(Pair())(torch.randn(2, 3, generator=rng))
    assert first.dtype == torch.float32
    assert second.dtype == torch.int64


def test_weights_beyond_half_precision_are_refused():
    module = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        module[0].weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"parameter '0.weight': got a value of 1e\+05"):
        halve(module)
