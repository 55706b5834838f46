"""Golden vectors of DiffJSCC: tiny checkpoints, inputs and reference outputs.

They lie beside the project's folder; where they do not, the tests that need them are skipped.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from jscc.export.checkpoint import load_into, read_checkpoint, select

SHARED = Path(__file__).resolve().parents[4] / "shared"
Module = TypeVar("Module", bound=nn.Module)
SEED = 20


@dataclass(frozen=True)
class Golden:
    """One folder of golden vectors."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    def load(
        self, build: Callable[[], Module], prefix: str = "", ignore: tuple[str, ...] = ()
    ) -> Module:
        """Build a network without weights and give it those of the checkpoint."""
        with torch.device("meta"):
            module = build()
        weights = select(self.weights, prefix)
        return load_into(module, weights, where=prefix, ignore=ignore).eval()

    def params(self, section: str) -> Mapping[str, Any]:
        """`params` of one section of the configuration."""
        params: Mapping[str, Any] = self.config["params"][section]["params"]
        return params

    def gap(self, name: str, got: Tensor) -> float:
        """The largest difference of `got` to the reference, over the reference's peak."""
        expected = self.tensors[f"out.{name}"]
        assert got.shape == expected.shape
        return float((got - expected).abs().max() / expected.abs().max())


def _golden(name: str) -> Golden:
    folder = SHARED / "golden" / "diffjscc" / name
    if not folder.is_dir():
        pytest.skip(f"no golden vectors at {folder}")
    return Golden(
        folder,
        yaml.safe_load((folder / "config.yaml").read_text()),
        load_file(folder / "io.safetensors"),
        read_checkpoint(folder / "model.ckpt").tensors,
    )


@pytest.fixture(scope="session")
def cnn() -> Golden:
    return _golden("tiny-cnn")


@pytest.fixture(scope="session")
def swin() -> Golden:
    return _golden("tiny-swin")


@pytest.fixture(scope="session")
def full_size_keys() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Read a list of the names and shapes of a full-size checkpoint."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        path = SHARED / "keys" / name
        if not path.is_file():
            pytest.skip(f"no key list at {path}")
        rows = (line.split("\t") for line in path.read_text().splitlines())
        return {key: ast.literal_eval(shape) for key, shape, _ in rows}

    return read


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


@pytest.fixture
def randomise(rng: torch.Generator) -> Callable[[Module], Module]:
    """Give a network random weights, also where it starts from zero, and inference mode."""

    def fill(module: Module) -> Module:
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
            elif tensor.dim() > 1:
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=rng) * fan_in**-0.5)
            else:
                middle = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(middle + 0.1 * torch.randn(tensor.shape, generator=rng))
        return module.eval()

    return fill
