"""The SNR-conditional network of the reference weights: what it splits it merges again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jscc.export.exporter import synthetic_image
from jscc.export.gather import Request, gather
from jscc.export.lower import Sizes, lower
from jscc.export.models.inn import Inn
from jscc.export.proof import run_graph
from jscc.export.system import StageSpec, System
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    import numpy.typing as npt

    from jscc.export.source import WeightSource

ROUND_TRIP = 1e-6  # of images in [0, 1], in float32
SHAPE = (3, 3, 48, 64)
SNRS_DB = np.array([0.0, 6.5, 14.0], np.float32)


@pytest.fixture(scope="module")
def source() -> WeightSource:
    system = System(paper="", plan=lambda *_: pytest.fail("no plan is made"), roles={"": "none"})
    return gather(system, Request(("reference:inn-96",)))[0]


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    """A picture and two of noise."""
    rng = np.random.default_rng(3)
    images = rng.uniform(0.0, 1.0, SHAPE).astype(np.float32)
    images[0] = synthetic_image(*SHAPE[2:]).transpose(2, 0, 1) / np.float32(255)
    return images


def network(source: WeightSource) -> Inn:
    return source.load(lambda: Inn.from_config(source.config), "")


class RoundTrip(nn.Module):
    """There and back."""

    def __init__(self, inn: nn.Module) -> None:
        super().__init__()
        self.inn = inn

    def forward(self, image: Tensor, snr_db: Tensor) -> tuple[Tensor, Tensor]:
        coarse, details = self.inn(image, snr_db)
        return coarse, self.inn.inverse(coarse, details, snr_db)  # type: ignore[operator]


def test_it_merges_what_it_split(source: WeightSource, images: npt.NDArray[np.float32]) -> None:
    inn = network(source)
    given, told = torch.from_numpy(images), torch.from_numpy(SNRS_DB)
    with torch.no_grad():
        coarse, merged = RoundTrip(inn)(given, told)
        swapped, _ = inn(given, told.flip(0))
    assert float((merged - given).abs().max()) <= ROUND_TRIP
    assert float((coarse - swapped)[0].abs().max()) > 1e-3  # it does as it is told


@pytest.mark.slow
def test_its_graph_does_too_with_one_set_of_weights(
    source: WeightSource, images: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    spec = StageSpec(
        name="round_trip",
        build=lambda: RoundTrip(network(source)),
        inputs=(Port("image", "float32", SHAPE), Port("snr_db", "float32", SHAPE[:1])),
        outputs=(
            Port("coarse", "float32", (3, 3, 12, 16)),
            Port("merged", "float32", SHAPE),
        ),
    )
    lower(spec, tmp_path, Sizes(4), "fp32")
    path = tmp_path / "round_trip.onnx"
    computed = run_graph(path, {"image": images, "snr_db": SNRS_DB}, ("coarse", "merged"))
    assert np.abs(computed["merged"] - images).max() <= ROUND_TRIP
    weights = sum(4 * each.numel() for each in network(source).parameters())
    assert path.stat().st_size < 1.2 * weights
