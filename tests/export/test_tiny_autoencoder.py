"""Tiny autoencoders: published files load by name, and a receiver renders through one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny_checkpoint
from jscc.calibration.images import find_images, read_image
from jscc.calibration.metrics import psnr_db
from jscc.export.cli import main
from jscc.export.models.tiny_autoencoder import (
    TinyShape,
    tiny_decoder,
    tiny_encoder,
    tiny_names,
    tiny_shape,
)
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = Path(__file__).parents[3] / "shared" / "data"
TAEF2 = DATA / "weights" / "taef2"
KODAK = DATA / "kodak"
SHAPE = TinyShape(latent=4, width=8)
PUBLISHED_PSNR_DB = 30.19  # of TAEF2 on the 24 Kodak images, measured with its authors' code

needs_taef2 = pytest.mark.skipif(not TAEF2.is_dir(), reason=f"no TAEF2 weights at {TAEF2}")


def halves(shape: TinyShape) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(3)
    return tiny_encoder(shape).eval(), tiny_decoder(shape).eval()


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def taef2() -> tuple[torch.nn.Module, torch.nn.Module]:
    found: dict[str, torch.Tensor] = {}
    for half in ("encoder", "decoder"):
        file = TAEF2 / f"taef2_{half}.pth"
        tensors = torch.load(file, weights_only=True)
        names = tiny_names(tensors, file.name)
        found |= {names[name]: tensor.float() for name, tensor in tensors.items()}
    shape = tiny_shape(shapes(found), "TAEF2")
    assert shape == TinyShape(latent=32, width=64, pooled=True)
    encoder, decoder = tiny_encoder(shape), tiny_decoder(shape)
    for prefix, module in (("encoder.", encoder), ("decoder.", decoder)):
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
        )
    return encoder.eval(), decoder.eval()


@pytest.mark.parametrize("pooled", [False, True])
def test_three_published_forms_mean_the_same(pooled: bool) -> None:
    encoder, decoder = halves(TinyShape(4, 8, pooled))
    apart = [tiny_names(half.state_dict(), "x.pth") for half in (encoder, decoder)]
    both = {name for names in apart for name in names.values()}
    assert set(tiny_names(both, "x").values()) == both
    # diffusers leaves out the squashing in front of the decoder, so its numbers are one less.
    listed = [name.split(".", 2) for name in both]
    diffusers = {
        f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}" for half, number, rest in listed
    }
    assert set(tiny_names(diffusers, "x").values()) == both


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["conv.weight"], "got 'conv.weight', expected the names of a tiny autoencoder"),
        (["encoder.0.weight", "head.bias"], "got 'head.bias'"),
        (["decoder.layers.x.weight"], "got 'decoder.layers.x.weight'"),
        ([], "got 'nothing'"),
    ],
)
def test_other_files_are_refused(names: list[str], shown: str) -> None:
    with pytest.raises(CheckpointError, match=shown) as caught:
        tiny_names(names, "model.pth")
    assert caught.value.code == "E_CKPT_KEYS"


def test_halves_that_do_not_belong_together_are_refused() -> None:
    encoder, decoder = halves(SHAPE)
    found = {f"encoder.{k}": v for k, v in shapes(encoder.state_dict()).items()}
    with pytest.raises(CheckpointError, match=r"got no 'decoder\.1\.weight', expected both"):
        tiny_shape(found, "x.pth")
    _, other = halves(TinyShape(5, 8))
    found |= {f"decoder.{k}": v for k, v in shapes(other.state_dict()).items()}
    with pytest.raises(CheckpointError, match="4 latent planes and width 8 and a decoder of 5"):
        tiny_shape(found, "x.pth")
    found |= {f"decoder.{k}": v for k, v in shapes(decoder.state_dict()).items()}
    assert tiny_shape(found, "x.pth") == SHAPE


@needs_taef2
def test_real_weights_give_back_a_picture() -> None:
    encoder, decoder = taef2()
    row = torch.linspace(0, 1, 64)
    image = torch.stack(
        [row.expand(64, 64), row[:, None].expand(64, 64), (row * 0.5).expand(64, 64)]
    )
    with torch.no_grad():
        latent = encoder(image[None])
        restored = decoder(latent).clamp(0, 1)
    assert latent.shape == (1, 32, 8, 8)
    assert float((restored[0] - image).abs().mean()) < 0.05  # untrained ones miss by 0.25


@needs_taef2
@pytest.mark.exhaustive
@pytest.mark.skipif(not KODAK.is_dir(), reason=f"no pictures at {KODAK}")
def test_real_weights_are_as_good_as_published() -> None:
    encoder, decoder = taef2()
    found = []
    for file in find_images(KODAK, None):
        image = read_image(file)
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            restored = decoder(encoder(tensor)).clamp(0, 1)[0]
        pixels = (restored.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        found.append(psnr_db(image, pixels))
    assert np.mean(found) == pytest.approx(PUBLISHED_PSNR_DB, abs=0.01)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ControlLDM whose latent is an eighth of the image, as a tiny autoencoder's is."""
    config: dict[str, Any] = copy.deepcopy(tiny_checkpoint.LDM)
    params = config["params"]
    for part in ("control_stage_config", "unet_config"):
        params[part]["params"].update(channel_mult=[1], attention_resolutions=[])
    params["first_stage_config"]["params"]["ddconfig"]["ch_mult"] = [1, 1, 1, 1]
    return tiny_checkpoint.write_control_ldm(tmp_path_factory.mktemp("ldm") / "x", config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Both halves as they are published: safetensors of half precision, and a torch file."""
    folder = tmp_path_factory.mktemp("tiny")
    encoder, decoder = halves(SHAPE)
    save_file({k: v.half() for k, v in encoder.state_dict().items()}, folder / "e.safetensors")
    torch.save(decoder.state_dict(), folder / "d.pth")
    return folder / "e.safetensors", folder / "d.pth"


def export(checkpoint: Path, target: Path, *more: str) -> int:
    command = ["--model", "diffjscc", "--checkpoint", str(checkpoint), "-o", str(target)]
    return main([*command, *more])


def test_a_receiver_conditions_and_renders_through_it(
    checkpoint: Path, tiny: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    files = [part for file in tiny for part in ("--tiny", str(file))]
    assert export(checkpoint, tmp_path / "x.jscc", "--vae", "tiny", *files, "--size", "64x96") == 0
    bundle = Bundle.open(tmp_path / "x.jscc")
    assert bundle.manifest.variant == "DiffJSCC, tiny autoencoder"
    assert set(bundle.manifest.source.networks) == {"model", "tiny"}
    encoder, decoder = halves(SHAPE)
    image = np.random.default_rng(0).random((1, 3, 64, 96), np.float32)
    stage = bundle.manifest.stages["condition"]
    graph = bundle.graph("condition")
    session = OnnxRuntimeBackend(threads=1).load("condition", stage, graph, {})
    hint = session.run({"reconstruction": image})["hint"]
    with torch.no_grad():
        expected = encoder.half().float()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(hint, expected, atol=1e-5)
    stage = bundle.manifest.stages["render"]
    session = OnnxRuntimeBackend(threads=1).load("render", stage, bundle.graph("render"), {})
    latent = np.random.default_rng(1).standard_normal((1, 4, 8, 12)).astype(np.float32)
    flat = np.full_like(image, 0.5)
    rendered = session.run({"latent": latent, "reconstruction": flat})["image"]
    with torch.no_grad():
        decoded = decoder(torch.from_numpy(latent)).numpy()
    # The colours of large areas come from the reconstruction, which is flat: details stay.
    np.testing.assert_allclose(
        np.diff(rendered - decoded, axis=-1), 0, atol=0.2 * float(np.ptp(decoded))
    )
    assert not np.allclose(rendered, flat, atol=1e-3)
    assert abs(float(decoded.mean()) - 0.5) > 0.1
    assert float(rendered.mean()) == pytest.approx(0.5, abs=0.02)
    request.getfixturevalue("tensorrt_takes")(bundle, shapes="64x96")


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        (["--vae", "tiny"], "--vae tiny: got no --tiny, expected"),
        (["--tiny", "x.pth"], "--vae full: got --tiny x.pth, expected"),
    ],
)
def test_the_choice_and_its_files_go_together(
    checkpoint: Path, tmp_path: Path, capsys: Any, more: list[str], shown: str
) -> None:
    assert export(checkpoint, tmp_path / "x.jscc", *more) == 2
    assert shown in capsys.readouterr().err


def test_latents_of_another_model_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    encoder, decoder = halves(TinyShape(5, 8))
    both = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    both |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    save_file(both, tmp_path / "both.safetensors")
    more = ("--vae", "tiny", "--tiny", str(tmp_path / "both.safetensors"))
    assert export(checkpoint, tmp_path / "x.jscc", *more) == 65
    assert "got an autoencoder of 5 latent planes, 8 pixels each, expected 4" in (
        capsys.readouterr().err
    )
