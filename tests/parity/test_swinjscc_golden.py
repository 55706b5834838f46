"""SwinJSCC's three variants, through export and runtime, reproduce the authors' numbers.

The golden checkpoints were made with random weights by the published implementation; their first
halves of a flat row of features are the real parts of the symbols, the second the imaginary ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from jscc.export.cli import main
from jscc.runtime import transmitter
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError
from jscc.runtime.receiver import Receiver
from recording_backend import RecordingBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Arrays = dict[str, npt.NDArray[Any]]
    Sides = dict[str, npt.NDArray[Any]]
    Symbols = npt.NDArray[np.complex64]

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "swinjscc-tiny"
TOLERANCE = 5e-5  # of values of order 1; pictures of random weights reach 4
CONFIGS = {"base": "variant: base", "sa": "variant: sa", "sa_ra": "rates: [5, 14]"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}"),
]


@dataclass(frozen=True)
class Case:
    """One variant: its bundle and the numbers of the published implementation."""

    bundle: Bundle
    vectors: Arrays


def exported(tmp_path_factory: pytest.TempPathFactory, variant: str, size: str = "dynamic") -> Case:
    folder = tmp_path_factory.mktemp(variant)
    config = folder / "config.yaml"
    config.write_text(CONFIGS[variant])
    bundle = folder / f"{variant}.jscc"
    checkpoint = str(GOLDEN / f"{variant}_fp16.model")
    asked = ["--model", "deepjscc", "--checkpoint", checkpoint, "--config", str(config)]
    assert main([*asked, "--size", size, "-o", str(bundle)]) == 0
    with np.load(GOLDEN / f"{variant}_io.npz") as archive:
        return Case(Bundle.open(bundle), dict(archive))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return exported(tmp_path_factory, "base")


@pytest.fixture(scope="module")
def sa(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return exported(tmp_path_factory, "sa", "64x64")


@pytest.fixture(scope="module")
def sa_ra(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return exported(tmp_path_factory, "sa_ra", "32x64")


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Symbols, Sides]]:
    """Sends the golden image, whose values are no whole 255ths: it bypasses the 8-bit entrance."""

    def call(
        case: Case, size: str, snr_db: float, rate: int | None = None
    ) -> tuple[Symbols, Sides]:
        image = case.vectors[f"{size}.image"]
        monkeypatch.setattr(transmitter, "to_network", lambda _: image[0])
        pixels = np.zeros((*image.shape[2:], 3), np.uint8)
        sender = transmitter.Transmitter(case.bundle)
        return sender.send_with_side(pixels, csi=Csi(snr_db), rate=rate)

    return call


def receive(case: Case, symbols: Symbols, side: Sides, snr_db: float) -> npt.NDArray[np.float32]:
    """The reconstruction before it becomes 8 bits, and before it is clipped."""
    backend = RecordingBackend()
    receiver = Receiver(case.bundle, backend=backend, selftest=False)
    _, record = receiver.receive(symbols, Csi(snr_db), seed=0, side=side)
    expected = 2 * len(symbols) if case.bundle.manifest.signal.rates else None
    assert record.rate == expected
    reconstruction: npt.NDArray[np.float32] = backend.outputs("decode")[-1]["reconstruction"]
    return reconstruction


def as_symbols(row: npt.NDArray[Any], like: Symbols) -> Symbols:
    """A row of reals, the real parts first, as symbols shaped `like`."""
    real, imaginary = row.reshape(2, -1)
    return (real + 1j * imaginary).astype(np.complex64).reshape(like.shape)


def assert_close(computed: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert computed.shape == expected.shape
    gap = np.abs(computed.astype(np.complex128) - expected).max()
    assert gap <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("variant", "size", "snr_db"),
    [
        ("base", "64x64", 10),
        ("base", "64x96", 10),
        ("sa", "64x64", 1),
        ("sa", "64x64", 13),
    ],
)
def test_all_features(
    request: pytest.FixtureRequest,
    send: Callable[..., tuple[Symbols, Sides]],
    variant: str,
    size: str,
    snr_db: int,
) -> None:
    case: Case = request.getfixturevalue(variant)
    name = f"{size}.snr{snr_db}"
    power = case.vectors[f"{name}.pwr"]
    symbols, side = send(case, size, snr_db)
    np.testing.assert_allclose(side["power"], [power], rtol=1e-5)
    transmitted = as_symbols(case.vectors[f"{name}.feature"] / np.sqrt(power), symbols)
    assert_close(symbols, transmitted)
    arrived = as_symbols(case.vectors[f"{name}.rx"] / np.sqrt(power), symbols)
    assert_close(receive(case, arrived, side, snr_db), case.vectors[f"{name}.recon"])


@pytest.mark.parametrize("rate", [5, 14])
@pytest.mark.parametrize("snr_db", [1, 13])
def test_chosen_features(
    sa_ra: Case, send: Callable[..., tuple[Symbols, Sides]], snr_db: int, rate: int
) -> None:
    """One graph for both rates; the mask is exact, and only what it names goes on the air."""
    name = f"32x64.snr{snr_db}.rate{rate}"
    vectors = sa_ra.vectors
    mask = vectors[f"{name}.mask"][0, 0]
    power = 2 * vectors[f"{name}.avg_pwr"]
    symbols, side = send(sa_ra, "32x64", snr_db, 4 * rate)
    np.testing.assert_array_equal(side["feature_mask"], mask[None])
    np.testing.assert_allclose(side["power"], [power], rtol=1e-5)
    assert symbols.shape == (2 * rate, 1, 2)
    kept = vectors[f"{name}.feature"][..., mask == 1]
    assert_close(symbols, as_symbols(kept / np.sqrt(power), symbols))
    arrived = as_symbols(vectors[f"{name}.rx"][..., mask == 1] / np.sqrt(power), symbols)
    assert_close(receive(sa_ra, arrived, side, snr_db), vectors[f"{name}.recon"])


def test_the_published_noise_is_that_of_the_runtime_s_channel(
    sa_ra: Case, send: Callable[..., tuple[Symbols, Sides]]
) -> None:
    """Same unit normals, same SNR, same received values: the SNR label means what ours means."""
    name = "32x64.snr1.rate5"
    vectors = sa_ra.vectors
    mask = vectors[f"{name}.mask"][0, 0] == 1
    symbols, side = send(sa_ra, "32x64", 1, 20)
    unit = [
        vectors[f"{name}.unit_noise_{part}"].reshape(-1, mask.size) for part in ("real", "imag")
    ]
    noise = np.concatenate([part[:, mask].ravel() for part in unit])
    spread = np.sqrt(Csi(1.0).noise_power / 2)
    received = symbols + as_symbols(spread * noise, symbols)
    arrived = vectors[f"{name}.rx"][..., mask] / np.sqrt(side["power"])
    assert_close(received, as_symbols(arrived, symbols))


@pytest.mark.parametrize(
    ("variant", "rate", "words"),
    [
        ("sa_ra", 24, "rate: got 24, expected one of 20, 56. Leave it out to send all 56 planes."),
        pytest.param(
            *("sa", 20, "rate: got 20, expected none, this bundle has one rate only."),
            marks=pytest.mark.exhaustive,
        ),
    ],
)
def test_other_rates_are_refused(
    request: pytest.FixtureRequest,
    send: Callable[..., tuple[Symbols, Sides]],
    variant: str,
    rate: int,
    words: str,
) -> None:
    case: Case = request.getfixturevalue(variant)
    size = case.bundle.manifest.stages["decode"].outputs[0].shape[2:]
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        send(case, f"{size[0]}x{size[1]}", 7.0, rate)
    assert caught.value.code == "E_RATE"
