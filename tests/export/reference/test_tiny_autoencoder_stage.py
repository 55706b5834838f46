"""The recipe of the tiny autoencoder: it learns the reference's latents, not some of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from jscc.export.models.tiny_autoencoder import TinyShape, tiny_names, tiny_shape
from jscc.export.reference import networks, train_networks
from jscc.export.reference import tiny_autoencoder as module
from jscc.export.reference.loop import Plan, run
from jscc.export.reference.networks import NETWORKS
from jscc.export.reference.precision import mixed
from jscc.export.reference.teacher import read_teacher
from jscc.export.reference.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderStage
from jscc.export.roles import REFERENCES
from jscc.export.systems.diffjscc import Condition, Decode
from jscc.runtime.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from jscc.export.reference.teacher import Teacher
    from jscc.export.reference.tiles import Tiles

NAME = "diffjscc-tiny"
CPU = torch.device("cpu")
PARAMS = {"latent": 4, "width": 8, "pooled": False}
SHORT = Plan(lr=2e-3, steps=3, warmup_steps=2, log_every=1)


@pytest.fixture
def stage(small_teacher: Teacher, smooth_tiles: Tiles) -> TinyAutoencoderStage:
    return make_stage(small_teacher, smooth_tiles)


def make_stage(teacher: Teacher, tiles: Tiles) -> TinyAutoencoderStage:
    torch.manual_seed(0)
    return TinyAutoencoderStage(
        tiles, PARAMS, teacher.link(), CPU, batch=2, crop=32, last_crop=64, lpips=None, name=NAME
    )


def test_latents_of_other_planes_than_the_teacher_s_are_refused(
    small_teacher: Teacher, smooth_tiles: Tiles
) -> None:
    usual = make_stage(small_teacher, smooth_tiles)
    with pytest.raises(DataError, match="latent: got 8 planes, expected 4, those of"):
        dataclasses.replace(usual, params={**PARAMS, "latent": 8})


def unlike(stage: TinyAutoencoderStage) -> dict[str, float]:
    """Terms of the loss on one batch, always the same."""
    terms = stage.loss(0.5, torch.Generator().manual_seed(5))
    return {name: float(value) for name, value in terms.items() if name != "latent"}


def test_latents_are_those_of_the_receiver(small_teacher: Teacher) -> None:
    """What the exported stages condition on and render, with the same weights."""
    link = small_teacher.link()
    image = torch.rand(1, 3, 32, 48)
    hint = Condition((link.first_stage,), 0.8)(image)[0]
    assert float(hint.std()) > 0.01
    torch.testing.assert_close(link.latent(image), hint)
    latent = torch.randn(1, 4, 4, 6)
    torch.testing.assert_close(
        link.picture(latent), Decode(link.first_stage, 0.8)(latent), atol=1e-6, rtol=1e-4
    )


def test_half_of_what_the_encoder_sees_was_received(
    stage: TinyAutoencoderStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def receive(
        codec: object, image: torch.Tensor, snr_db: torch.Tensor, generator: object
    ) -> torch.Tensor:
        seen.append(snr_db)
        return torch.full_like(image, 0.25)

    monkeypatch.setattr("jscc.export.reference.teacher.receive", receive)
    shown, wanted = stage._targets(torch.rand(3, 3, 32, 32), torch.Generator().manual_seed(0))
    assert shown.shape == (6, 3, 32, 32)
    assert bool((shown[3:] == 0.25).all())
    assert not bool((shown[:3] == 0.25).any())
    torch.testing.assert_close(wanted, stage.teacher.latent(shown))
    assert all(0 <= snr <= 14 for snr in seen[0].flatten().tolist())
    assert len(set(seen[0].flatten().tolist())) == 3


def test_a_perfect_encoder_has_no_error(
    stage: TinyAutoencoderStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its figures beside the teacher's are the teacher's."""
    monkeypatch.setattr(module, "mixed", lambda device: torch.autocast("cpu", enabled=False))
    monkeypatch.setattr(stage.model.encoder, "forward", stage.teacher.latent)
    monkeypatch.setattr(stage.model.decoder, "forward", stage.teacher.picture)
    with torch.no_grad():
        figures = stage.evaluate(stage.model)
    assert figures["latent"] == figures["latent_received"] == 0
    assert figures["psnr_db"] == pytest.approx(figures["teacher_psnr_db"], abs=1e-4)


def test_it_learns_both_halves(stage: TinyAutoencoderStage, tmp_path: Path) -> None:
    kept = {k: v.clone() for k, v in stage.teacher.first_stage.state_dict().items()}
    assert stage.matrices < set(dict(stage.model.named_parameters()))
    with torch.no_grad():
        before = stage.evaluate(stage.model) | unlike(stage)
    state = run(stage, dataclasses.replace(SHORT, steps=60, warmup_steps=5), tmp_path, resume=False)
    with torch.no_grad():
        after = stage.evaluate(state.model) | unlike(stage)
    assert after["latent"] < 0.7 * before["latent"]
    assert after["latent_received"] < 0.7 * before["latent_received"]
    assert after["uncorrected"] < 0.7 * before["uncorrected"]
    assert after["teacher_psnr_db"] == before["teacher_psnr_db"]
    for name, value in stage.teacher.first_stage.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_resuming_equals_never_having_stopped(
    small_teacher: Teacher, smooth_tiles: Tiles, tmp_path: Path
) -> None:
    whole = run(make_stage(small_teacher, smooth_tiles), SHORT, tmp_path / "a", resume=False)
    part = make_stage(small_teacher, smooth_tiles)
    run(part, SHORT, tmp_path / "b", resume=False, stop_after=1)
    rest = run(make_stage(small_teacher, smooth_tiles), SHORT, tmp_path / "b", resume=True)
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(rest.ema.state_dict()[name], value), name


def test_what_is_packed_is_a_published_form(
    stage: TinyAutoencoderStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(stage, dataclasses.replace(SHORT, steps=1), tmp_path, resume=False)
    small = dataclasses.replace(NETWORKS[NAME], config=PARAMS)
    monkeypatch.setitem(NETWORKS, NAME, small)
    tensors = load_file(train_networks.pack(NAME, tmp_path) / "model.safetensors")
    names = tiny_names(tensors, "packed")
    assert names == {name: name for name in tensors}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert tiny_shape(shapes, "packed") == TinyShape(4, 8)


def test_the_recipe_begins_from_the_reference(smooth_tiles: Tiles, tmp_path: Path) -> None:
    network = NETWORKS[NAME]
    job = networks.Job(smooth_tiles, tmp_path, CPU, 2, (32, 64), None)
    stage = network.stage(network.config, job)
    assert isinstance(stage, TinyAutoencoderStage)
    published = load_file(REFERENCES / "diffjscc" / "model.safetensors")
    name = "encoder.conv_in.weight"
    expected = published[f"first_stage_model.{name}"].float()
    assert torch.equal(stage.teacher.first_stage.state_dict()[name], expected)
    assert stage.matrices < set(TinyAutoencoder(TinyShape(4, 16)).state_dict())
    generator = torch.Generator().manual_seed(0)
    for progress in (0.5, 0.9):
        assert bool(torch.isfinite(stage.loss(progress, generator)["loss"]))


def test_what_was_trained_here_comes_before_the_reference(
    small_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jscc.export.reference.teacher.REFERENCES", tmp_path / "none")
    with pytest.raises(DataError, match=r"model\.safetensors: got no weights, expected those of"):
        read_teacher(tmp_path, CPU)
    packed = tmp_path / "packed"
    packed.mkdir()
    save_file(
        {name: value.contiguous() for name, value in small_teacher.tensors.items()},
        packed / "model.safetensors",
    )
    config = yaml.safe_dump({"params": small_teacher.params})
    (packed / "config.yaml").write_text(config, encoding="utf-8")
    image = torch.rand(1, 3, 32, 32)
    again = read_teacher(tmp_path, CPU).link()
    torch.testing.assert_close(again.latent(image), small_teacher.link().latent(image))


def test_mixed_precision_changes_latents_little(small_teacher: Teacher) -> None:
    link, image = small_teacher.link(), torch.rand(1, 3, 64, 64)
    exact = link.latent(image)
    with mixed(CPU):
        rounded = link.latent(image)
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).abs().max()) < 0.1 * float(exact.std()) + 0.02
