"""LPIPS as a module reproduces the published distances and takes the published names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from jscc.export.gather import Request, gather
from jscc.export.load import load_into
from jscc.export.models.lpips import Lpips, config_of
from jscc.export.system import System
from jscc.runtime.errors import CheckpointError

WEIGHTS = Path(__file__).resolve().parents[4] / "shared" / "data" / "weights" / "lpips"
FILES = ("alexnet_features.fp16.safetensors", "lpips_v0.1_alex_heads.safetensors")


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    if not WEIGHTS.is_dir():
        pytest.skip(f"no LPIPS weights at {WEIGHTS}")
    tensors = {key: value for name in FILES for key, value in load_file(WEIGHTS / name).items()}
    assert config_of({key: tuple(value.shape) for key, value in tensors.items()}) == {}
    return load_into(Lpips(), tensors, where="lpips").eval().requires_grad_(False)


def picture(name: str) -> Tensor:
    pixels = np.asarray(Image.open(WEIGHTS / "reference" / name).convert("RGB"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def test_published_distances(lpips: Lpips) -> None:
    expected = json.loads((WEIGHTS / "reference" / "expected.json").read_text())["alex"]
    reference = picture("ex_ref.png")
    for name in ("ex_p0", "ex_p1"):
        distance = float(lpips(picture(f"{name}.png"), reference)[0])
        assert distance == pytest.approx(expected[f"ex_ref-{name}"], abs=5e-4)


def test_the_gradient_is_finite_where_pictures_agree(lpips: Lpips) -> None:
    flat = torch.zeros(1, 3, 64, 64, requires_grad=True)
    lpips(flat, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()


def test_other_weights_are_not_taken_for_it() -> None:
    assert config_of({"features.0.weight": (64, 3, 11, 11)}) is None


@pytest.fixture
def own() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return {name: tensor.abs() for name, tensor in Lpips().state_dict().items()}


def as_torchvision(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's AlexNet."""
    features = {name: value for name, value in own.items() if name.startswith("features.")}
    return {**features, "classifier.1.weight": torch.ones(8, 4), "classifier.6.bias": torch.ones(8)}


def as_authors(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The heads alone, ``weights/v0.1/alex.pth``."""
    return {
        name.removeprefix("alex."): value for name, value in own.items() if name.startswith("alex.")
    }


def as_package(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``lpips.LPIPS(net="alex")`` stores."""
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    heads = as_authors(own)
    features = {
        f"net.slice{number}.{index}.{part}": own[f"features.{index}.{part}"]
        for index, number in slices.items()
        for part in ("weight", "bias")
    }
    again = {name.replace("lin", "lins.", 1): value for name, value in heads.items()}
    scaling = {"scaling_layer.shift": torch.ones(1, 3, 1, 1)}
    return {**scaling, **features, **heads, **again}


CONTAINERS: dict[str, Callable[[dict[str, Tensor]], list[dict[str, Tensor]]]] = {
    "one file": lambda own: [own],
    "the package": lambda own: [as_package(own)],
    "torchvision and the authors": lambda own: [as_torchvision(own), as_authors(own)],
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_published_name_is_taken(
    own: dict[str, Tensor], container: str, tmp_path: Path
) -> None:
    names = []
    for number, state in enumerate(CONTAINERS[container](own)):
        torch.save(state, tmp_path / f"{number}.pth")
        names.append(f"lpips={tmp_path / f'{number}.pth'}")
    source, _ = gather(System(paper="", plan=None, roles={"lpips": ""}), Request(tuple(names)))
    loaded = source.load(Lpips, "lpips.").state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[name], own[name]) for name in own)


def test_half_of_the_weights_is_not_enough(own: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(as_torchvision(own), tmp_path / "alexnet.pth")
    system = System(paper="", plan=None, roles={"lpips": ""})
    match = r"got weights features\.0\.weight, .*expected all those of one of lpips\. Repeat lpips="
    with pytest.raises(CheckpointError, match=match) as caught:
        gather(system, Request((f"lpips={tmp_path / 'alexnet.pth'}",)))
    assert caught.value.code == "E_CKPT_FAMILY"
