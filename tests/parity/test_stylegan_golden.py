"""The generator and its inversion reproduce published numbers: checkpoint → export → runtime.

The vectors were computed with rosinality's generator and ILO's optimisation on random weights; the
README beside them gives the formulas. The operator is average pooling by 4, the loss MSE alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.checkpoint import load_into, read_checkpoint
from jscc.export.cli import main
from jscc.export.gather import Request, gather
from jscc.export.lower import Sizes, lower
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.stylegan2 import Generator, config_of, truncate
from jscc.export.system import Options, find
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from jscc.runtime.backends.base import Session
    from jscc.runtime.manifest import StageEntry
    from jscc.runtime.record import Record

    Arrays = Mapping[str, npt.NDArray[Any]]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "stylegan2-tiny"
CHECKPOINT = GOLDEN / "stylegan2_tiny.pt"
IMAGE_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-4
LATENT_TOLERANCE = 1e-3
NOISES = range(7)
STEPS = (4, 3)

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")


@pytest.fixture(scope="module")
def vectors() -> Arrays:
    return dict(np.load(GOLDEN / "io.npz"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    tensors = read_checkpoint(CHECKPOINT).tensors
    config = config_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert config is not None
    network = Generator.from_config(config)
    return load_into(network, tensors, where="golden", ignore=("latent_avg",)).eval()


def gap(got: torch.Tensor, expected: npt.NDArray[Any]) -> float:
    assert tuple(got.shape) == expected.shape
    return float(np.abs(got.detach().numpy() - expected).max())


def test_the_mapping_network(generator: Generator, vectors: Arrays) -> None:
    # Exact on the kind of CPU that made the vectors; another sums its products in another order.
    assert gap(generator.map(torch.from_numpy(vectors["z"])), vectors["w_of_z"]) <= 2e-6


def test_images_of_z(generator: Generator, vectors: Arrays) -> None:
    w = torch.from_numpy(vectors["w_of_z"])
    mean = torch.from_numpy(vectors["latent_avg"])
    for expected, latent in (
        ("image_from_z_buffer_noise", w),
        ("image_from_z_trunc0.7_latent_avg", truncate(w, mean, 0.7)),
    ):
        image = generator(generator.spread(latent))
        assert gap(image, vectors[expected]) <= IMAGE_TOLERANCE


def test_image_of_latents_and_given_noise(generator: Generator, vectors: Arrays) -> None:
    noises = [torch.from_numpy(vectors[f"noise.{number}"]) for number in NOISES]
    image = generator(torch.from_numpy(vectors["w_plus"]), noises)
    assert gap(image, vectors["image_from_w_plus_given_noise"]) <= IMAGE_TOLERANCE


class GoldenStart:
    """Gives the golden initial values where the receiver asks for noise."""

    def __init__(self, vectors: Arrays) -> None:
        named = {f"noise_{number}": vectors[f"ilo.init_noise.{number}"] for number in NOISES}
        named["latent"] = vectors["ilo.init_latent"]
        self.values = [named[name] for name in sorted(named)]

    def draw(
        self, seed: int, frame: int, step: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        assert self.values[step].shape == shape
        return self.values[step]


class GoldenDecode(RecordingBackend):
    """Answers the golden picture where the codec is asked."""

    def __init__(self, picture: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.picture = picture

    def load(self, stage: str, *rest: Any) -> Any:
        session = super().load(stage, *rest)
        if stage == "decode":
            session.run = lambda arrays: {"reconstruction": self.picture}  # type: ignore[method-assign]
        return session


@pytest.fixture(scope="module")
def searched(
    vectors: Arrays, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RecordingBackend, Record]:
    """The golden search, run from an exported bundle."""
    folder = tmp_path_factory.mktemp("golden")
    fit = {key: torch.from_numpy(vectors[f"ilo.mapping_{key}"]) for key in ("mean", "std")}
    torch.save(fit, folder / "gaussian_fit.pt")
    torch.save(Bourtsoulatze(4).state_dict(), folder / "codec.pt")
    path = folder / "golden.jscc"
    named = [f"codec={folder / 'codec.pt'}"]
    named += [f"generator={CHECKPOINT}", f"generator={folder / 'gaussian_fit.pt'}"]
    arguments = [part for name in named for part in ("--checkpoint", name)]
    for option in ("rounds=2", "through=pool:4", "keep=last"):
        arguments += ["--option", option]
    arguments += ["--steps", str(sum(STEPS)), "-o", str(path)]
    assert main(["--model", "inverse_jscc", *arguments]) == 0
    backend = GoldenDecode((vectors["ilo.target_image"] + 1) / 2)
    receiver = Receiver(
        Bundle.open(path), backend=backend, noise=GoldenStart(vectors), selftest=False
    )
    symbols = np.exp(1j * np.arange(128)).astype(np.complex64).reshape(2, 8, 8)
    _, record = receiver.receive(symbols, Csi(snr_db=7.0), seed=0)
    return backend, record


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [0, 1])
def test_a_round_of_the_search(
    searched: tuple[RecordingBackend, Record], vectors: Arrays, number: int
) -> None:
    """Every step's loss, gradient and variables, before and after."""
    backend, record = searched
    assert record.descents["invert"].rounds == STEPS
    fed, answered = backend.inputs(f"gradient_{number}"), backend.outputs(f"gradient_{number}")
    assert len(fed) == STEPS[number]
    ends = [*fed[1:], backend.inputs("render" if number else "carry_1")[0]]
    for step, (before, answer, after) in enumerate(zip(fed, answered, ends, strict=True)):
        golden = f"ilo.round{number}.step{step}"
        assert answer["loss"][0] == pytest.approx(vectors[f"{golden}.loss"], rel=LOSS_TOLERANCE)
        for mine, name in ((before["latent"], "latent_before"), (after["latent"], "latent_after")):
            assert np.abs(mine - vectors[f"{golden}.{name}"]).max() <= LATENT_TOLERANCE
        expected = vectors[f"{golden}.grad_latent"]
        assert np.abs(answer["grad_latent"] - expected).max() <= 1e-5 * np.abs(expected).max()
        if number:
            moved = after["features_1"] - vectors[f"{golden}.layer_in_after"]
            assert np.abs(moved).max() <= LATENT_TOLERANCE


@pytest.mark.exhaustive
@pytest.mark.parametrize(("number", "stage"), [(0, "carry_1"), (1, "render")])
def test_what_a_round_leaves(
    searched: tuple[RecordingBackend, Record], vectors: Arrays, number: int, stage: str
) -> None:
    """All noise maps, the still ones included, and the features for the next round."""
    backend, _ = searched
    left = backend.inputs(stage)[0]
    for noise in NOISES[2 * number - 1 if number else 0 :]:
        expected = vectors[f"ilo.round{number}.noise_after.{noise}"]
        assert np.abs(left[f"noise_{noise}"] - expected).max() <= LATENT_TOLERANCE
    if number == 0:
        features = backend.outputs(stage)[0]["features_1"]
        assert np.abs(features - vectors["ilo.round0.gen_out"]).max() <= LATENT_TOLERANCE


@pytest.mark.exhaustive
def test_the_picture_is_that_of_the_last_variables(
    searched: tuple[RecordingBackend, Record], vectors: Arrays, generator: Generator
) -> None:
    backend, _ = searched
    given = {name: torch.from_numpy(each) for name, each in backend.inputs("render")[0].items()}
    mean, std = (torch.from_numpy(vectors[f"ilo.mapping_{key}"]) for key in ("mean", "std"))
    latent = torch.nn.functional.leaky_relu(given["latent"] * std + mean, 0.2)
    noises = [torch.zeros(1), *(given[f"noise_{number}"] for number in NOISES[1:])]
    image, made = generator.run(latent, noises, given["features_1"], 1)
    assert gap(made[0], vectors["ilo.round1.gen_out"]) <= LATENT_TOLERANCE
    shown = backend.outputs("render")[0]["image"]
    assert np.abs(shown - (image.detach().numpy() + 1) / 2).max() <= IMAGE_TOLERANCE


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, StageEntry]:
    """The stage ``render`` of a search of one round, where w = LeakyReLU(latent)."""
    folder = tmp_path_factory.mktemp("render")
    torch.save({"mean": torch.zeros(24), "std": torch.ones(24)}, folder / "gaussian_fit.pt")
    torch.save(Bourtsoulatze(4).state_dict(), folder / "codec.pt")
    named = [f"codec={folder / 'codec.pt'}"]
    named += [f"generator={CHECKPOINT}", f"generator={folder / 'gaussian_fit.pt'}"]
    system = find("inverse_jscc")
    source, _ = gather(system, Request(tuple(named)))
    spec = system.plan(source, Options(extra={"rounds": "1", "through": "pool:4"})).stages[-1]
    entry = lower(spec, folder, Sizes(4), "fp32").entry
    graph = (folder / "render.onnx").read_bytes()
    return OnnxRuntimeBackend(threads=1).load("render", entry, graph, {}), entry


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "image_from_z_buffer_noise",
        "image_from_z_trunc0.7_latent_avg",
        "image_from_w_plus_given_noise",
    ],
)
def test_exported_images(
    shown: tuple[Session, StageEntry], generator: Generator, vectors: Arrays, name: str
) -> None:
    """Each picture of the batch by itself; the stage gives it in [0, 1], not clipped."""
    session, entry = shown
    buffers = [noise.numpy() for noise in generator.stored_noises]
    w = torch.from_numpy(vectors["w_of_z"])
    if "w_plus" in name:
        latents, noises = vectors["w_plus"], [vectors[f"noise.{number}"] for number in NOISES]
    else:
        mean = torch.from_numpy(vectors["latent_avg"])
        spread = generator.spread(truncate(w, mean, 0.7) if "trunc" in name else w)
        latents, noises = spread.detach().numpy(), buffers
    assert len(noises) == len(entry.inputs) - 1
    for latent, expected in zip(latents, vectors[name], strict=True):
        given = {f"noise_{number}": noise for number, noise in enumerate(noises)}
        given["latent"] = np.where(latent < 0, latent / np.float32(0.2), latent)[None]
        image = session.run(given)["image"][0]
        assert np.abs(2 * image - 1 - expected).max() <= IMAGE_TOLERANCE
