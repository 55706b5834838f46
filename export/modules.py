"""Modules: a bundle from two torch modules of your own, whatever is inside them.

    from jscc.export.modules import Contract, export_modules

    contract = Contract(planes=16, stride=16, snr_db_range=(0.0, 14.0))
    export_modules(encoder, decoder, Path("mine.jscc"), contract)

``encoder(image, snr_db)`` takes float32[batch,3,height,width] in [0,1] and the SNR in dB, [batch],
and returns planes [batch,C,height/s,width/s] of any power. ``decoder(received, snr_db)`` takes such
planes, from symbols of unit mean power with noise, and returns the image in [0,1].

This is a function and no command, because a file that holds a module, a pickle or a serialised
graph, makes whoever opens it run what is inside. Here the modules are yours already; what is
written are graphs and weights.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from jscc.export.codec_stages import Codec, coded
from jscc.export.exporter import Order, export
from jscc.export.source import Module
from jscc.export.system import Options, System
from jscc.export.systems.deepjscc import plan_of
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jscc.export.source import Config
    from jscc.runtime.bundle import Bundle


@dataclass(frozen=True)
class Contract:
    """What an encoder and a decoder have agreed on.

    Attributes:
        planes: Real values C per position of the code, even: C/2 symbols.
        stride: Image pixels per position, along height and width.
        snr_db_range: SNRs of the training, in dB.
        multiple: Image height and width are padded to multiples of this; by default `stride`.
        pairs: Consecutive values of the flattened code are one symbol; else its first C/2 planes
            are the real parts and the others the imaginary ones.
        scale: What the decoder expects symbols of unit mean power to be multiplied by.
        told_snr: Whether both modules take the SNR; else they take one argument.
        name: What this is, for humans.
    """

    planes: int
    stride: int
    snr_db_range: tuple[float, float]
    multiple: int | None = None
    pairs: bool = False
    scale: float = 1.0
    told_snr: bool = True
    name: str = "user modules"


def export_modules(
    encoder: nn.Module,
    decoder: nn.Module,
    destination: Path,
    contract: Contract,
    *,
    licence: str = "unknown",
    precision: Literal["fp32", "fp16"] = "fp32",
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    single_file: bool = False,
) -> Bundle:
    """Write a bundle of the system ``generative_jscc`` from two modules, which stay as they are.

    Args:
        encoder: Of the transmitter, see above.
        decoder: Of the receiver.
        destination: Bundle to write.
        contract: What both agree on.
        licence: Of the weights, recorded as given.
        precision: Of the graphs.
        size: Fixed image (height, width) in pixels; None for any.
        overwrite: Whether an existing bundle may be replaced.
        single_file: Write one file instead of a folder.

    Raises:
        UsageError: ``E_MODULE``, a module returns another shape than the contract says.
        CheckpointError: ``E_EXPORT_OP``, a module does what ONNX has no operator for.
        ParityError: ``E_PARITY``, a graph differs from its module.
        OutputError: ``E_EXISTS``, the destination exists.
    """
    halves = tuple(
        copy.deepcopy(module).cpu().float().eval().requires_grad_(False)
        for module in (encoder, decoder)
    )
    _probe(halves[0], halves[1], contract)
    codec = _codec(halves[0], halves[1], contract)

    order = Order(
        name="generative_jscc",
        destination=destination,
        precision=precision,
        size=size,
        overwrite=overwrite,
        single_file=single_file,
        options=Options(),
    )
    system = System(
        paper=contract.name, plan=lambda _source, options: plan_of(codec, options), roles={"": ""}
    )
    return export(system, _Own(_digest(halves), contract.name, licence), order, _silent)


@dataclass(frozen=True)
class _Own:
    """A source of weights whose modules are there already."""

    sha256: str
    name: str
    licence: str

    @property
    def config(self) -> Config:
        """Nothing: the modules are what they are."""
        return {}

    @property
    def folder(self) -> Path:
        """Nothing is looked up."""
        return Path()

    def has(self, prefix: str) -> bool:
        """Nothing is asked for by name."""
        return False

    def shapes(self, prefix: str) -> Mapping[str, tuple[int, ...]]:
        """See `has`."""
        return {}

    def load(
        self, build: Callable[[], Module], prefix: str, ignore: tuple[str, ...] = ()
    ) -> Module:
        """See `has`."""
        return build()

    def same(self, first: str, second: str) -> bool:
        """See `has`."""
        return False

    def describe(self) -> Source:
        """The manifest's record."""
        return Source(name=self.name, sha256=self.sha256, licence=self.licence)


class _Told(nn.Module):
    """A module that takes the SNR as [batch], or nothing beside its input."""

    def __init__(self, module: nn.Module, *, told: bool) -> None:
        super().__init__()
        self.module = module
        self.told = told

    def forward(self, x: Tensor, csi: Tensor) -> Tensor:
        out: Tensor = self.module(x, csi[:, 0]) if self.told else self.module(x)
        return out


def _codec(encoder: nn.Module, decoder: nn.Module, contract: Contract) -> Codec:
    told = contract.told_snr
    halves = {"encoder": _Told(encoder, told=told), "decoder": _Told(decoder, told=told)}
    codec = coded(
        halves.__getitem__,
        planes=contract.planes,
        stride=contract.stride,
        snr_db_range=contract.snr_db_range,
        variant=contract.name,
        told_snr=told,
        pairs=contract.pairs,
        scale=contract.scale,
    )
    return replace(codec, multiple=contract.multiple or contract.stride)


def _probe(encoder: nn.Module, decoder: nn.Module, contract: Contract) -> None:
    """Run both modules once and hold their outputs to the contract."""
    side = 2 * (contract.multiple or contract.stride)
    if contract.planes < 2 or contract.planes % 2 or side % (2 * contract.stride):
        raise UsageError(
            "E_MODULE",
            f"contract: got {contract.planes} planes, stride {contract.stride} and multiple "
            f"{contract.multiple}, expected an even number of planes and a multiple of the stride. "
            "Correct it.",
        )
    grid = (1, contract.planes, side // contract.stride, side // contract.stride)
    snr = (torch.full((1,), sum(contract.snr_db_range) / 2),) if contract.told_snr else ()
    shapes = {"encoder": (grid, encoder), "decoder": ((1, 3, side, side), decoder)}
    given = torch.full((1, 3, side, side), 0.5)
    for name, (shape, module) in shapes.items():
        with torch.no_grad():
            given = module(given, *snr)
        if not isinstance(given, Tensor) or tuple(given.shape) != shape:
            got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise UsageError(
                "E_MODULE",
                f"{name}: got {got} for an image of {side}x{side} pixels, expected {list(shape)}. "
                "Correct the contract or the module.",
            )


def _digest(modules: tuple[nn.Module, ...]) -> str:
    """One hash of all weights."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
