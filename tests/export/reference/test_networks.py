"""The networks' own recipes, on synthetic pictures and with tiny networks."""

import argparse
import dataclasses
import math
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from jscc.export.models.adm import Adm
from jscc.export.models.af import Af
from jscc.export.reference import af as af_module
from jscc.export.reference import inn as inn_module
from jscc.export.reference import networks, train_networks
from jscc.export.reference import prior as prior_module
from jscc.export.reference.af import AfStage, widened
from jscc.export.reference.loop import Plan, read_checkpoint, run
from jscc.export.reference.networks import DEVICES, NETWORKS, REFERENCES, Job
from jscc.export.reference.precision import mixed
from jscc.export.reference.prior import PriorStage, alphas_cumprod
from jscc.export.reference.tiles import read_tiles
from jscc.runtime.errors import DataError, UsageError

TINY = {
    "af-96": {"c_feat": 4, "c_out": 4},
    "af-48": {"c_feat": 4, "c_out": 8},
    "prior": {"model_channels": 32, "channel_mult": [1, 1], "attention_resolutions": [2]},
    "inn-96": {"lifts": 1, "blocks": 1, "width": 4, "condition": 8, "hidden": 4},
    "commin-96": {"lifts": 1, "width": 4, "nets": 3, "snrs_db": [1.0, 7.0, 13.0]},
}
SHORT = Plan(lr=1e-3, steps=3, warmup_steps=2, log_every=1)


@pytest.fixture(scope="module", autouse=True)
def little_work():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(af_module, "EVALUATED_SNR_DB", (7.0,))
        patch.setattr(inn_module, "EVALUATED_SNR_DB", (13.0,))
        patch.setattr(prior_module, "EVALUATED_T", (300,))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
        picture.save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def tiles(folder):
    return read_tiles(folder)


def stage_of(name, tiles, out):
    network = NETWORKS[name]
    job = Job(tiles, out, torch.device("cpu"), 2, (32, 64), None)
    torch.manual_seed(0)
    return network.stage({**network.config, **TINY[name]}, job)


@pytest.fixture(scope="module")
def codec_out(tiles, tmp_path_factory):
    out = tmp_path_factory.mktemp("codec")
    state = run(stage_of("af-96", tiles, out), SHORT, out, resume=False)
    return out, state


def test_the_schedule_is_that_of_ho_et_al():
    """Share of the signal left at the end of the linear schedule: 4.036e-5 (1e-4 to 0.02)."""
    abar = alphas_cumprod()
    assert float(abar[0]) == pytest.approx(1 - 1e-4, abs=1e-12)
    assert float(abar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)


def test_a_network_for_another_bandwidth_begins_from_the_trained_one(tiles, codec_out):
    out, state = codec_out
    model = stage_of("af-48", tiles, out).model
    kept, other = state.ema.state_dict(), model.state_dict()
    same = "encoder.layers.rb1.conv1.weight"
    assert torch.equal(other[same], kept[same])
    wider = "encoder.layers.rbws4.conv1.weight"
    assert other[wider].shape == (8, 4, 3, 3)
    assert torch.equal(other[wider][:4], kept[wider])


def test_trained_planes_ignore_new_ones():
    trained, own = torch.randn(4, 6, 3, 3), torch.randn(8, 12, 3, 3)
    wide, x = widened(trained, own), torch.randn(1, 12, 5, 5)
    expected = functional.conv2d(x[:, :6], trained)
    assert torch.allclose(functional.conv2d(x, wide)[:, :4], expected, atol=1e-4)
    assert torch.equal(wide[4:], own[4:])
    assert torch.equal(widened(own, trained), own[:4, :6])  # and narrowed
    gates = widened(trained[..., 0, 0], own[..., 0, 0], told=1)
    assert torch.equal(gates[:4, -1], trained[:, -1, 0, 0])  # of the SNR
    assert torch.equal(gates[:4, :5], trained[:, :5, 0, 0])
    assert not gates[:4, 5:-1].any()
    assert torch.equal(widened(torch.ones(4), torch.zeros(6)), torch.tensor([1.0] * 4 + [0, 0]))


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("avx2", torch.float32), ("avx512_f", torch.float32), ("avx512_bf16", torch.bfloat16)],
)
def test_half_precision_is_for_cpus_that_compute_in_it(capability, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    with mixed(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_a_wider_encoder_sends_what_the_trained_one_sends(tiles):
    """On the planes that both have, at every SNR: nothing is lost by beginning there."""
    torch.manual_seed(0)
    trained = Af.from_config(NETWORKS["af-96"].config | TINY["af-96"])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if not name.endswith((".beta", ".gamma")):
                parameter.normal_(std=0.25)
    begin = trained.state_dict()
    config = NETWORKS["af-48"].config | TINY["af-48"]
    wider = AfStage(
        tiles, config, torch.device("cpu"), batch=2, crop=32, last_crop=32, name="x", begin=begin
    ).model
    image = torch.rand(2, 3, 64, 64)
    for snr_db in (0.0, 13.0):
        snr = torch.full((2, 1), snr_db)
        expected, sent = trained.encoder(image, snr), wider.encoder(image, snr)
        gate = slice(0, 4)
        assert not torch.allclose(expected, trained.encoder(image, snr + 1.0), rtol=1e-3)
        assert torch.allclose(sent[:, gate], expected, rtol=1e-3, atol=1e-4)


def test_what_a_network_builds_on_must_be_there(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "REFERENCES", tmp_path / "none")
    with pytest.raises(DataError, match=r"af-96.pt: got no checkpoint"):
        stage_of("af-48", tiles, tmp_path)


def test_a_network_without_checkpoint_builds_on_packed_weights(tiles, codec_out, monkeypatch):
    out, state = codec_out
    monkeypatch.setattr(networks, "REFERENCES", train_networks.pack("af-96", out).parent)
    model = stage_of("af-48", tiles, out / "nowhere").model
    same = "encoder.layers.rb1.conv1.weight"
    kept = state.ema.state_dict()[same].half().float()
    assert torch.equal(model.state_dict()[same], kept)


def test_training_begins_from_packed_weights(codec_out):
    out, state = codec_out
    folder = train_networks.pack("af-96", out)
    model = Af.from_config({**NETWORKS["af-96"].config, **TINY["af-96"]})
    train_networks.begin(model, folder, "")
    for name, value in state.ema.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.half().float()), name
    other = Af.from_config({**NETWORKS["af-48"].config, **TINY["af-48"]})
    with pytest.raises(DataError, match=r"got no 'encoder.* of shape \(8,"):
        train_networks.begin(other, folder, "")
    with pytest.raises(DataError, match=r"got no model.safetensors, expected one"):
        train_networks.begin(other, folder / "nowhere", "")


def test_resuming_equals_never_having_stopped(tiles, tmp_path):
    whole = run(stage_of("prior", tiles, tmp_path / "a"), SHORT, tmp_path / "a", resume=False)
    run(stage_of("prior", tiles, tmp_path / "b"), SHORT, tmp_path / "b", resume=False, stop_after=1)
    rest = run(stage_of("prior", tiles, tmp_path / "b"), SHORT, tmp_path / "b", resume=True)
    assert rest.step == whole.step == 3
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(rest.ema.state_dict()[name], value), name


def test_the_error_of_a_prior_that_predicts_nothing_is_the_noise_power(tiles):
    params = {**NETWORKS["prior"].config, **TINY["prior"]}
    stage = PriorStage(tiles, params, torch.device("cpu"), batch=2, crop=64, last_crop=64)
    with torch.no_grad():
        for parameter in stage.model.out.parameters():
            parameter.zero_()
        figures = stage.evaluate(stage.model)
    count = len(tiles.held_out) * 3 * 64 * 64
    assert figures["error@t300"] == pytest.approx(1.0, abs=6 * math.sqrt(2 / count))


def test_the_command_trains_resumes_and_packs(folder, tmp_path, monkeypatch):
    network = NETWORKS["af-96"]
    small = dataclasses.replace(
        network, config={**network.config, **TINY["af-96"]}, batch={"cpu": 2}, crops=(32, 64)
    )
    monkeypatch.setitem(NETWORKS, "af-96", small)
    command = ["--network", "af-96", "--data", str(folder), "--out", str(tmp_path)]
    train_networks.main([*command, "--steps", "2"])
    train_networks.main([*command, "--steps", "3", "--resume"])
    assert read_checkpoint(tmp_path / "af-96.pt")["step"] == 3
    packed = tmp_path / "packed" / "af-96"
    config = yaml.safe_load((packed / "config.yaml").read_text())
    assert config["family"] == "af"
    weights = load_file(packed / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert set(weights) == set(Af.from_config(config).state_dict())


def test_a_setting_of_the_configuration_is_used_and_packed(folder, tmp_path, monkeypatch):
    network = NETWORKS["af-96"]
    small = dataclasses.replace(
        network, config={**network.config, **TINY["af-96"]}, batch={"cpu": 2}, crops=(32, 64)
    )
    monkeypatch.setitem(NETWORKS, "af-96", small)
    command = ["--network", "af-96", "--data", str(folder), "--out", str(tmp_path), "--steps", "1"]
    usual = small.config["c_out"]
    train_networks.main([*command, "--set", f"c_out={usual // 2}"])
    packed = tmp_path / "packed" / "af-96"
    config = yaml.safe_load((packed / "config.yaml").read_text())
    assert config == {**small.config, "c_out": usual // 2}
    assert set(load_file(packed / "model.safetensors")) == set(Af.from_config(config).state_dict())
    assert NETWORKS["af-96"].config["c_out"] == usual


def test_a_setting_inside_another(monkeypatch):
    usual = {"rank": 16, "weights": {"lpips": 0.5, "target": 1.0}}
    changed = train_networks.configured(usual, [("weights.lpips", 0), ("rank", 4)])
    assert changed == {"rank": 4, "weights": {"lpips": 0, "target": 1.0}}
    assert usual["weights"]["lpips"] == 0.5


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("weights.dists=1", "--set: got 'weights.dists', expected one of rank, weights.lpips"),
        ("ranks=1", "--set: got 'ranks', expected one of rank"),
        ("rank.more=1", "--set: got 'rank.more', expected one of rank"),
        ("weights=1", "--set weights: got 1, expected a value such as"),
        ("rank=4.5", "--set rank: got 4.5, expected a value such as 16"),
        ("rank=true", "--set rank: got True, expected a value such as 16"),
        ("weights.lpips=much", "--set weights.lpips: got 'much', expected a value such as 0.5"),
        ("weights.lpips=nan", "--set weights.lpips: got 'nan', expected a value such as 0.5"),
        ("weights.lpips=.inf", "--set weights.lpips: got inf, expected a value such as 0.5"),
        ("weights.lpips=1e999", "--set weights.lpips: got '1e999', expected a value such as 0.5"),
        ("weights.lpips=-0.5", "--set weights.lpips: got -0.5, expected a value such as 0.5"),
        ("weights.lpips=true", "--set weights.lpips: got True, expected a value such as 0.5"),
        ("rank=0", "--set rank: got 0, expected a value such as 16"),
        ("rank=-4", "--set rank: got -4, expected a value such as 16"),
        ("steps=[]", "--set steps: got [], expected a value such as [1, 2, 4]"),
        ("steps=[0]", "--set steps: got [0], expected a value such as [1, 2, 4]"),
        ("steps=[a]", "--set steps: got ['a'], expected a value such as [1, 2, 4]"),
        ("steps=[1, 2.0]", "--set steps: got [1, 2.0], expected a value such as [1, 2, 4]"),
        ("steps=4", "--set steps: got 4, expected a value such as [1, 2, 4]"),
        ("SNR_low=nan", "--set SNR_low: got 'nan', expected a value such as 0.0"),
    ],
)
def test_settings_that_a_network_does_not_have(setting, shown):
    usual = {"rank": 16, "weights": {"lpips": 0.5}, "steps": [1, 2, 4], "SNR_low": 0.0}
    with pytest.raises(DataError) as caught:
        train_networks.configured(usual, [train_networks.setting(setting)])
    assert str(caught.value).startswith(shown)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lpips=1e-3", 0.001),  # text to YAML, which wants 1.0e-3
        ("lpips=1", 1.0),
        ("lpips=0", 0.0),
        ("steps=[8]", [8]),
        ("SNR_low=-2", -2.0),  # in dB
        ("snrs_db=[-1, 5e0]", [-1.0, 5.0]),
        ("snr=false", False),
    ],
)
def test_a_setting_takes_the_kind_of_the_usual_value(setting, value):
    usual = {"lpips": 0.5, "steps": [1, 2], "SNR_low": 0.0, "snrs_db": [1.0], "snr": True}
    name, parsed = train_networks.setting(setting)
    found = train_networks.configured(usual, [(name, parsed)])[name]
    assert (found, type(found)) == (value, type(value))


def test_a_training_is_not_resumed_with_another_configuration(folder, tmp_path, monkeypatch):
    network = NETWORKS["af-96"]
    small = dataclasses.replace(
        network, config={**network.config, **TINY["af-96"]}, batch={"cpu": 2}, crops=(32, 64)
    )
    monkeypatch.setitem(NETWORKS, "af-96", small)
    command = ["--network", "af-96", "--data", str(folder), "--out", str(tmp_path)]
    train_networks.main([*command, "--steps", "1", "--set", "SNR_high=9"])
    path = tmp_path / "af-96.pt"
    before = path.read_bytes()
    again = [*command, "--steps", "2", "--resume"]
    with pytest.raises(DataError, match=r"--resume: got SNR_high 14.0 for .*, expected 9.0, with"):
        train_networks.main(again)
    assert path.read_bytes() == before
    train_networks.main([*again, "--set", "SNR_high=9"])
    older = read_checkpoint(path)
    assert older["step"] == 2
    del older["config"]
    torch.save(older, path)
    train_networks.main([*command, "--steps", "3", "--resume"])
    assert read_checkpoint(path)["step"] == 3


@pytest.mark.parametrize("text", ["rank", "=3", "rank=", "rank=[1", "rank=null"])
def test_what_is_no_setting(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=VALUE"):
        train_networks.setting(text)


def test_weights_that_float16_cannot_hold_are_not_packed(codec_out):
    out, _ = codec_out
    saved = read_checkpoint(out / "af-96.pt")
    name = next(iter(saved["ema"]))
    saved["ema"][name] = saved["ema"][name] + 1e6
    torch.save(saved, out / "af-96.pt")
    with pytest.raises(ValueError, match=f"beyond float16 in {name}"):
        train_networks.pack("af-96", out)


def test_the_prior_is_the_size_that_its_card_says():
    parameters = sum(p.numel() for p in Adm.from_config(NETWORKS["prior"].config).parameters())
    assert parameters < 4_000_000


@pytest.fixture
def tiny_codec(monkeypatch):
    """`stage_of` an INN finds the tiny codec's configuration."""
    codec = NETWORKS["af-96"]
    small = dataclasses.replace(codec, config={**codec.config, **TINY["af-96"]})
    monkeypatch.setitem(NETWORKS, "af-96", small)


@pytest.mark.parametrize("name", ["inn-96", "commin-96"])
def test_an_inn_learns_what_the_codec_makes_of_an_image(name, tiles, codec_out, tiny_codec):
    out, _ = codec_out
    stage = stage_of(name, tiles, out)
    codec = {key: value.clone() for key, value in stage.codec.state_dict().items()}
    assert stage.matrices
    assert stage.matrices < set(dict(stage.model.named_parameters()))
    plan = dataclasses.replace(SHORT, lr=5e-3, steps=24)
    with torch.no_grad():
        before = stage.evaluate(stage.model)["psnr_db@13dB"]
    state = run(stage, plan, out, resume=False)
    assert read_checkpoint(out / f"{name}.pt")["step"] == 24
    with torch.no_grad():
        after = stage.evaluate(state.model)["psnr_db@13dB"]
    assert after > before + 1
    assert all(torch.equal(value, codec[key]) for key, value in stage.codec.state_dict().items())
    packed = train_networks.pack(name, out)
    assert set(load_file(packed / "model.safetensors")) == set(stage.model.state_dict())


def test_an_inn_is_trained_at_the_snrs_of_its_configuration(tiles, codec_out, tiny_codec):
    """One SNR a batch: any of a range, or one of a list."""
    drawn = {}
    for name in ("inn-96", "commin-96"):
        stage = stage_of(name, tiles, codec_out[0])
        with pytest.MonkeyPatch.context() as patch:
            seen = drawn.setdefault(name, [])

            def receive(codec, image, known, generator, seen=seen):
                seen.append(known)
                return image

            patch.setattr(inn_module, "receive", receive)
            generator = torch.Generator().manual_seed(3)
            for _ in range(6):
                stage.loss(0.0, generator)
    assert all(len(set(known.flatten().tolist())) == 1 for each in drawn.values() for known in each)
    ranged, listed = ({float(known[0]) for known in each} for each in drawn.values())
    assert len(ranged) == 6
    assert all(0 <= snr <= 14 for snr in ranged)
    assert len(listed) > 1
    assert listed <= {1.0, 7.0, 13.0}


def test_a_device_that_no_network_has_a_budget_for(tmp_path):
    command = ["--network", "af-96", "--data", str(tmp_path), "--out", str(tmp_path)]
    wanted = "--device: got 'mps', expected cpu or cuda. See"
    with pytest.raises(UsageError, match=wanted):
        train_networks.main([*command, "--device", "mps"])
    for network in NETWORKS.values():
        assert set(network.minutes) == set(network.batch) == set(DEVICES)


@pytest.fixture(scope="module")
def recipes():
    """The README's table: what each network builds on, and its minutes."""
    text = (REFERENCES / "README.md").read_text(encoding="utf-8")
    row = r"^\| `([^`-][^`]*)` \|[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|"
    found = re.findall(row, text, re.MULTILINE)
    return {name: (base.strip(" `"), float(cpu), float(cuda)) for name, base, cpu, cuda in found}


def test_the_table_of_recipes_is_that_of_the_networks(recipes):
    assert list(recipes) == list(NETWORKS)
    for name, (base, cpu, cuda) in recipes.items():
        assert NETWORKS[name].minutes == {"cpu": cpu, "cuda": cuda}, name
        assert base in ("", "diffjscc", *NETWORKS)


@pytest.mark.parametrize("name", TINY)
def test_a_network_builds_on_what_the_table_says(name, recipes, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "REFERENCES", tmp_path / "none")
    base = recipes[name][0]
    if base:
        with pytest.raises(DataError, match=f"expected that of {base}, which"):
            stage_of(name, tiles, tmp_path)
    else:
        assert stage_of(name, tiles, tmp_path).model is not None
