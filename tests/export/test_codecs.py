"""Codecs of the registry as bundles: odd codes, blind codecs, and what configurations may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.codecs import codec_of
from jscc.export.gather import Request, gather
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.source import RandomSource
from jscc.export.system import Options, find
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CheckpointError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from pathlib import Path

AF = {"family": "af", "c_feat": 8, "c_out": 4}


def codec(tmp_path: Path, **config: Any) -> Any:
    return codec_of(RandomSource(config, tmp_path, seed=1), config, "")


def refused(tmp_path: Path, match: str, **config: Any) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        codec(tmp_path, **config)
    assert caught.value.code in ("E_CONFIG", "E_CKPT_CONFIG")


@pytest.mark.slow
def test_a_picture_goes_through_an_odd_code(tmp_path: Path) -> None:
    """Its symbols are made of 2x2 positions; an SNR label becomes the true SNR."""
    config = {"family": "bourtsoulatze", "c_out": 3, "snr_label_db": 7}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = ["--model", "deepjscc", "--config", str(tmp_path / "config.yaml")]
    path = tmp_path / "small.jscc"
    assert main([*command, "--random-weights", "4", "-o", str(path)]) == 0
    bundle = Bundle.open(path)
    signal = bundle.manifest.signal
    assert (signal.planes, signal.stride) == (12, 8)
    assert signal.csi_inputs == ()
    assert signal.snr_db_range == pytest.approx((10.0103, 10.0103), abs=1e-4)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    symbols = Transmitter(bundle).send(image)
    assert symbols.shape == (6, 5, 7)
    received, _ = Receiver(bundle).receive(symbols, Csi(snr_db=30.0), seed=0)
    assert received.shape == image.shape
    # Without noise the network alone is left; torch says what it makes of the picture.
    network = source_network(config, tmp_path)
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)[None]
    code = network.encoder(x, None)
    code = code / code.square().mean().sqrt()
    expected = network.decoder(code, None)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(received - expected).max() <= 0.51


def source_network(config: Any, folder: Path) -> Bourtsoulatze:
    """The network whose halves `RandomSource` draws, one by one."""
    source = RandomSource(config, folder, seed=4)
    network = Bourtsoulatze.from_config(config)
    for half in ("encoder", "decoder"):
        setattr(
            network,
            half,
            source.load(
                lambda half=half: getattr(Bourtsoulatze.from_config(config), half), f"{half}."
            ),
        )
    return network


def test_contracts_of_the_families(tmp_path: Path) -> None:
    af = codec(tmp_path, **AF)
    assert (af.multiple, af.signal.planes, af.signal.snr_db_range) == (16, 4, (0.0, 20.0))
    assert (af.padding, af.rounding) == ("zeros", "nearest")
    odd = codec(tmp_path, **{**AF, "c_out": 5})
    assert (odd.multiple, odd.signal.planes, odd.signal.stride) == (32, 20, 32)
    reduced = codec(tmp_path, **AF, variant="reduced", SNR_low=-5, SNR_high=5)
    assert (reduced.multiple, reduced.signal.snr_db_range) == (4, (-5.0, 5.0))
    blind = codec(tmp_path, **AF, variant="q")
    assert blind.signal.csi_inputs == ()
    assert [port.name for port in blind.encode.inputs] == ["image"]
    perceptual = codec(tmp_path, family="pdjscc", c_feat=16, c_out=2)
    assert (perceptual.multiple, perceptual.padding) == (4, "reflect")
    assert perceptual.signal.snr_db_range == (0.0, 14.0)


@pytest.mark.parametrize(
    ("variant", "expected"), [("regular", "sigmoid"), ("reduced", "sigmoid"), ("wz", "clip")]
)
def test_what_follows_the_decoder_depends_on_the_author(
    tmp_path: Path, variant: str, expected: str
) -> None:
    listener = codec(tmp_path, **AF, variant=variant).decode.build().network
    assert listener.output == expected
    other = "clip" if expected == "sigmoid" else "sigmoid"
    told = codec(tmp_path, **AF, variant=variant, output=other).decode.build().network
    assert told.output == other


def test_configurations_that_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, r"got 'tanh', expected sigmoid or clip", **AF, output="tanh")
    refused(tmp_path, r"SNR_low: got 'low', expected a number", **AF, SNR_low="low")
    refused(tmp_path, r"SNR_low: got 21, expected at most SNR_high, 20", **AF, SNR_low=21)
    small = {"family": "bourtsoulatze", "c_out": 4}
    refused(tmp_path, r"snr_label_db: got True", **small, snr_label_db=True)
    refused(tmp_path, r"af\.variant: got 'x'", **AF, variant="x")
    refused(tmp_path, r"got codec 'jpeg', expected a family of af", family="jpeg")
    refused(tmp_path, r"got codec 'model.x', expected a family", target="model.x", params={})


def test_perceptual_takes_its_own_codec_only(tmp_path: Path) -> None:
    system = find("perceptual")
    source = RandomSource(AF, tmp_path, seed=1)
    with pytest.raises(CheckpointError, match="got a codec of 'af', expected the family 'pdjscc'"):
        system.plan(source, Options())


def test_discriminator_and_losses_are_left_out(tmp_path: Path) -> None:
    """A perceptual trainer's file, halves under the authors' names."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = {
            name.replace("encoder", "Encoder").replace("decoder", "Decoder"): tensor
            for name, tensor in Pdjscc(16, 2).state_dict().items()
        }
    weights = len(state)
    state["distortion_loss.scale"] = torch.ones(1)
    state["Discriminator.conv1.weight_orig"] = torch.ones(4, 15, 4, 4)
    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": state}, path)
    system = find("perceptual")
    source, _ = gather(system, Request((str(path),), codec="pdjscc"))
    assert len(source.shapes("")) == weights
    plan = system.plan(source, Options())
    assert plan.variant == "ADJSCC/pDJSCC, width 16, C=2"
    image, snr = torch.rand(1, 3, 16, 24), torch.tensor([5.0])
    planes = plan.stages[0].build()(image, snr)
    assert planes.shape == (1, 2, 4, 6)
    assert plan.stages[1].build()(planes, snr).shape == image.shape


def swin_checkpoint(folder: Path) -> Path:
    """A file of DiffJSCC's Swin codec alone, as its trainer stores it."""
    network = DeepJsccSwin.from_config(tiny_checkpoint.SWIN["params"])
    rng = torch.Generator().manual_seed(2)
    state = {
        name: tensor.normal_(std=0.2, generator=rng)
        for name, tensor in network.state_dict().items()
    }
    state["decoder.absolute_pos_embed"] = torch.zeros(1, 16, 12)
    for half in ("encoder", "decoder"):  # the second block of every stage that shifts its windows
        state[f"{half}.layers.{0 if half == 'encoder' else 1}.blocks.1.attn_mask"] = torch.zeros(
            16, 16, 16
        )
    path = folder / "swin.ckpt"
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("named", ["", "diffjscc_swin"])
def test_the_swin_codec_is_told_by_its_weights(tmp_path: Path, named: str) -> None:
    """All but the SNRs, which the error asks for."""
    path = swin_checkpoint(tmp_path)
    system = find("deepjscc")
    source, _ = gather(system, Request((str(path),), codec=named))
    with pytest.raises(CheckpointError, match="config: got no SNR_low and SNR_high") as caught:
        system.plan(source, Options())
    assert caught.value.code == "E_CONFIG"
    (tmp_path / "snrs.yaml").write_text("SNR_low: 1\nSNR_high: 13\n")
    request = Request((str(path),), configs=(str(tmp_path / "snrs.yaml"),), codec=named)
    source, _ = gather(system, request)
    plan = system.plan(source, Options())
    assert plan.signal.snr_db_range == (1.0, 13.0)
    assert (plan.signal.planes, plan.signal.stride, plan.image.multiple) == (4, 4, 16)
    official = DeepJsccSwin.from_config(tiny_checkpoint.SWIN["params"])
    found = DeepJsccSwin.from_config(source.config)
    assert (found.down, found.up) == (official.down, official.up)
    image, snr = torch.rand(1, 3, 16, 32), torch.tensor([5.0])
    planes = plan.stages[0].build()(image, snr)
    assert plan.stages[1].build()(planes, snr).shape == image.shape


@pytest.mark.parametrize("named", ["", "diffjscc_cnn"])
@pytest.mark.parametrize("channel", ["AWGN", "Rayleigh"])
def test_the_convolutional_codec_is_told_by_its_weights(
    tmp_path: Path, channel: str, named: str
) -> None:
    folder = tiny_checkpoint.write_codec(tmp_path / "x", channel=channel, SNR_low=-2)
    system = find("deepjscc")
    beside, _ = gather(system, Request((str(folder),), codec=named))
    assert system.plan(beside, Options()).signal.snr_db_range == (-2.0, 14.0)
    (folder / "config.yaml").unlink()
    source, _ = gather(system, Request((str(folder / "model.ckpt"),), codec=named))
    plan = system.plan(source, Options())
    told = ("snr_db",) if channel == "AWGN" else ("snr_db", "gain")
    assert (plan.signal.csi_inputs, plan.signal.snr_db_range) == (told, (0.0, 14.0))
    image, csi = torch.rand(1, 3, 32, 48), (torch.tensor([5.0]), torch.tensor([[0.5, 0.3]]))
    for official, recognised in zip(
        system.plan(beside, Options()).stages, plan.stages, strict=True
    ):
        given = csi[: len(told)]
        out = recognised.build()(image, *given)
        assert torch.equal(out, official.build()(image, *given))
        image = out
