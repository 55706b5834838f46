"""SING-Zero from two tiny checkpoints to images: what was received stays, the rest is drawn."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tiny_checkpoint
from jscc.export.cli import main
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands import inspect, simulate
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

pytestmark = pytest.mark.slow  # the bundle takes seconds to export

TILE, SCALE = 64, 2
SEAM = 2e-3  # blending weighs pixels of one block differently
CSI = Csi(snr_db=7.0)


def export(folder: Path, prior: Path, *more: str) -> int:
    codec = folder / "codec"
    if not codec.is_dir():
        tiny_checkpoint.write_codec(codec)
    command = ["--model", "sing_zero", "--checkpoint", f"codec={codec}", "--checkpoint", str(prior)]
    return main([*command, *more, "-o", str(folder / "zero.jscc"), "--force"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose prior is recognised by its weights and whose operator wants a mask."""
    folder = tmp_path_factory.mktemp("zero")
    prior = tiny_checkpoint.write_prior(folder / "any", image_size=TILE)
    options = ("operator=mask+avgpool:2", "eta=0.5", "travel=2,1")
    assert export(folder, prior, *(part for each in options for part in ("--option", each))) == 0
    return Bundle.open(folder / "zero.jscc")


@dataclasses.dataclass
class Link:
    """Both ends of a bundle, and what the receiver's stages said."""

    bundle: Bundle
    backend: RecordingBackend
    receiver: Receiver

    def run(self, size: tuple[int, int], mask: Floats | float = 1.0, **choices: Any) -> Any:
        """Send an image of `size` and receive it; the record, reconstruction and last image."""
        rng = np.random.default_rng(4)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        symbols = Transmitter(self.bundle).send(image, csi=CSI)
        padded = [-(-edge // 16) * 16 for edge in size]
        side = {"mask": np.broadcast_to(np.float32(mask), (1, 1, *padded)).copy()}
        self.backend.calls.clear()
        received, record = self.receiver.receive(
            symbols, CSI, seed=choices.pop("seed", 1), size=size, side=side, **choices
        )
        assert received.shape == image.shape
        return (
            record,
            self.backend.outputs("decode")[-1]["reconstruction"],
            self.backend.outputs("render")[-1]["image"],
        )


@pytest.fixture(scope="module")
def link(bundle: Bundle) -> Link:
    backend = RecordingBackend()
    return Link(bundle, backend, Receiver(bundle, backend=backend))


def means(image: Floats) -> Floats:
    """Means of blocks of `SCALE`."""
    batch, color, height, width = image.shape
    blocks = image.reshape(batch, color, height // SCALE, SCALE, width // SCALE, SCALE)
    pooled: Floats = blocks.mean(axis=(3, 5))
    return pooled


def test_the_bundle_says_what_it_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.format == 2
    assert manifest.system == "sing_zero"
    assert "prior adm, " in manifest.variant
    assert "A: mask+avgpool:2" in manifest.variant
    assert manifest.side_inputs == ("mask",)
    assert sorted(manifest.source.networks) == ["codec", "prior"]
    loop = manifest.loops["denoise"]
    assert loop.settings == {"eta": 0.5, "sigma_y": 0.0}
    assert (loop.state, loop.start, loop.sampler.name) == ("state", "initial", "ddnm")
    assert (manifest.image.multiple, manifest.image.tile, manifest.image.overlap) == (16, 64, 16)


def test_tensorrt_takes_every_graph(bundle: Bundle, tensorrt_takes: Callable[..., None]) -> None:
    tensorrt_takes(bundle)


@pytest.mark.parametrize("size", [(20, 40), (112, 96)], ids=["below a tile", "many tiles"])
@pytest.mark.parametrize(
    "choices",
    [
        {"steps": 3, "start": "noise"},
        {"steps": 2, "start": "received", "start_level": 0.3},
        {"sampler": "ddim", "steps": 2, "start": "noise"},
        {"sampler": "ddpm", "steps": 3, "start": "noise"},
        {"sampler": "dpmpp2m", "steps": 3, "start": "received", "start_level": 0.5},
    ],
    ids=["ddnm", "ddnm received", "ddim", "ddpm", "dpmpp2m"],
)
def test_what_was_received_is_kept(link: Link, size: tuple[int, int], choices: Any) -> None:
    """Means of blocks are those of the reconstruction, whatever the sampler, also over tiles."""
    record, reconstruction, image = link.run(size, **choices)
    assert np.abs(means(image) - means(reconstruction)).max() < SEAM
    assert np.abs(image - reconstruction).max() > 0.02  # the rest is the prior's
    assert record.loops["denoise"].steps == choices["steps"]
    assert record.tiles["denoise"] == (1 if size[0] < TILE else 2 * 2)


def test_what_a_mask_leaves_out_is_drawn(link: Link) -> None:
    mask = np.ones((1, 1, 32, 32), np.float32)
    mask[..., :16] = 0.0
    _, reconstruction, image = link.run((32, 32), mask, steps=2, start="noise")
    gap = np.abs(means(image) - means(reconstruction))
    assert gap[..., 8:].max() < 2e-4
    assert gap[..., :8].max() > 0.02
    _, _, other = link.run((32, 32), mask, steps=2, start="noise", seed=2)
    change = np.abs(means(image) - means(other))
    assert change[..., 8:].max() < 4e-4
    assert change[..., :8].max() > 0.02


def test_a_noisy_measurement_is_not_copied(link: Link) -> None:
    _, reconstruction, image = link.run((32, 32), settings={"sigma_y": 0.5}, steps=2)
    assert np.abs(means(image) - means(reconstruction)).max() > 0.02


def test_knobs_travel_and_level_are_recorded(link: Link) -> None:
    record, _, _ = link.run(
        (32, 32), steps=4, travel=(2, 3), settings={"eta": 1.0}, start_level=0.25
    )
    loop = record.loops["denoise"]
    assert loop.settings == {"eta": 1.0, "sigma_y": 0.0}
    assert loop.travel == (2, 3)
    assert loop.steps == 4 + 2 * 2  # one stretch of two steps, run three times
    assert (loop.start, loop.level) == ("received", 3 * ((round(0.25 * 999) + 1) // 4))
    asked = [float(fed["timestep"][0]) for fed in link.backend.inputs("denoise")]
    assert len(asked) == 8
    left = [float(fed["alpha_bar_next"][0]) for fed in link.backend.inputs("denoise")]
    assert left[-1] == 1.0


@pytest.mark.parametrize(
    ("choices", "code", "shown"),
    [
        ({"settings": {"zeta": 1.0}}, "E_SETTING", "got zeta, expected eta, sigma_y"),
        ({"guide": "inn"}, "E_GUIDE", "got 'inn', expected one of none"),
        ({"guidance": 2.0}, "E_GUIDANCE", "got 2.0, expected 0: this bundle has no guide"),
        ({"travel": (0, 2)}, "E_TRAVEL", "got 0,2, expected steps of a stretch"),
    ],
)
def test_choices_that_this_bundle_does_not_have(
    link: Link, choices: Any, code: str, shown: str
) -> None:
    with pytest.raises(UsageError, match=shown) as caught:
        link.run((32, 32), **choices)
    assert caught.value.code == code


def test_the_simulate_command_turns_the_knobs(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    np.save(tmp_path / "mask.npy", np.ones((1, 1, 32, 32), np.float32))
    command = [str(bundle.path), str(tmp_path / "grey.png"), "--snr", "7", "--json"]
    options = ["--steps", "3", "--travel", "1,2", "--set", "eta=1", "--set", "sigma_y=0.1"]
    side = ["--context", str(tmp_path / "mask.npy")]
    assert simulate.main([*command, *options, *side]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    loop = image["record"]["loops"]["denoise"]
    assert loop["settings"] == {"eta": 1.0, "sigma_y": 0.1}
    assert (loop["travel"], loop["steps"]) == ([1, 2], 3 + 2)


def test_the_simulate_command_takes_a_mask_as_large_as_the_picture(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is masked is drawn anew, the rest is what was received."""
    rows, columns = np.mgrid[:28, :36]
    picture = np.stack([rows * 6, columns * 6, 90 + 0 * rows], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    command = [str(bundle.path), str(tmp_path / "picture.png"), "--snr", "7", "--steps", "2"]
    received = {}
    for name, left in (("all", 255), ("half", 0)):
        mask = np.full((28, 36), 255, np.uint8)
        mask[:, :18] = left
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        side = ["--side", f"mask={tmp_path / name}.png", "-o", str(tmp_path / name)]
        assert simulate.main([*command, *side, "--start", "noise"]) == 0
        path = tmp_path / name / "picture-received.png"
        received[name] = np.asarray(Image.open(path)).astype(int)
    capsys.readouterr()
    gap = np.abs(received["all"] - received["half"])
    assert gap[:, :18].mean() > 5 * gap[:, 18:].mean()


def test_the_inspect_command_shows_the_knobs(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(bundle.path)]) == 0
    assert "eta=0.5, sigma_y=0" in capsys.readouterr().out
