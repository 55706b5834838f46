"""InverseJSCC from checkpoints to a picture, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.cli import main
from jscc.export.codecs import Codec, codec_of
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.inversion import Through
from jscc.export.models.lpips import Lpips
from jscc.export.models.stylegan2 import Generator
from jscc.export.source import RandomSource
from jscc.export.system import Options, find
from jscc.export.systems import inverse_jscc
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError
from jscc.runtime.ports import Port
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jscc.export.system import Plan

CODEC = {"family": "bourtsoulatze", "c_out": 4}
TOLD = {
    "family": "generative",
    "planes": 4,
    "encoder_widths": [4] * 4,
    "decoder_widths": [4] * 5,
    "style_dim": 4,
}
GENERATOR = {"family": "stylegan2", "channels": [8, 8, 8, 4], "style_dim": 8, "n_mlp": 2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One round of a 32-pixel generator through a codec, LPIPS with random weights."""
    folder = tmp_path_factory.mktemp("inverse")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        torch.save(Bourtsoulatze.from_config(CODEC).state_dict(), folder / "codec.pt")
        drawn = Generator.from_config(GENERATOR).state_dict()
        torch.save({"g_ema": drawn, "latent_avg": torch.zeros(8)}, folder / "stylegan.pt")
        lpips = Lpips().state_dict()
    heads = {key: value.abs() for key, value in lpips.items() if key.startswith("alex.")}
    torch.save({key: lpips[key] for key in lpips if key not in heads}, folder / "alexnet.pt")
    torch.save(heads, folder / "heads.pt")
    arguments = ["--checkpoint", str(folder / "codec.pt")]  # its role is told by the weights
    arguments += ["--checkpoint", str(folder / "stylegan.pt")]
    for name in ("alexnet", "heads"):
        arguments += ["--checkpoint", f"lpips={folder / name}.pt"]
    path = folder / "inverse.jscc"
    arguments += ["--option", "rounds=1", "--steps", "12", "-o", str(path)]
    assert main(["--model", "inverse_jscc", *arguments]) == 0
    return Bundle.open(path)


@pytest.mark.slow
def test_the_bundle_says_what_it_does(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.format == 2
    assert "1 rounds, MSE + LPIPS, through codec Bourtsoulatze" in manifest.variant
    assert manifest.image.tile == 32
    descent = manifest.descents["invert"]
    assert [each.steps for each in descent.rounds] == [12]
    assert descent.settings == {"lpips_weight": 1.0}
    assert descent.variables["latent"].sphere == 1
    assert {port.name for port in manifest.stages["gradient_0"].outputs} == {
        "loss",
        "grad_latent",
        *(f"grad_noise_{number}" for number in range(5)),
    }


def test_tensorrt_takes_every_graph(bundle: Bundle, tensorrt_takes: Callable[..., None]) -> None:
    assert "gradient_0" in bundle.manifest.stages
    tensorrt_takes(bundle)


@pytest.mark.slow
def test_gradients_agree_with_automatic_differentiation(bundle: Bundle) -> None:
    """What the exporter measured against torch's reverse mode, relative to the largest value."""
    parity = bundle.manifest.parity["gradient_0"]
    assert len(parity) == 7
    assert all(entry.psnr_db is None or entry.psnr_db > 100 for entry in parity.values())


@pytest.mark.slow
def test_the_search_lowers_the_loss(bundle: Bundle) -> None:
    """Two tiles of a picture; their best variables are rendered."""
    image = np.tile(np.linspace(40, 200, 48, dtype=np.uint8)[None, :, None], (32, 1, 3))
    csi = Csi(snr_db=10.0)
    symbols = Transmitter(bundle).send(image, csi=csi)
    backend = RecordingBackend()
    pixels, record = Receiver(bundle, backend=backend).receive(
        symbols, csi, seed=1, settings={"lpips_weight": 0.5}
    )
    assert pixels.shape == (32, 48, 3)
    losses = np.array([each["loss"][0] for each in backend.outputs("gradient_0")])
    tiles = losses[-24:].reshape(2, 12)
    assert (tiles.min(axis=1) < 0.98 * tiles[:, 0]).all()
    done = record.descents["invert"]
    assert done.loss == pytest.approx(tiles.min(axis=1).mean(), rel=1e-6)
    assert done.settings == {"lpips_weight": 0.5}
    again, _ = Receiver(bundle).receive(symbols, csi, seed=1, settings={"lpips_weight": 0.5})
    np.testing.assert_array_equal(pixels, again)


def planned(extra: dict[str, str], tmp_path: Path, **configs: Any) -> Plan:
    config = {"codec": CODEC, "generator": GENERATOR, **configs}
    return find("inverse_jscc").plan(RandomSource(config, tmp_path, seed=0), Options(extra=extra))


def test_the_ports_of_the_rounds(tmp_path: Path) -> None:
    """The codec is told the SNR; later rounds begin later, and more noise maps move."""
    plan = planned({}, tmp_path, codec=TOLD)
    searching = "gradient_0 carry_1 gradient_1 carry_2 gradient_2 render"
    assert [spec.name for spec in plan.stages] == ["encode", "decode", *searching.split()]
    stages = {spec.name: spec for spec in plan.stages}
    ports = {name: [port.name for port in spec.inputs] for name, spec in stages.items()}
    noises = [f"noise_{number}" for number in range(7)]
    assert ports["gradient_0"] == ["latent", *noises, "reconstruction", "snr_db"]
    assert ports["gradient_1"] == [
        "latent", *noises[1:], "features_1", "reconstruction", "snr_db",
    ]  # fmt: skip
    assert ports["render"] == ["latent", *noises[3:], "features_2"]
    moved = [port.name for port in stages["gradient_0"].outputs[1:]]
    assert moved == ["grad_latent", *(f"grad_{name}" for name in noises[:5])]
    assert stages["gradient_0"].gradients == tuple(moved)  # the loss is none
    assert len(stages["gradient_1"].outputs) == 1 + 1 + 6 + 1  # loss, latent, noises 1 to 6
    assert [each.steps for each in plan.descents["invert"].rounds] == [50, 50, 25]


def test_a_pooling_operator_is_told_nothing(tmp_path: Path) -> None:
    plan = planned({"through": "pool:4"}, tmp_path, codec=TOLD)
    stages = {spec.name: spec for spec in plan.stages}
    assert stages["gradient_0"].inputs[-1].name == "reconstruction"
    assert "average pooling by 4" in plan.variant


def test_the_codec_is_passed_as_on_the_air(tmp_path: Path) -> None:
    """Encode, unit mean power of the symbols, decode at the SNR that was received."""
    encode, decode = planned({}, tmp_path, codec=TOLD).stages[:2]
    names = ([port.name for port in spec.inputs] for spec in (encode, decode))
    sender, listener = encode.build(), decode.build()
    picture = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    snr_db = torch.tensor([2.0, 12.0])
    with torch.no_grad():
        out = Through(sender, listener, *names)(picture * 2 - 1, {"snr_db": snr_db})
        planes = sender(picture, snr_db).numpy().astype(np.float64)
        symbols = planes[:, :2] + 1j * planes[:, 2:]
        symbols /= np.sqrt((np.abs(symbols) ** 2).mean(axis=(1, 2, 3), keepdims=True))
        sent = np.concatenate((symbols.real, symbols.imag), axis=1).astype(np.float32)
        expected = listener(torch.from_numpy(sent), snr_db)
    torch.testing.assert_close((out + 1) / 2, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"rounds": "4"}, "rounds: got '4', expected a whole number from 1 to 3"),
        ({"through": "pool:5"}, "through: got 'pool:5', expected codec, or pool:N where N divides"),
        ({"through": "blur"}, "through: got 'blur'"),
        ({"keep": "worst"}, "keep: got 'worst', expected one of best, last"),
        ({"learning_rate": "-1"}, "learning_rate: got '-1'"),
    ],
)
def test_options_that_are_refused(extra: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        planned(extra, tmp_path)
    assert caught.value.code == "E_OPTION"


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        (
            {"codec": TOLD, "generator": {**GENERATOR, "channels": [8, 8]}},
            "got pictures of 8 pixels, expected 8",
        ),
        (
            {"generator": {**GENERATOR, "channels": [8, 8, 8]}, "lpips": {}},
            "got pictures of 16 pixels to compare, expected 32",
        ),
    ],
)
def test_networks_that_do_not_fit(configs: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        planned({}, tmp_path, **configs)
    assert caught.value.code == "E_TILE"


def test_a_codec_with_side_information_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its transmitter would have said of another picture, nobody knows."""

    def with_power(*arguments: Any) -> Codec:
        codec = codec_of(*arguments)
        inputs = (*codec.decode.inputs, Port("power", "float32", ("batch",)))
        return replace(codec, decode=replace(codec.decode, inputs=inputs))

    monkeypatch.setattr(inverse_jscc, "codec_of", with_power)
    with pytest.raises(UsageError, match="asks for image, power, received") as caught:
        planned({}, tmp_path)
    assert caught.value.code == "E_CODEC"
