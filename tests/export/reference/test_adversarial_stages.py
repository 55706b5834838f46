"""The stages with a critic, on synthetic pictures and with tiny networks."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from jscc.export.models.generative import Generative
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.models.stylegan2 import Generator
from jscc.export.reference import perceptual_codec, stylegan, train_networks
from jscc.export.reference.generative_codec import hidden, shrink
from jscc.export.reference.loop import Adversarial, Plan, read_checkpoint, run
from jscc.export.reference.networks import NETWORKS, Job
from jscc.export.reference.perceptual_codec import Phases, one_of, open_up, uniform
from jscc.export.reference.stylegan import latent_statistics, sliced_distance
from jscc.export.reference.tiles import Tiles

TINY = {
    "generative-96": {
        "planes": 4,
        "encoder_widths": [4, 4, 4, 4],
        "decoder_widths": [8, 4, 4, 4, 4],
        "style_dim": 8,
    },
    "pdjscc-48": {"c_feat": 16},
    "stylegan2": {"channels": [8, 8, 4], "style_dim": 8, "n_mlp": 2},
}
STEPS = 6
# Of six steps of pdjscc-48, the fifth is the critic's alone and the sixth is both's.
PLAN = Plan(lr=1e-3, steps=STEPS, warmup_steps=2, log_every=1, critic_lr=2e-3)


@pytest.fixture(scope="module", autouse=True)
def little_work():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual_codec, "EVALUATED_SNR_DB", (7.0,))
        patch.setattr(stylegan, "EVALUATED_TILES", 32)
        patch.setattr(stylegan, "PENALTY_EVERY", 2)
        patch.setattr(stylegan, "PATHS_EVERY", 2)
        patch.setattr(stylegan, "STATISTICS_OF", 2000)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiles():
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8, generator=drawn)
    pictures = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return Tiles(pictures[:2], pictures[2:])


def stage_of(name, tiles, out, *, lpips_weights=None):
    network = NETWORKS[name]
    job = Job(tiles, out, torch.device("cpu"), 2, (32, 64), lpips_weights)
    torch.manual_seed(0)
    stage = network.stage({**network.config, **TINY[name]}, job)
    if name == "generative-96":
        # Its recipe has no critic; with one at its end it is tested as well.
        weights = dataclasses.replace(stage.weights, adversarial=0.1)
        stage = dataclasses.replace(stage, phases=Phases(critic=0.5, both=0.5), weights=weights)
    return stage


def trained(name, tiles, out, *, resume=False, stop_after=None):
    stage = stage_of(name, tiles, out)
    run(stage, PLAN, out, resume=resume, stop_after=stop_after)
    return read_checkpoint(out / f"{name}.pt")


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", sorted(TINY))
def test_resuming_equals_never_having_stopped(name, tiles, tmp_path):
    whole = trained(name, tiles, tmp_path / "whole")
    trained(name, tiles, tmp_path / "broken", stop_after=3)
    rest = trained(name, tiles, tmp_path / "broken", resume=True)
    assert rest["step"] == whole["step"] == STEPS
    assert_same(rest["model"], whole["model"])
    assert_same(rest["ema"], whole["ema"])
    assert_same(rest["critic"]["model"], whole["critic"]["model"])
    begun = stage_of(name, tiles, tmp_path)
    assert isinstance(begun, Adversarial)
    changed = [
        k for k, v in begun.critic.state_dict().items() if not v.equal(whole["critic"]["model"][k])
    ]
    assert any(key.endswith("bias") for key in changed)
    rows = [json.loads(r) for r in (tmp_path / "whole" / f"{name}.jsonl").read_text().splitlines()]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert any(key.startswith("held_out.") for key in rows[-1])


def test_the_codec_rests_while_the_critic_learns_alone(tiles, tmp_path):
    before = trained("pdjscc-48", tiles, tmp_path, stop_after=4)
    after = trained("pdjscc-48", tiles, tmp_path, resume=True, stop_after=5)
    assert_same(before["model"], after["model"])
    assert_same(before["ema"], after["ema"])
    assert not torch.equal(
        before["critic"]["model"]["condition.weight"], after["critic"]["model"]["condition.weight"]
    )
    last = trained("pdjscc-48", tiles, tmp_path, resume=True)
    name = "decoder.conv_block_out.1.weight"
    assert not torch.equal(after["model"][name], last["model"][name])
    rows = [json.loads(row) for row in (tmp_path / "pdjscc-48.jsonl").read_text().splitlines()]
    terms = {
        row["step"]: {"loss", "critic", "adversarial"} & set(row) for row in rows if "lr" in row
    }
    assert terms == {
        **{step: {"loss"} for step in range(1, 5)},
        5: {"critic"},
        6: {"loss", "critic", "adversarial"},
    }


@pytest.mark.parametrize("name", sorted(TINY))
def test_each_network_descends_its_own_loss(name, tiles, tmp_path):
    stage = stage_of(name, tiles, tmp_path)
    terms = stage.loss(0.99, torch.Generator().manual_seed(0))
    terms["critic"].backward(retain_graph=True)
    assert all(p.grad is None for p in stage.model.parameters())
    assert any(p.grad is not None for p in stage.critic.parameters())
    stage.critic.zero_grad(set_to_none=True)
    terms["loss"].backward()
    assert all(p.grad is None for p in stage.critic.parameters())
    assert any(p.grad is not None for p in stage.model.parameters())


def test_the_gradients_of_a_codec_reach_the_encoder_through_the_channel(tiles, tmp_path):
    stage = stage_of("pdjscc-48", tiles, tmp_path)
    stage.loss(0.0, torch.Generator().manual_seed(0))["loss"].backward()
    assert float(stage.model.encoder.conv_block1[0].weight.grad.abs().max()) > 0


def test_lpips_joins_when_there_is_a_picture(tiles, tmp_path):
    calls = []

    def distance(image, reference):
        calls.append((image, reference))
        return (image - reference).abs().mean(dim=(1, 2, 3))

    stage = dataclasses.replace(stage_of("generative-96", tiles, tmp_path), lpips=distance)
    losses = {}
    for progress in (0.0, 0.075, 0.2):
        terms = stage.loss(progress, torch.Generator().manual_seed(0))
        losses[progress] = {name: float(value.detach()) for name, value in terms.items()}
    assert "lpips" not in losses[0.0]
    for progress, weight in ((0.075, 0.5), (0.2, 1.0)):
        terms = losses[progress]
        expected = stage.weights.squared * terms["squared"] + weight * terms["lpips"]
        assert terms["loss"] == pytest.approx(expected, rel=1e-5)
    assert float(calls[-1][1].min()) < -0.5  # in [-1,1]
    with torch.no_grad():
        figures = stage.evaluate(stage.model)
    assert set(figures) == {"psnr_db@7dB", "lpips@7dB"}


def test_shrinking_demodulated_weights_changes_no_picture():
    torch.manual_seed(0)
    model = Generative.from_config({**NETWORKS["generative-96"].config, **TINY["generative-96"]})
    code, snr_db = torch.randn(2, 4, 2, 3), torch.tensor([1.0, 13.0])
    with torch.no_grad():
        before = model.decoder(code, snr_db)
        shrink(model)
        assert torch.allclose(model.decoder(code, snr_db), before, atol=1e-5)
    assert float(model.decoder.convs[0].conv.weight.detach().std()) < 0.3
    assert "decoder.convs.0.conv.weight" in hidden(model)
    assert not any("modulation" in name or "to_rgbs" in name for name in hidden(model))


def test_a_perceptual_codec_begins_with_signals_of_unit_size():
    torch.manual_seed(0)
    model = Pdjscc(16, 2)
    open_up(model)
    sizes = []
    for module in model.modules():
        if isinstance(module, torch.nn.PReLU):
            module.register_forward_hook(lambda m, i, out: sizes.append(float(out.std())))
    snr_db = torch.tensor([[7.0]])
    with torch.no_grad():
        code = model.encoder(torch.rand(1, 3, 32, 32), snr_db)
        shown = model.decoder(code / code.std(), snr_db)
    assert len(sizes) == 9
    assert min(sizes) > 0.1
    assert max(sizes) < 20
    assert float((shown - 0.5).abs().mean()) < 0.2


def test_snrs_are_drawn_as_wanted():
    drawn = torch.Generator().manual_seed(0)
    few = one_of((1.0, 4.0, 13.0))(200, drawn)
    assert few.shape == (200, 1)
    assert set(few.flatten().tolist()) == {1.0, 4.0, 13.0}
    many = uniform(2.0, 8.0)(2000, drawn)
    assert float(many.min()) >= 2
    assert float(many.max()) <= 8
    assert float(many.mean()) == pytest.approx(5, abs=6 * math.sqrt(3 / 2000))


def test_mixed_latents_change_once(tiles, tmp_path):
    stage = stage_of("stylegan2", tiles, tmp_path)
    stage = dataclasses.replace(stage, batch=64)
    latent = stage._latents(torch.Generator().manual_seed(0))
    assert latent.shape == (64, 6, 8)
    changes = (latent[:, 1:] != latent[:, :-1]).any(dim=2).sum(dim=1)
    assert set(changes.tolist()) == {0, 1}
    assert float((changes == 1).float().mean()) == pytest.approx(stylegan.MIXED, abs=0.12)


def test_sliced_distance_of_moved_points():
    """Points moved by c: the mean over directions of |<c, direction>|, nearly Gaussian."""
    points = torch.randn(500, 147, generator=torch.Generator().manual_seed(0))
    assert sliced_distance(points, points.flip(0)) == 0
    moved = points + 3 / 255
    length = 3 * math.sqrt(147)
    expected = length * math.sqrt(2 / (math.pi * 147))
    error = 4 * expected * math.sqrt(math.pi / 2 - 1) / math.sqrt(stylegan.DIRECTIONS)
    assert sliced_distance(points, moved) == pytest.approx(expected, abs=error)


def test_patches_are_compared_without_their_colours():
    flat = torch.rand(4, 3, 1, 1).expand(4, 3, 16, 16)
    assert float(stylegan._patches(flat, 16).abs().max()) < 1e-6
    ramp = (torch.arange(16.0) / 16).expand(4, 3, 16, 16)
    patch = stylegan._patches(ramp, 16)[0].view(3, 7, 7)
    assert patch[0, 0].tolist() == pytest.approx([(i - 3) / 16 for i in range(7)], abs=1e-6)


def test_latent_statistics_of_a_mapping_that_is_known():
    """One layer without weights: before the activation it gives its bias times the rate."""
    model = Generator((4, 4), style_dim=4, n_mlp=1)
    bias = torch.tensor([-200.0, -50.0, 0.0, 100.0])
    with torch.no_grad():
        model.style[1].weight.zero_()
        model.style[1].bias.copy_(bias)
    params = {"channels": [4, 4], "style_dim": 4, "n_mlp": 1}
    found = latent_statistics(params, model.state_dict())
    raw = 0.01 * bias * math.sqrt(2)
    assert found["mean"].tolist() == pytest.approx(raw.tolist(), rel=1e-4)
    assert found["std"].tolist() == pytest.approx([0.0] * 4, abs=1e-3)
    expected = torch.where(raw < 0, 0.2 * raw, raw)
    assert found["latent_avg"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_packed_generator_carries_its_statistics(tiles, tmp_path, monkeypatch):
    network = NETWORKS["stylegan2"]
    config = {**network.config, **TINY["stylegan2"]}
    monkeypatch.setitem(NETWORKS, "stylegan2", dataclasses.replace(network, config=config))
    run(stage_of("stylegan2", tiles, tmp_path), PLAN, tmp_path, resume=False, stop_after=1)
    tensors = load_file(train_networks.pack("stylegan2", tmp_path) / "model.safetensors")
    own = set(Generator.from_config(config).state_dict())
    assert set(tensors) == own | {"mean", "std", "latent_avg"}
    assert tensors["mean"].shape == (8,)
