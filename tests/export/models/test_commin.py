"""Commin: of several invertible networks the one whose SNR is nearest splits and merges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import tiny_checkpoint
from jscc.export.lower import Sizes, lower
from jscc.export.models.commin import Commin, config_of
from jscc.export.models.inn import Inn
from jscc.export.proof import run_graph
from jscc.export.system import StageSpec
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from pathlib import Path

SNRS_DB = (1.0, 7.0, 13.0)
NETWORK = {"lifts": 2, "blocks": 1, "width": 6, "levels": 2}
PARAMS = {**NETWORK, "nets": len(SNRS_DB), "snrs_db": list(SNRS_DB)}
ROUNDING = 1e-5  # drawn weights make coarse parts and details of up to 5
NEAREST = [(-20.0, 0), (1.0, 0), (3.9, 0), (4.1, 1), (9.9, 1), (10.1, 2), (13.0, 2), (50.0, 2)]


def made(**params: Any) -> Commin:
    network = tiny_checkpoint._drawn(Commin.from_config({**PARAMS, **params}), seed=5)
    assert isinstance(network, Commin)
    return network


@pytest.fixture(scope="module")
def commin() -> Commin:
    return made()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("snr_db", "index"), NEAREST)
def test_the_nearest_network_splits_and_merges(
    commin: Commin, image: torch.Tensor, snr_db: float, index: int
) -> None:
    told = torch.tensor([snr_db])
    coarse, details = commin(image, told)
    chosen: Any = commin.nets[index]
    expected, expected_details = chosen(image, None)
    assert torch.equal(coarse, expected)
    assert all(map(torch.equal, details, expected_details))
    other = torch.rand(coarse.shape, generator=torch.Generator().manual_seed(1))
    merged = commin.inverse(other, details, told)
    assert torch.equal(merged, chosen.inverse(other, details, None))
    assert (commin.inverse(coarse, details, told) - image).abs().max() <= ROUNDING


def test_networks_with_a_condition_are_given_one_vector(image: torch.Tensor) -> None:
    vector = [0.3, -0.2, 0.9]
    conditioned = {"condition": 3, "hidden": 4, "slicing": "overlapping"}
    network = made(**conditioned, degradation=vector)
    told = torch.tensor([7.0])
    coarse, details = network(image, told)
    chosen: Any = network.nets[1]
    expected, _ = chosen(image, torch.tensor([vector]))
    assert torch.equal(coarse, expected)
    assert (network.inverse(coarse, details, told) - image).abs().max() <= ROUNDING
    silent = made(**conditioned)
    chosen = silent.nets[1]
    assert torch.equal(silent(image, told)[0], chosen(image, torch.zeros(1, 3))[0])


@pytest.mark.slow
def test_the_graph_gathers_the_weights_of_one(
    commin: Commin, image: torch.Tensor, tmp_path: Path
) -> None:
    """Every network's weights are in it and one network's convolutions."""
    spec = StageSpec(
        name="split",
        build=lambda: Coarse(commin),
        inputs=(Port("image", "float32", (1, 3, 16, 24)), Port("snr_db", "float32", (1,))),
        outputs=(Port("coarse", "float32", (1, 3, 4, 6)),),
    )
    lower(spec, tmp_path, Sizes(8), "fp32")
    path = tmp_path / "split.onnx"
    for snr_db, index in NEAREST:
        fed = {"image": image.numpy(), "snr_db": np.array([snr_db], np.float32)}
        chosen: Any = commin.nets[index]
        expected = chosen(image, None)[0].detach().numpy()
        assert np.abs(run_graph(path, fed, ("coarse",))["coarse"] - expected).max() <= 1e-5
    operations = [node.op_type for node in ir.load(path).graph]
    convolutions = NETWORK["levels"] * NETWORK["lifts"] * 2 * (2 + 2 * NETWORK["blocks"])
    assert operations.count("Conv") <= convolutions
    assert "Gather" in operations


class Coarse(torch.nn.Module):
    """The coarse part alone."""

    def __init__(self, network: Commin) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, snr_db: torch.Tensor) -> torch.Tensor:
        coarse: torch.Tensor = self.network(image, snr_db)[0]
        return coarse


@pytest.mark.parametrize("condition", [0, 3])
def test_the_weights_tell_all_but_the_snrs(condition: int) -> None:
    wanted = {"condition": condition, "hidden": 4 if condition else 0}
    network = made(**wanted)
    shapes = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    found = config_of(shapes)
    assert found is not None
    slicing = "overlapping" if condition else "clean"
    expected = {**NETWORK, **wanted, "slicing": slicing, "snr": False, "nets": 3}
    assert found == expected
    assert config_of({**shapes, "other.weight": (1,)}) is None
    assert config_of({}) is None
    single = Inn.from_config(NETWORK).state_dict()
    assert config_of({name: tuple(each.shape) for name, each in single.items()}) is None


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"snrs_db": None}, r"commin.snrs_db: got None, expected 3 different numbers"),
        ({"snrs_db": [1, 7]}, r"commin.snrs_db: got \[1, 7\], expected 3 different numbers"),
        ({"snrs_db": [1, 7, 7]}, r"got \[1, 7, 7\], expected 3 different numbers"),
        ({"snrs_db": [1, 7, float("nan")]}, r"got \[1, 7, nan\], expected 3 different numbers"),
        ({"snrs_db": [1, 7, "a"]}, r"got \[1, 7, 'a'\], expected 3 different numbers"),
        ({"degradation": [1.0]}, r"commin.degradation: got '\[1.0\]', expected 0 numbers"),
        ({"nets": 0}, "commin.nets: got 0, expected a positive integer"),
        ({"snr": True, "condition": 3, "hidden": 4}, "commin.snr: got networks that are told"),
        ({"depth": 3}, "inn: got unknown key 'depth'"),
    ],
)
def test_parameters_that_are_none(change: dict[str, Any], shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        Commin.from_config({**PARAMS, **change})
