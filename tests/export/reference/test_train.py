"""The recipe of the reference weights, on synthetic pictures and with tiny networks."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.unet import Control, Unet
from jscc.export.reference import codec as codec_module
from jscc.export.reference import train as recipe_module
from jscc.export.reference.codec import calibrate, psnr_db, transmit
from jscc.export.reference.config import reference_config
from jscc.export.reference.first_stage import recolour
from jscc.export.reference.loop import Plan, read_checkpoint
from jscc.export.reference.optimizer import orthogonalise
from jscc.export.reference.tiles import draw_crops, read_tiles
from jscc.export.reference.train import PRESETS, STAGES, Recipe, train
from jscc.runtime.errors import DataError

STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def little_work():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_module, "CALIBRATION_BATCHES", 2)
        patch.setattr(codec_module, "CALIBRATION_BATCH", 2)
        patch.setattr(codec_module, "EVALUATED_SNR_DB", (7.0,))
        yield
    torch.set_num_threads(threads)


def picture(seed, size=256):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tar of three tiles of two source images, and two plain pictures, one of them too small."""
    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(folder / "some.tar", "w") as archive:
        for index in range(3):
            stream = io.BytesIO()
            picture(index).save(stream, "WEBP", quality=90)
            info = tarfile.TarInfo(f"tile{index}.webp")
            info.size = stream.tell()
            stream.seek(0)
            archive.addfile(info, stream)
    rows = ["tar\ttile\tsource_image\tx\ty\tlicence"]
    rows += [
        f"some.tar\ttile{i}.webp\t{s}\t0\t0\tCC0" for i, s in enumerate(["a.png", "a.png", "b.png"])
    ]
    (folder / "manifest.tsv").write_text("\n".join(rows) + "\n")
    picture(7, 300).save(folder / "large.png")
    picture(8, 100).save(folder / "small.png")
    return folder


def make_recipe(data, out):
    """A recipe of a few steps with networks as small as the classes allow."""
    config = reference_config()
    params = config["params"]
    codec = {"ngf": 4, "max_ngf_E": 8, "max_ngf_D": 8, "n_blocks_E": 1, "n_blocks_D": 1}
    params["preprocess_config"]["params"] |= codec | {"C_channel": 4}
    params["first_stage_config"]["params"]["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 1, 1]}
    for name in ("unet_config", "control_stage_config"):
        params[name]["params"] |= {"model_channels": 32, "channel_mult": [1, 1], "context_dim": 8}
        params[name]["params"] |= {"attention_resolutions": [2], "num_head_channels": 16}
    preset = dataclasses.replace(
        PRESETS["cpu"],
        batch=dict.fromkeys(STAGES, 2),
        crop=32,
        last_crop=64,
        first_stage_crop=32,
        first_stage_last_crop=64,
        latent_crop=8,
        snrs_per_tile=1,
    )
    limit = {stage: Plan(lr=1e-3, steps=STEPS, warmup_steps=2, log_every=1) for stage in STAGES}
    return Recipe(data=data, out=out, preset=preset, config=config, limit=limit)


@pytest.fixture
def tiny(data, tmp_path):
    return make_recipe(data, tmp_path / "out")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    recipe = make_recipe(data, tmp_path_factory.mktemp("trained"))
    train(recipe, STAGES)
    return recipe


def test_tiles_of_one_source_image_stay_together(data):
    tiles = read_tiles(data)
    assert tiles.train.dtype == torch.uint8
    assert tiles.train.shape[1:] == (3, 256, 256)
    # Three sources of at least 256x256 with 2, 1 and 1 tiles; the share of 3 % rounds up to one.
    assert len(tiles.train) + len(tiles.held_out) == 4
    assert len(tiles.held_out) in (1, 2)
    again = read_tiles(data)
    assert torch.equal(again.held_out, tiles.held_out)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="got no picture of at least 256x256"):
        read_tiles(tmp_path)


def test_crops_follow_the_generator(data):
    tiles = read_tiles(data).train
    crops = [
        draw_crops(tiles, count=3, size=48, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert crops[0].shape == (3, 3, 48, 48)
    assert float(crops[0].min()) >= 0
    assert float(crops[0].max()) <= 1
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_transmission_has_unit_power_and_the_wanted_noise():
    planes = 3 * torch.randn(2, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(planes.shape, generator=torch.Generator().manual_seed(1))
    sent = transmit(planes, torch.full((2, 1), 300.0), noise)
    symbols = torch.complex(sent[:, :4], sent[:, 4:])
    assert symbols.abs().square().mean(dim=(1, 2, 3)) == pytest.approx([1, 1], abs=1e-5)
    snr_db = torch.tensor([[0.0], [10.0]])
    added = transmit(planes, snr_db, noise) - sent
    power = torch.complex(added[:, :4], added[:, 4:]).abs().square().mean(dim=(1, 2, 3))
    assert power == pytest.approx([1.0, 0.1], rel=0.02)


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    for shape in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(shape))
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3


def test_recolouring_moves_large_areas_only():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(recolour(image + 0.25, image), image, atol=1e-6)
    fine = 0.1 * (-1.0) ** torch.arange(64)
    assert torch.allclose(recolour(image + fine, image), image + fine, atol=1e-6)


def test_calibration_measures_the_statistics_of_the_present_weights(tiny):
    params = tiny.config["params"]["preprocess_config"]["params"]
    tiles = read_tiles(tiny.data).train[:, :, :64, :64]
    torch.manual_seed(0)
    codec = DeepJscc.from_config(params).eval()
    calibrate(codec, tiles, params)
    assert not codec.training
    first = codec.E.net[2].running_mean.clone()
    codec.E.net[1].weight.data *= 2
    calibrate(codec, tiles, params)
    assert torch.allclose(codec.E.net[2].running_mean, 2 * first, rtol=0.2, atol=1e-2)


def test_psnr():
    reference = torch.zeros(1, 3, 8, 8)
    assert psnr_db(reference + 0.1, reference) == pytest.approx([20.0], abs=1e-4)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("stage", ["codec", "autoencoder"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny, tmp_path, stage):
    runs = {}
    for name in ("whole", "broken"):
        recipe = dataclasses.replace(tiny, out=tmp_path / name, resume=True)
        if name == "broken":
            train(recipe, [stage], stop_after=STEPS // 2)
        train(recipe, [stage])
        runs[name] = read_checkpoint(recipe.out / f"{stage}.pt")
    assert runs["whole"]["step"] == runs["broken"]["step"] == STEPS
    assert_same(runs["whole"]["model"], runs["broken"]["model"])
    assert_same(runs["whole"]["ema"], runs["broken"]["ema"])


def test_every_stage_leaves_a_checkpoint_a_log_and_packed_weights(trained):
    for stage in STAGES:
        lines = (trained.out / f"{stage}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 4]
        assert any(name.startswith("held_out.") for name in rows[-1])
        assert not list(trained.out.glob("*.part"))
    packed = trained.out / "packed"
    tensors = load_file(packed / "model.safetensors")
    config = yaml.safe_load((packed / "config.yaml").read_text())["params"]
    assert "cond_stage_config" not in config
    assert config["scale_factor"] > 0
    assert_loads(
        DeepJscc.from_config(config["preprocess_config"]["params"]), tensors, "preprocess_model."
    )
    first_stage = Autoencoder.from_config(config["first_stage_config"]["params"])
    assert_loads(first_stage, tensors, "first_stage_model.")
    assert_loads(
        Unet.from_config(config["unet_config"]["params"]), tensors, "model.diffusion_model."
    )
    assert_loads(
        Control.from_config(config["control_stage_config"]["params"]), tensors, "control_model."
    )
    for name, value in first_stage.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(tensors[f"cond_encoder.{name}"].float(), value)
    assert all(t.dtype in (torch.float16, torch.int64) for t in tensors.values())


def assert_loads(module, tensors, prefix):
    mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(mine)


def test_the_decoder_stage_leaves_the_encoder_alone(trained):
    before = read_checkpoint(trained.out / "autoencoder.pt")["ema"]
    after = read_checkpoint(trained.out / "decoder.pt")["ema"]
    kept = {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert_same({n: before[n] for n in kept}, {n: after[n] for n in kept})
    assert not torch.equal(before["decoder.conv_out.weight"], after["decoder.conv_out.weight"])


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / "codec.pt")
    with pytest.raises(DataError, match="got checkpoint format 99"):
        read_checkpoint(tmp_path / "codec.pt")


def test_the_command_line_passes_its_options(data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipe_module, "train", lambda recipe, stages: seen.append((recipe, stages))
    )
    arguments = ["--data", str(data), "--out", str(tmp_path), "--stage", "codec", "--minutes", "3"]
    recipe_module.main([*arguments, "--resume"])
    recipe_module.main(["--data", str(data), "--out", str(tmp_path), "--preset", "gpu"])
    (first, stages), (second, every) = seen
    assert stages == ["codec"]
    assert every == STAGES
    assert first.limit["codec"].minutes == 3
    assert first.resume
    assert not second.resume
    assert (first.device.type, second.device.type) == ("cpu", "cuda")
    assert second.limit["diffusion"].minutes == PRESETS["gpu"].minutes["diffusion"]


def test_the_packed_reference_fits_its_configuration():
    folder = Path(recipe_module.__file__).parent / "diffjscc"
    if not folder.exists():
        pytest.skip("no reference weights are packed")
    expected = reference_config()["params"]
    config = yaml.safe_load((folder / "config.yaml").read_text())["params"]
    assert config | {"scale_factor": 0} == expected | {"scale_factor": 0}
    assert (folder / "model.safetensors").stat().st_size < 38e6
