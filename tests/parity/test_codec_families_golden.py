"""The codecs of other authors reproduce their implementations' numbers, through bundle and runtime.

Every golden checkpoint is read from its own container. Its images are no bytes, so the encode stage
is handed the golden floats in place of what the transmitter made of bytes; packing and power are
the transmitter's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from jscc.export.cli import main
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.preprocess import geometry_of, pad
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend, RecordingSession

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Vectors = Mapping[str, Array]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
FOLDERS = ("deepjscc-af-tiny", "pdjscc-tiny", "bourtsoulatze-small")
TOLERANCE = 1e-5  # absolute; the three READMEs agree
LABEL_OFFSET_DB = 10 * np.log10(2)

pytestmark = pytest.mark.skipif(
    not all((GOLDEN / name).is_dir() for name in FOLDERS),
    reason=f"no golden vectors at {GOLDEN}",
)


class HandedSession(RecordingSession):
    """Runs on `image` instead of the image that it is given."""

    image: Array

    def run(self, arrays: Vectors) -> dict[str, Array]:
        return super().run({**arrays, "image": self.image})


class HandingBackend(RecordingBackend):
    """Hands `image` to the encode stage."""

    def __init__(self, image: Array) -> None:
        super().__init__()
        self.image = image

    def load(self, stage: Any, entry: Any, graph: Any, external: Any) -> HandedSession:
        session = HandedSession(
            stage, self._backend.load(stage, entry, graph, external), self.calls
        )
        session.image = self.image
        return session


@dataclass(frozen=True)
class Case:
    """A bundle and its golden vectors."""

    bundle: Bundle
    vectors: Vectors

    def sent(self, image: Array, csi: Csi) -> tuple[Array, Array]:
        """Planes of the encode stage, and symbols, of one float image [3,H,W]."""
        backend = HandingBackend(image[None])
        height, width = image.shape[1:]
        symbols = Transmitter(self.bundle, backend=backend).send(
            np.zeros((height, width, 3), np.uint8), csi=csi
        )
        return backend.outputs("encode")[-1]["planes"][0], symbols

    def decoded(self, symbols: Array, csi: Csi) -> Array:
        """What the decode stage makes of symbols [planes/2,h,w]."""
        backend = RecordingBackend()
        receiver = Receiver(self.bundle, backend=backend, selftest=False)
        receiver.receive(symbols.astype(np.complex64), csi, seed=0)
        reconstruction: Array = backend.outputs("decode")[-1]["reconstruction"]
        return reconstruction[0]


def exported(folder: Path, checkpoint: Path, *options: str) -> Bundle:
    path = folder / f"{checkpoint.stem}.jscc"
    assert main(["--checkpoint", str(checkpoint), *options, "-o", str(path)]) == 0
    return Bundle.open(path)


@pytest.fixture(scope="module")
def af(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    """Both sizes of the AF network, `{'encoder', 'decoder', …}` as the trainer saves them."""
    folder = tmp_path_factory.mktemp("af")
    config = folder / "snr.yaml"
    config.write_text("SNR_low: -5\nSNR_high: 20\n")
    golden = GOLDEN / "deepjscc-af-tiny"
    return {
        name: Case(
            exported(
                folder, golden / f"{name}.pth", "--model", "deepjscc", "--config", str(config)
            ),
            np.load(golden / f"{name}_io.npz"),
        )
        for name in ("regular", "reduced")
    }


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A flat state dict below ``Encoder.`` and ``Decoder.``, in half precision."""
    golden = GOLDEN / "pdjscc-tiny"
    folder = tmp_path_factory.mktemp("pdjscc")
    bundle = exported(folder, golden / "model_fp16.pth.tar", "--model", "perceptual")
    return Case(bundle, np.load(golden / "io.npz"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    golden = GOLDEN / "bourtsoulatze-small"
    folder = tmp_path_factory.mktemp("bourtsoulatze")
    bundle = exported(folder, golden / "random_c2_fp16.pkl", "--model", "deepjscc")
    return Case(bundle, np.load(golden / "c2_io.npz"))


def assert_close(computed: Array, expected: Array, tolerance: float = TOLERANCE) -> None:
    assert computed.shape == expected.shape
    assert float(np.abs(computed - expected).max()) <= tolerance


def logit(image: Array) -> Array:
    wide = image.astype(np.float64)
    return np.log(wide / (1 - wide))


def test_tensorrt_takes_every_graph(perceptual: Case, tensorrt_takes: Callable[..., None]) -> None:
    tensorrt_takes(perceptual.bundle)


@pytest.mark.exhaustive
@pytest.mark.parametrize("snr_db", [-5, 7.5, 20])
@pytest.mark.parametrize("name", ["regular", "reduced"])
def test_af_network(af: Mapping[str, Case], name: str, snr_db: float) -> None:
    case, golden = af[name], af[name].vectors
    csi = Csi(snr_db=snr_db)
    key = f"snr{snr_db:g}"
    for index, image in enumerate(golden["image"]):
        planes, symbols = case.sent(image, csi)
        # Consecutive values of the code are the two parts of one symbol.
        row = np.stack([half.ravel() for half in np.split(planes, 2)], axis=-1).ravel()
        assert_close(row.reshape(planes.shape), golden[f"{key}.code"][index])
        assert_close(symbols.ravel(), golden[f"{key}.symbols"][index])
        arrived = golden[f"{key}.received_symbols"][index].reshape(symbols.shape)
        # The trainers put a sigmoid behind the network; so does the graph.
        assert_close(logit(case.decoded(arrived, csi)), golden[f"{key}.decoder_out"][index])


@pytest.mark.slow
@pytest.mark.parametrize("snr_db", [1, 13])
def test_perceptual_codec(perceptual: Case, snr_db: float) -> None:
    golden, csi = perceptual.vectors, Csi(snr_db=snr_db)
    for index, image in enumerate(golden["image_padded"]):
        planes, symbols = perceptual.sent(image, csi)
        feature = golden[f"snr{snr_db}.feature"][index]
        assert_close(planes, feature, 1e-4 * float(np.abs(feature).max()))
        # The authors' power is that of the batch, the radio's that of the image.
        power = golden[f"snr{snr_db}.power"] / (2 * np.mean(np.square(feature, dtype=np.float64)))
        tx = golden[f"snr{snr_db}.tx"][index] * np.sqrt(power)
        assert_close(symbols, tx[:2] + 1j * tx[2:])
        rx = golden[f"snr{snr_db}.rx"][index]
        expected = golden[f"snr{snr_db}.decoder_out_padded"][index]
        assert_close(perceptual.decoded(rx[:2] + 1j * rx[2:], csi), expected)


@pytest.mark.slow
def test_perceptual_codec_pads_by_reflection(perceptual: Case) -> None:
    contract = perceptual.bundle.manifest.image
    assert perceptual.bundle.manifest.format == 2
    image, padded = (
        (perceptual.vectors[name][0].transpose(1, 2, 0) * 255).astype(np.uint8)
        for name in ("image", "image_padded")
    )
    geometry = geometry_of(image.shape[:2], contract, contract.max_pixels)
    assert np.array_equal(pad(image, geometry), padded)


@pytest.mark.slow
@pytest.mark.parametrize("label", [1, 7])
@pytest.mark.parametrize("size", ["32x32", "40x56"])
def test_small_codec_of_bourtsoulatze(small: Case, size: str, label: int) -> None:
    """One graph for both sizes; its SNR is the label plus 3.01 dB, its scale 1 per real value."""
    golden, csi = small.vectors, Csi(snr_db=label + LABEL_OFFSET_DB)
    for index, image in enumerate(golden[f"{size}.image"]):
        _, symbols = small.sent(image, csi)
        z = golden[f"{size}.z"][index]
        assert_close(symbols * np.sqrt(2), z[:2] + 1j * z[2:])
        rx = golden[f"{size}.snr{label}.rx"][index]
        expected = golden[f"{size}.snr{label}.recon"][index]
        assert_close(small.decoded((rx[:2] + 1j * rx[2:]) / np.sqrt(2), csi), expected)


@pytest.mark.slow
def test_labels_are_three_decibels_below_the_true_snr(small: Case) -> None:
    """What the README says of upstream's noise, measured on its own vectors."""
    for label in (1, 7):
        noise = small.vectors[f"40x56.snr{label}.rx"] - small.vectors["40x56.z"]
        unit = small.vectors[f"40x56.snr{label}.unit_noise"]
        deviation = float((noise * unit).sum() / (unit * unit).sum())
        assert -10 * np.log10(deviation**2) == pytest.approx(label + LABEL_OFFSET_DB, abs=1e-3)
    low, high = small.bundle.manifest.signal.snr_db_range
    assert (low, high) == pytest.approx((1 + LABEL_OFFSET_DB, 19 + LABEL_OFFSET_DB))
    assert "3.01 dB above" in small.bundle.manifest.variant


def test_shared_slope_is_stored_four_times() -> None:
    state = torch.load(GOLDEN / "bourtsoulatze-small" / "random_c2_fp16.pkl", weights_only=True)
    slopes = {state[f"decoder.tconv{layer}.activate.weight"].item() for layer in range(1, 5)}
    assert len(slopes) == 1
