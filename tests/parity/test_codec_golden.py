"""The codecs reproduce their published implementations' numbers: convolutional Rayleigh, Swin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from jscc.export.cli import main
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"
TOLERANCE = {"tiny-cnn-rayleigh": 2e-5, "tiny-swin": 5e-5}
SNR_DB = {"A": 1.0, "B": 10.0}

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")


def exported(name: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("golden") / f"{name}.jscc"
    checkpoint = str(GOLDEN / name / "model.ckpt")
    assert main(["--model", "deepjscc", "--checkpoint", checkpoint, "-o", str(path)]) == 0
    return Bundle.open(path)


@pytest.fixture(scope="module")
def fading(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Arrays]:
    name = "tiny-cnn-rayleigh"
    return exported(name, tmp_path_factory), load_file(GOLDEN / name / "io.safetensors")


@pytest.fixture(scope="module")
def swin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Arrays]:
    name = "tiny-swin"
    return exported(name, tmp_path_factory), load_file(GOLDEN / name / "io.safetensors")


def assert_close(computed: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float) -> None:
    assert computed.shape == expected.shape
    gap = np.abs(computed.astype(np.complex128) - expected).max()
    assert gap <= tolerance * np.abs(expected).max()


def decoded(
    bundle: Bundle, symbols: npt.NDArray[np.complex64], csi: Csi
) -> npt.NDArray[np.float32]:
    """The receiver's reconstruction before it becomes 8 bits."""
    backend = RecordingBackend()
    Receiver(bundle, backend=backend).receive(symbols, csi, seed=0)
    reconstruction: npt.NDArray[np.float32] = backend.outputs("decode")[-1]["reconstruction"]
    return reconstruction


@pytest.mark.parametrize("fade", ["h0", "h1"])
@pytest.mark.parametrize("name", ["A", "B"])
def test_convolutional_codec_over_rayleigh_fading(
    fading: tuple[Bundle, Arrays], name: str, fade: str
) -> None:
    """The transmitter is told h, the receiver equalises by it and tells its network too."""
    bundle, vectors = fading
    golden = f"out.snr{name}.{fade}"
    gain = complex(vectors[f"{golden}.h_re"].item(), vectors[f"{golden}.h_im"].item())
    csi = Csi(snr_db=SNR_DB[name], gain=gain)
    symbols = Transmitter(bundle).send(vectors["in.x_u8"], csi=csi)
    sent = (vectors[f"{golden}.tx_re"] + 1j * vectors[f"{golden}.tx_im"])[0]
    assert_close(symbols, sent, TOLERANCE["tiny-cnn-rayleigh"])
    arrived = (vectors[f"{golden}.rx_re"] + 1j * vectors[f"{golden}.rx_im"])[0]
    image = decoded(bundle, arrived.astype(np.complex64), csi)
    assert_close(image, vectors[f"{golden}.x_init"], TOLERANCE["tiny-cnn-rayleigh"])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("size", "channel"), [("128x128", "awgn"), ("128x128", "rayleigh"), ("128x192", "awgn")]
)
@pytest.mark.parametrize("name", ["A", "B"])
def test_swin_codec(swin: tuple[Bundle, Arrays], size: str, name: str, channel: str) -> None:
    """Both sizes from one graph; on the fading channel nobody equalises and nobody is told."""
    bundle, vectors = swin
    golden = f"out.{size}.snr{name}.{channel}"
    height, width = map(int, size.split("x"))
    rows, columns = height // 16, width // 16

    def grid(tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Tokens [1, rows·columns, n], row by row, as planes [n, rows, columns]."""
        return tokens[0].reshape(rows, columns, -1).transpose(2, 0, 1)

    image = vectors[f"in.{size}.x_u8"]
    csi = Csi(snr_db=SNR_DB[name])
    symbols = Transmitter(bundle).send(image, csi=csi)
    planes = grid(vectors[f"out.{size}.snr{name}.awgn.z"])
    half = planes.shape[0] // 2
    sent = planes[:half] + 1j * planes[half:]
    sent = sent / np.sqrt(np.mean(np.abs(sent) ** 2))
    assert_close(symbols, sent, TOLERANCE["tiny-swin"])
    planes = grid(vectors[f"{golden}.rx"])
    arrived = (planes[:half] + 1j * planes[half:]).astype(np.complex64)
    reconstruction = decoded(bundle, arrived, csi)
    assert_close(reconstruction, vectors[f"{golden}.x_hat"], TOLERANCE["tiny-swin"])
