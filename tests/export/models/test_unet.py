"""Unet and Control give the published networks' numbers, at every shape that configs ask for."""

import io
import math
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from jscc.export.models.unet import Control, ResidualBlock, Sinusoid, SpatialTransformer, Unet

TOLERANCE = 2e-5
SMALL = {
    "in_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [1, 2],
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "transformer_depth": 1,
    "context_dim": 12,
    "legacy": False,
}
UNET = {**SMALL, "out_channels": 4}
CONTROL = {**SMALL, "hint_channels": 4, "use_snr": True, "min_snr": 0, "snr_scale": 100}


@pytest.fixture(scope="module")
def networks(cnn):
    control = cnn.params("control_stage_config")
    return (
        cnn.load(lambda: Control.from_config(control), "control_model."),
        cnn.load(lambda: Unet.from_config(cnn.params("unet_config")), "model.diffusion_model."),
    )


@pytest.fixture(scope="module")
def inputs(cnn):
    """x, hint, timestep, snr_db, context of the golden evaluation, a batch of two."""
    hint = torch.cat([cnn.tensors[f"out.snr{name}.c_spatial"] for name in "AB"])
    return (
        cnn.tensors["in.single.x_t"],
        hint,
        cnn.tensors["in.single.t"].float(),
        torch.tensor([1.0, 10.0]),
        cnn.tensors["out.text.context"][:2],
    )


def evaluate(networks, x, hint, timestep, snr_db, context):
    control, unet = networks
    with torch.no_grad():
        residuals = control(x, hint, timestep, snr_db, control.project_context(context))
        eps = unet(x, timestep, unet.project_context(context), residuals)
    return residuals, eps


def test_sinusoids_and_embeddings_match_golden(cnn, networks, inputs):
    control, unet = networks
    _, _, timestep, snr_db, _ = inputs
    with torch.no_grad():
        assert cnn.gap("single.c_sin_t", control.sinusoid(timestep)) < 1e-6
        assert cnn.gap("single.c_sin_snr", control.sinusoid(100 * snr_db)) < 1e-6
        time = control.time_embed(control.sinusoid(timestep))
        assert cnn.gap("single.c_emb_t", time) < TOLERANCE
        snr = control.embed(timestep, snr_db) - time
        assert cnn.gap("single.c_emb_snr", snr) < TOLERANCE
        assert cnn.gap("single.u_emb_t", unet.time_embed(unet.sinusoid(timestep))) < TOLERANCE


def test_residuals_and_noise_match_golden(cnn, networks, inputs):
    residuals, eps = evaluate(networks, *inputs)
    assert len(residuals) == 9
    for index, residual in enumerate(residuals):
        assert cnn.gap(f"single.control.{index:02d}", residual) < TOLERANCE
    assert cnn.gap("single.eps", eps) < TOLERANCE


def test_strength_of_control_matches_golden(cnn, networks, inputs):
    residuals, _ = evaluate(networks, *inputs)
    unet, (x, _, timestep, _, context) = networks[1], inputs
    with torch.no_grad():
        kv = unet.project_context(context)
        weaker = unet(x, timestep, kv, [0.7 * residual for residual in residuals])
        assert cnn.gap("single.eps_strength07", weaker) < TOLERANCE
        assert cnn.gap("single.eps_no_control", unet(x, timestep, kv)) < TOLERANCE


def test_epsilons_of_norms_match_golden(cnn, networks, inputs):
    """With inputs this small a wrong epsilon shows as an error of 20 %, elsewhere as 1e-5."""
    x, hint, *rest = inputs
    residuals, eps = evaluate(networks, 0.003 * x, 0.003 * hint, *rest)
    assert cnn.gap("lowvar.control.last", residuals[-1]) < TOLERANCE
    assert cnn.gap("lowvar.eps", eps) < TOLERANCE


def test_transformer_matches_golden(cnn, networks, inputs):
    unet = networks[1]
    transformer = unet.input_blocks[1][1]
    attention = transformer.transformer_blocks[0].attn2
    with torch.no_grad():
        kv = attention.project(inputs[-1][:1])
        got = transformer(cnn.tensors["in.probe.h"], kv)
    assert cnn.gap("lowvar.spatial_transformer", got) < TOLERANCE


def test_sinusoid_has_cosines_first():
    got = Sinusoid(8)(torch.tensor([0.0, 3.0]))
    assert got[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    frequencies = [math.exp(-math.log(10_000) * i / 4) for i in range(4)]
    expected = [f(3 * v) for f in (math.cos, math.sin) for v in frequencies]
    assert got[1].tolist() == pytest.approx(expected, abs=1e-6)


def test_sinusoid_has_frequencies_when_built_on_meta():
    with torch.device("meta"):
        built = Sinusoid(8)
    assert torch.equal(built(torch.tensor([3.0])), Sinusoid(8)(torch.tensor([3.0])))


def test_residual_count_follows_the_number_of_blocks():
    params = {"num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "attention_resolutions": [4, 2, 1]}
    with torch.device("meta"):
        control = Control.from_config({**CONTROL, **params})
        unet = Unet.from_config({**UNET, **params})
    assert control.residual_count == unet.residual_count == 13


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_res_blocks": 2},
        {"num_res_blocks": [1, 2]},
        {"transformer_depth": 2},
        {"use_linear_in_transformer": False},
        {"attention_resolutions": [2]},
        {"channel_mult": [1, 1, 3]},
        {"model_channels": 64},
        {"num_heads": 4, "num_head_channels": -1},
        {"min_snr": -5},
    ],
    ids=str,
)
def test_networks_of_other_shapes_fit_together(change, rng, randomise):
    own = {key: value for key, value in change.items() if key in SMALL or key == "num_heads"}
    control = randomise(Control.from_config({**CONTROL, **change}))
    unet = randomise(Unet.from_config({**UNET, **own}))
    x, hint = (torch.randn(2, 4, 8, 12, generator=rng) for _ in range(2))
    context = torch.randn(1, 5, 12, generator=rng)
    residuals, eps = evaluate(
        (control, unet), x, hint, torch.tensor([3.0, 900.0]), torch.tensor([1.0, 7.0]), context
    )
    assert len(residuals) == control.residual_count == unet.residual_count
    assert eps.shape == x.shape
    assert eps.isfinite().all()


def test_hint_and_latent_may_differ_in_width():
    with torch.device("meta"):
        control = Control.from_config({**CONTROL, "hint_channels": 16})
    assert control.input_blocks[0][0].in_channels == 20


def test_lowest_snr_is_subtracted_after_scaling(randomise):
    control = randomise(Control.from_config({**CONTROL, "min_snr": -5}))
    timestep, snr_db = torch.tensor([10.0]), torch.tensor([1.5])
    expected = control.time_embed(control.sinusoid(timestep)) + control.snr_embed(
        control.sinusoid(torch.tensor([155.0]))
    )
    assert torch.allclose(control.embed(timestep, snr_db), expected)


def test_control_without_snr_has_no_snr_keys_and_ignores_the_snr(rng, randomise):
    params = {key: value for key, value in CONTROL.items() if "snr" not in key}
    control = randomise(Control.from_config(params))
    assert not [key for key in control.state_dict() if "snr" in key]
    x, hint = (torch.randn(1, 4, 8, 8, generator=rng) for _ in range(2))
    kv = control.project_context(torch.randn(1, 5, 12, generator=rng))
    got = [control(x, hint, torch.tensor([5.0]), snr, kv) for snr in (None, torch.tensor([9.0]))]
    assert all(torch.equal(a, b) for a, b in zip(*got, strict=True))


def test_control_with_snr_asks_for_it(rng):
    control = Control.from_config(CONTROL)
    with pytest.raises(ValueError, match="got no snr_db"):
        control.embed(torch.tensor([5.0]), None)


def test_kv_is_laid_out_in_the_order_of_execution(rng, randomise):
    """Keys then values of each block: input blocks, middle, output blocks."""
    unet = randomise(Unet.from_config(UNET))
    context = torch.randn(2, 5, 12, generator=rng)
    called = []
    for name, module in unet.named_modules():
        if isinstance(module, SpatialTransformer):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    kv = unet.project_context(context)
    unet(torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([5.0, 6.0]), kv)
    pieces = []
    for name in called:
        attention = unet.get_submodule(name).transformer_blocks[0].attn2
        pieces += [attention.to_k(context), attention.to_v(context)]
    assert len(called) == 7
    assert torch.equal(kv, torch.cat(pieces, dim=-1))
    assert kv.shape == (2, 5, unet.context_width)


def test_one_context_serves_the_whole_batch(rng, randomise):
    unet = randomise(Unet.from_config(UNET))
    x, timestep = torch.randn(3, 4, 8, 8, generator=rng), torch.tensor([5.0, 6.0, 7.0])
    kv = unet.project_context(torch.randn(1, 5, 12, generator=rng))
    gap = unet(x, timestep, kv) - unet(x, timestep, kv.expand(3, -1, -1))
    assert gap.abs().max() < 1e-5


def test_items_of_a_batch_do_not_mix(rng, randomise):
    control = randomise(Control.from_config(CONTROL))
    unet = randomise(Unet.from_config(UNET))
    batch = (
        torch.randn(2, 4, 8, 12, generator=rng),
        torch.randn(2, 4, 8, 12, generator=rng),
        torch.tensor([3.0, 900.0]),
        torch.tensor([1.0, 7.0]),
        torch.randn(2, 5, 12, generator=rng),
    )
    _, together = evaluate((control, unet), *batch)
    for index in range(2):
        _, alone = evaluate((control, unet), *(part[index : index + 1] for part in batch))
        assert (alone - together[index : index + 1]).abs().max() < 1e-5


def test_new_control_adds_nothing(rng):
    control = Control.from_config(CONTROL)
    x = torch.randn(1, 4, 8, 8, generator=rng)
    kv = control.project_context(torch.randn(1, 5, 12, generator=rng))
    residuals = control(x, x, torch.tensor([5.0]), torch.tensor([5.0]), kv)
    assert not any(residual.any() for residual in residuals)


def test_residual_block_sees_the_embedding(rng, randomise):
    block = randomise(ResidualBlock(32, 64, 16))
    x, embedding = torch.randn(1, 32, 4, 4, generator=rng), torch.randn(1, 16, generator=rng)
    assert (block(x, embedding) - block(x, 0 * embedding)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_scale_shift_norm": True}, r"unet_config\.use_scale_shift_norm: got True"),
        ({"use_spatial_transformer": False}, "use_spatial_transformer: got False, expected True"),
        ({"num_classes": "sequential"}, "num_classes: got 'sequential', expected None"),
        ({"width": 3}, "unet_config: got unknown key 'width'"),
        ({"hint_channels": 4}, "got unknown key 'hint_channels'"),
        ({"context_dim": None}, "context_dim: got None, expected a positive integer"),
        ({"context_dim": True}, "context_dim: got True, expected a positive integer"),
        ({"model_channels": 48}, "got a level of width 48, expected a multiple of 32"),
        ({"num_head_channels": 48}, "got a level of width 32, expected a multiple of 48"),
        ({"num_head_channels": -1}, "num_head_channels -1 and num_heads -1, expected exactly one"),
        ({"num_heads": 2}, "num_head_channels 16 and num_heads 2, expected exactly one"),
        ({"channel_mult": 2}, "channel_mult: got 2, expected a list of integers"),
        ({"num_res_blocks": [1]}, "num_res_blocks: got 1 numbers, expected 2"),
        ({"use_linear_in_transformer": 1}, "got 1, expected true or false"),
        ({"transformer_depth": [1, 2]}, r"transformer_depth: got \[1, 2\], expected a positive"),
    ],
    ids=str,
)
def test_unusable_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Unet.from_config({**UNET, **change})


@pytest.mark.parametrize("key", ["model_channels", "context_dim", "out_channels", "in_channels"])
def test_missing_values_are_named(key):
    params = {name: value for name, value in UNET.items() if name != key}
    with pytest.raises(ValueError, match=rf"unet_config\.{key}: got nothing"):
        Unet.from_config(params)


def test_control_asks_for_the_scale_of_the_snr():
    params = {name: value for name, value in CONTROL.items() if name != "snr_scale"}
    with pytest.raises(ValueError, match=r"control_stage_config\.snr_scale: got nothing"):
        Control.from_config(params)
    with pytest.raises(ValueError, match="min_snr: got 'low', expected a number"):
        Control.from_config({**CONTROL, "min_snr": "low"})


def test_wrong_number_of_residuals_is_refused(rng):
    unet = Unet.from_config(UNET)
    x = torch.zeros(1, 4, 8, 8)
    kv = unet.project_context(torch.zeros(1, 5, 12))
    with pytest.raises(ValueError, match="got 1 residuals, expected 5 or none"):
        unet(x, torch.tensor([5.0]), kv, [x])


class Fused(nn.Module):
    """Both networks in one graph."""

    def __init__(self, control, unet):
        super().__init__()
        self.control = control
        self.unet = unet

    def forward(self, x, hint, timestep, snr_db, control_kv, unet_kv):
        residuals = self.control(x, hint, timestep, snr_db, control_kv)
        return self.unet(x, timestep, unet_kv, residuals)


def export(module, example, shapes, path):
    """Export quietly: what torch writes about its own deprecations is not ours to fix."""
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        torch.onnx.export(
            module,
            example,
            path,
            dynamo=True,
            opset_version=20,
            dynamic_shapes=shapes,
            external_data=False,
        )
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.exhaustive
def test_exported_graph_agrees_at_other_sizes(tmp_path, rng, randomise):
    networks = [randomise(Control.from_config(CONTROL)), randomise(Unet.from_config(UNET))]
    fused = Fused(*networks).eval()

    def draw(batch, height, width):
        planes = (torch.randn(batch, 4, height, width, generator=rng) for _ in range(2))
        scalars = (torch.rand(batch, generator=rng) * top for top in (999, 14))
        kv = (torch.randn(1, 5, network.context_width, generator=rng) for network in networks)
        return (*planes, *scalars, *kv)

    batch, rows, columns = (torch.export.Dim(name, max=64) for name in ("b", "r", "c"))
    plane = {0: batch, 2: 2 * rows, 3: 2 * columns}
    shapes = (plane, plane, {0: batch}, {0: batch}, None, None)
    session = export(fused, draw(2, 8, 12), shapes, tmp_path / "graph.onnx")
    for size in ((1, 16, 8), (3, 6, 20)):
        inputs = draw(*size)
        names = [port.name for port in session.get_inputs()]
        feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        with torch.no_grad():
            expected = fused(*inputs).numpy()
        (got,) = session.run(None, feeds)
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
