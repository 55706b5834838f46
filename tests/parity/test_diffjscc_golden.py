"""The receiver reproduces DiffJSCC's own numbers: checkpoint → loader → export → runtime.

The vectors were computed with the method's published implementation on random weights; the
README beside them gives formulas and tolerances (2e-5 of the peak for the same algorithm in fp32).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from jscc.export.cli import main
from jscc.export.gather import Request, gather
from jscc.export.system import Options, find
from jscc.export.tokenizer import tokenize
from jscc.kernels.advance.reference import advance
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.manifest_loops import ScheduleSpec
from jscc.runtime.receiver import Receiver
from jscc.runtime.schedule import schedule_from
from jscc.runtime.table import table_for
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"
TOLERANCE = 2e-5
SNR_DB = {"A": 1.0, "B": 10.0}

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")


def assert_close(
    computed: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float = TOLERANCE
) -> None:
    """Hold the largest difference to `tolerance` times the peak of `expected`."""
    assert computed.shape == expected.shape
    gap = np.abs(computed.astype(np.complex128) - expected).max()
    assert gap <= tolerance * np.abs(expected).max()


def assert_same_picture(computed: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """At most 0.1 % of the values are off, and by one level only."""
    gap = np.abs(computed.astype(int) - expected)
    assert gap.max() <= 1
    assert (gap > 0).mean() <= 1e-3


class GoldenNoise:
    """The noise that the vectors were computed with: the start, then one draw per step."""

    def __init__(self, start: npt.NDArray[np.float32], steps: npt.NDArray[np.float32]) -> None:
        self.draws = (start, *steps)

    def draw(self, seed: int, frame: int, step: int, shape: tuple[int, ...]) -> Any:
        """Draw number `step`: 0 is the start of the loop."""
        return self.draws[step].reshape(shape)


@pytest.fixture(scope="module")
def vectors() -> Arrays:
    return load_file(GOLDEN / "tiny-cnn" / "io.safetensors")


@pytest.fixture(
    scope="module", params=["128x192", pytest.param("dynamic", marks=pytest.mark.exhaustive)]
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny ControlLDM with its context left open, exported by the command."""
    path = tmp_path_factory.mktemp("golden") / "tiny.jscc"
    command = ["--model", "diffjscc", "--checkpoint", str(GOLDEN / "tiny-cnn"), "--text", "side"]
    assert main([*command, "--size", request.param, "-o", str(path)]) == 0
    return Bundle.open(path)


@pytest.fixture(scope="module")
def run(bundle: Bundle) -> Any:
    """Runs one stage of the bundle as the receiver would."""
    backend = OnnxRuntimeBackend(threads=1)
    sessions = {}

    def run_stage(stage: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        if stage not in sessions:
            entry = bundle.manifest.stages[stage]
            sessions[stage] = backend.load(
                stage, entry, bundle.graph(stage), bundle.external(stage)
            )
        result: Arrays = sessions[stage].run(arrays)
        return result

    return run_stage


def golden_source() -> Any:
    """The golden checkpoint as the exporter reads it."""
    source, _ = gather(
        find("diffjscc"),
        Request((str(GOLDEN / "tiny-cnn"),)),
    )
    return source


@pytest.fixture(scope="module")
def render() -> Any:
    """The torch module behind the render stage."""
    plan = find("diffjscc").plan(golden_source(), Options())
    return next(spec for spec in plan.stages if spec.name == "render").build()


def snr(name: str) -> npt.NDArray[np.float32]:
    return np.array([SNR_DB[name]], np.float32)


def received(vectors: Arrays, name: str) -> npt.NDArray[np.complex64]:
    """The golden symbols after the channel, [planes/2, rows, columns]."""
    golden = f"out.snr{name}.jscc"
    symbols = vectors[f"{golden}.rx_re"] + 1j * vectors[f"{golden}.rx_im"]
    return symbols[0].astype(np.complex64)


def context_kv(run: Any, vectors: Arrays) -> npt.NDArray[np.float32]:
    kv: npt.NDArray[np.float32] = run("prompt", {"context": vectors["out.text.context"][:2]})[
        "context_kv"
    ]
    return kv


@pytest.mark.parametrize("name", ["A", "B"])
def test_the_transmitter_sends_the_golden_symbols(bundle, run, vectors, name) -> None:
    golden = f"out.snr{name}.jscc"
    image = vectors["in.x_u8"]
    planes = run(
        "encode",
        {
            "image": (image.astype(np.float32) / 255).transpose(2, 0, 1)[None],
            "snr_db": snr(name),
        },
    )["planes"]
    assert_close(planes, vectors[f"{golden}.z"])
    symbols = Transmitter(bundle).send(image, csi=Csi(snr_db=SNR_DB[name]))
    expected = vectors[f"{golden}.tx_re"] + 1j * vectors[f"{golden}.tx_im"]
    assert_close(symbols, expected[0])


@pytest.mark.parametrize("name", ["A", "B"])
def test_decode_and_condition(run, vectors, name) -> None:
    golden = f"out.snr{name}"
    equalised = vectors[f"{golden}.jscc.eq"]
    decoded = run("decode", {"received": equalised, "snr_db": snr(name)})["reconstruction"]
    assert_close(decoded, vectors[f"{golden}.jscc.x_init"])
    conditions = run("condition", {"reconstruction": vectors[f"{golden}.jscc.x_init"]})
    assert_close(conditions["hint"], vectors[f"{golden}.c_spatial"])
    if name == "A":
        assert_close(conditions["target"], vectors["out.vae.target_mode"])


@pytest.mark.parametrize("scale", [1.0, 0.003])
def test_one_evaluation_of_the_fused_networks(run, vectors, scale) -> None:
    """`clean` turned back into eps; the scale 0.003 is the probe of the GroupNorms' epsilon."""
    hint = np.concatenate([vectors["out.snrA.c_spatial"], vectors["out.snrB.c_spatial"]])
    latent = vectors["in.single.x_t"] * np.float32(scale)
    timestep = vectors["in.single.t"].astype(np.float32)
    clean = run(
        "denoise",
        {
            "latent": latent,
            "timestep": timestep,
            "hint": hint * np.float32(scale),
            "snr_db": np.array([1.0, 10.0], np.float32),
            "context_kv": context_kv(run, vectors),
        },
    )["clean"]
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    abar = abar[vectors["in.single.t"]].reshape(-1, 1, 1, 1)
    eps = (latent / np.sqrt(abar) - clean) / np.sqrt(1 / abar - 1)
    expected = vectors["out.single.eps" if scale == 1.0 else "out.lowvar.eps"]
    # At t = 133 eps is recovered from a difference of nearby fp32 numbers: twice the rounding.
    assert_close(eps, expected, 2 * TOLERANCE)


def test_render(run, vectors) -> None:
    image = run(
        "render",
        {
            "latent": vectors["out.snrA.n4.latent"],
            "reconstruction": vectors["out.snrA.jscc.x_init"],
        },
    )["image"]
    assert_close(image, vectors["out.snrA.n4.final"])


def test_colour_fix_of_a_picture_with_itself_changes_nothing(run, vectors) -> None:
    """Decoded - low(decoded) + low(golden) is the golden picture only if `decoded` is."""
    golden = vectors["out.vae.decode_of_mode"]
    image = run("render", {"latent": vectors["out.vae.target_mode"], "reconstruction": golden})
    assert_close(image["image"], golden)


def test_render_keeps_the_autoencoder_norms_epsilon(run, vectors, render) -> None:
    """A latent of almost no variance, where the epsilon is what counts (golden section 4.5)."""
    latent = vectors["out.vae.target_mode"] * np.float32(0.003)
    with torch.no_grad():
        decoded = render.decoder(torch.from_numpy(latent))
    assert_close(decoded[:, :, ::4, ::4].numpy(), vectors["out.lowvar.decoded_s4"])
    image = run("render", {"latent": latent, "reconstruction": decoded.numpy()})["image"]
    assert_close(image, decoded.numpy())


def receive(bundle: Bundle, vectors: Arrays, name: str, **choices: Any) -> Any:
    """Receive the golden symbols with the golden noise; returns image and what the stages saw."""
    backend = RecordingBackend()
    noise = GoldenNoise(vectors["in.x_T"], vectors["in.step_noise"])
    receiver = Receiver(bundle, backend=backend, noise=noise, selftest=False)
    image, record = receiver.receive(
        received(vectors, name),
        Csi(snr_db=SNR_DB[name]),
        seed=0,
        sampler="ddpm",
        start="noise",
        side={"context": vectors["out.text.context"][:1]},
        **choices,
    )
    assert record.loops["denoise"].steps == choices["steps"]
    return image, backend


@pytest.mark.parametrize(("name", "steps"), [("A", 4), ("A", 10), ("A", 50), ("B", 4), ("B", 50)])
def test_the_received_image(bundle, vectors, name, steps) -> None:
    """Spaced DDPM from noise: the official loop, its noise put in."""
    image, backend = receive(bundle, vectors, name, steps=steps)
    golden = f"out.snr{name}"
    assert_close(backend.outputs("decode")[0]["reconstruction"], vectors[f"{golden}.jscc.x_init"])
    assert_close(backend.inputs("decode")[0]["received"], vectors[f"{golden}.jscc.eq"])
    assert_close(backend.outputs("condition")[0]["hint"], vectors[f"{golden}.c_spatial"])
    assert_close(backend.inputs("render")[0]["latent"], vectors[f"{golden}.n{steps}.latent"])
    pictures = f"{golden}.n{steps}.final_u8"
    if pictures in vectors:
        assert_same_picture(image, vectors[pictures][0])


@pytest.mark.parametrize("name", ["A", "B"])
def test_every_step_of_the_sampler(bundle, vectors, name) -> None:
    _, backend = receive(bundle, vectors, name, steps=4)
    estimates = backend.outputs("denoise")
    states = [fed["latent"] for fed in backend.inputs("denoise")]
    states.append(backend.inputs("render")[0]["latent"])
    for step in range(4):
        golden = f"out.snr{name}.n4.step{step}"
        assert_close(estimates[step]["clean"], vectors[f"{golden}.x0"])
        assert_close(states[step + 1], vectors[f"{golden}.x_prev"])


def test_guidance_toward_the_mode(bundle, vectors) -> None:
    """The official "intermediate guidance", its target encoded once instead of every step."""
    image, backend = receive(bundle, vectors, "A", steps=4, guidance=100.0)
    states = [fed["latent"] for fed in backend.inputs("denoise")][1:]
    states.append(backend.inputs("render")[0]["latent"])
    for step, state in enumerate(states):
        assert_close(state, vectors[f"out.snrA.n4.guided_mode.step{step}.x_prev"])
    assert_same_picture(image, vectors["out.snrA.n4.guided_mode.final_u8"][0])
    assert len(backend.outputs("condition")) == 1


def test_guidance_toward_a_sample_is_the_same_closed_form(vectors) -> None:
    """With the official code's target, drawn anew each step, put in the place of the mode."""
    schedule = schedule_from(ScheduleSpec("scaled_linear", 0.00085, 0.012, 1000))
    cells = vectors["in.x_T"].size
    table = table_for(schedule, "ddpm", 4, schedule.last).guided(0.5 * 100.0 / cells)
    mean, logvar = np.split(vectors["out.vae.target_moments"], 2, axis=1)
    state = vectors["in.x_T"]
    for step, row in enumerate(table.rows):
        golden = f"out.snrA.n4.guided_sample.step{step}"
        noise = vectors["in.posterior_noise"][step]
        target = 0.18215 * (mean + np.exp(0.5 * np.clip(logvar, -30, 20)) * noise)
        clean = vectors[f"{golden}.x0"]
        grad = (clean - target).astype(np.float32)
        state = advance(state, clean, None, None, vectors["in.step_noise"][step], grad, None, row)
        assert_close(state, vectors[f"{golden}.x_prev"])


def test_tokens_and_text_tower(vectors) -> None:
    prompts = json.loads((GOLDEN / "tiny-cnn" / "prompts.json").read_text())
    assert np.array_equal(tokenize(prompts), vectors["out.text.tokens"])


def test_fixed_text_is_the_side_context_projected_at_export(run, vectors) -> None:
    prompt = json.loads((GOLDEN / "tiny-cnn" / "prompts.json").read_text())[0]
    plan = find("diffjscc").plan(golden_source(), Options(text="fixed", prompt=prompt))
    expected = context_kv(run, vectors)[:1]
    assert_close(plan.tensors["context_kv"](), expected)
