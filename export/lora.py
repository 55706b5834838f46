"""LoRA: low-rank changes of a diffusion UNet in files of their own, merged into it at export.

Edward Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3,
with the scale of its section 4.1: W + weight · (alpha / rank) · up · down; of a convolution, `up`
is 1x1 and the product runs over the rank axis. Few-step students of Stable Diffusion are published
so (LCM-LoRA, arXiv:2311.05556; TCD, arXiv:2402.19159); `jscc.export.lora_keys` has their styles.

Only the UNet is changed. A control module that began as a copy of its encoder was trained apart
and stays as it is. Text encoders stay as they are too: their changes are left out, which the
manifest says, or refused where a prompt of the caller's is encoded at export.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from jscc.export.checkpoint import Checkpoint, read_checkpoint
from jscc.export.lora_keys import PEFT, Keys, shown, sort_keys
from jscc.export.lora_settings import Settings, read_settings
from jscc.export.models.unet import Unet
from jscc.export.models.unet_names import diffusers_names
from jscc.export.roles import REFERENCE, REFERENCE_LICENCE, WEIGHTS, lora_folder
from jscc.export.tensor_file import form
from jscc.runtime.errors import CheckpointError, UsageError
from jscc.runtime.manifest import NetworkSource


@dataclass(frozen=True)
class Pair:
    """What changes one layer: ``scale · up · down``, both by their keys."""

    up: str
    down: str
    scale: float


@dataclass(frozen=True)
class Lora:
    """One file, held to the UNet that it changes.

    Attributes:
        checkpoint: The file.
        name: What it is called in records.
        weight: What the caller multiplies its change by; in the pairs' scales already.
        licence: Of the file, recorded as given.
        prefix: Of the UNet's weights in the system's checkpoint.
        pairs: By the layer's own name in the UNet.
        notes: What the manifest says about it.
    """

    checkpoint: Checkpoint
    name: str
    weight: float
    licence: str
    prefix: str
    pairs: Mapping[str, Pair]
    notes: tuple[str, ...]

    def describe(self) -> NetworkSource:
        """The manifest's record of the file."""
        name = f"{self.name}, weight {self.weight:g}"
        return NetworkSource(name=name, sha256=self.checkpoint.sha256, licence=self.licence)


def read_lora(
    text: str, prefix: str, unet: Unet, *, licence: str = "unknown", encodes_text: bool = False
) -> Lora:
    """Read a LoRA, see `parse_lora`, and hold it to `unet`, which may be on the meta device.

    Args:
        text: Path of a safetensors or torch file, and what to multiply the change by (1).
        prefix: Of the UNet's weights in the system's checkpoint.
        unet: The network that is to change.
        licence: Of the file.
        encodes_text: Whether the export encodes a prompt, which a text encoder's change affects.

    Raises:
        UsageError: ``E_LORA``, it is a folder, or the weight no number other than 0.
        CheckpointError: ``E_LORA_KIND``, it is no LoRA but something alike; ``E_LORA_KEYS``, a
            key fits no layer, or a layer has not all of its keys once; ``E_LORA_SHAPE``, a layer
            is of another shape; ``E_LORA_ALPHA``, the scale cannot be told; ``E_LORA_TEXT``, the
            prompt's encoder would have to change; ``E_WEIGHTS_NONFINITE``, NaN, infinity, or
            nothing but zeros; or as `read_checkpoint`.
    """
    path, weight = parse_lora(text)
    own = text.startswith(REFERENCE)
    if os.path.isdir(path):
        raise UsageError(
            "E_LORA", f"--lora {text}: got a folder, expected a file. Give the one in it."
        )
    checkpoint = read_checkpoint(path)
    tensors, where = checkpoint.tensors, f"--lora {checkpoint.path.name}"
    names = diffusers_names(unet)
    layers, skipped = sort_keys(where, tuple(tensors), names)
    if skipped and encodes_text:
        raise CheckpointError(
            "E_LORA_TEXT",
            f"{where}: got changes of {skipped} layers of a text encoder, expected none with "
            "--text fixed, whose prompt the unchanged encoder would read. Use --text none or side.",
        )
    settings = read_settings(checkpoint, peft=any(key.startswith(PEFT) for key in tensors))
    if settings is not None:
        _check_alpha_once(where, layers, settings)
    pairs = {}
    for layer, keys in layers.items():
        place = f"{where}, {layer}"
        rank = _rank(place, tensors, keys, tuple(unet.get_parameter(f"{layer}.weight").shape))
        if settings is not None:
            scale = settings.scale(place, names[layer], rank)
        else:
            scale = _alpha(place, tensors, keys["alpha"]) / rank if "alpha" in keys else 1.0
        pairs[layer] = Pair(keys["up"], keys["down"], weight * scale)
    _check_values(where, tensors, pairs)
    notes = tuple(_notes(layers, skipped, settings))
    name = f"{REFERENCE}{path.parent.name}" if own else checkpoint.path.name
    licence = REFERENCE_LICENCE if own else licence
    return Lora(checkpoint, name, weight, licence, prefix, pairs, notes)


def parse_lora(text: str) -> tuple[Path, float]:
    """``FILE[:WEIGHT]`` to path and weight; a file of that whole name comes first.

    ``reference:NAME[:WEIGHT]`` means this project's own weights of that name.

    Raises:
        UsageError: ``E_LORA``, the weight is no finite number, or 0; ``E_REFERENCE``, there is no
            own LoRA of that name.
    """
    if text.startswith(REFERENCE):
        own, colon, number = text.removeprefix(REFERENCE).partition(":")
        weight = _weight(text, number) if colon else 1.0
        return lora_folder(own) / WEIGHTS, weight
    name, colon, number = text.rpartition(":")
    if not (colon and name) or os.path.exists(text):
        return Path(text), 1.0
    return Path(name), _weight(text, number)


def _weight(text: str, number: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0.0:
        raise UsageError(
            "E_LORA",
            f"--lora {text}: got the weight {number!r}, expected a finite number other than 0. "
            "Write FILE:0.8, or FILE alone for 1.",
        )
    return weight


def merge_into(module: nn.Module, loras: Sequence[Lora]) -> None:
    """Give `module` new weights where `loras` change it; the tensors it had stay as they are.

    Computed in float64 and rounded once, so that the outcome does not depend on the machine.

    Raises:
        CheckpointError: ``E_WEIGHTS_NONFINITE``, a change is too large for the weight's type.
    """
    for layer in dict.fromkeys(layer for lora in loras for layer in lora.pairs):
        owner = module.get_submodule(layer)
        before = owner.get_parameter("weight")
        total = before.detach().to(torch.float64, copy=True).contiguous()
        for lora in loras:
            if layer in lora.pairs:
                pair = lora.pairs[layer]
                # Three steps: fused ones round differently, and half-precision files meet ties.
                product = _matrix(lora, pair.up) @ _matrix(lora, pair.down)
                total += product.mul_(pair.scale).reshape(total.shape)
        merged = total.to(before.dtype)
        if not bool(merged.isfinite().all()):
            names = ", ".join(lora.checkpoint.path.name for lora in loras)
            raise CheckpointError(
                "E_WEIGHTS_NONFINITE",
                f"--lora {names}: got a change of {layer} beyond {before.dtype}, expected finite "
                "weights. Lower the weight, or use another file.",
            )
        owner.register_parameter("weight", nn.Parameter(merged, requires_grad=False))


def _matrix(lora: Lora, key: str) -> torch.Tensor:
    return lora.checkpoint.tensors[key].to(torch.float64).flatten(1)


def _rank(
    place: str, tensors: Mapping[str, torch.Tensor], keys: Keys, target: tuple[int, ...]
) -> int:
    """The rank of one layer's pair, whose shapes are held to the layer's; nothing is read."""
    (up, up_type), (down, down_type) = (form(tensors, keys[role]) for role in ("up", "down"))
    rank = down[0] if down else 0
    fits = _core(up) == (target[0], rank) and _core(down) == (rank, *_core(target)[1:])
    if not (fits and rank and up_type.is_floating_point and down_type.is_floating_point):
        inputs = ",".join(map(str, target[1:]))
        raise CheckpointError(
            "E_LORA_SHAPE",
            f"{place}: got up {_form(up, up_type)} and down {_form(down, down_type)}, expected "
            f"floating up [{target[0]},rank] and down [rank,{inputs}]. Check that it was trained "
            "for the checkpoint's UNet: that of Stable Diffusion 2.1 is neither 1.5's nor XL's.",
        )
    return rank


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution's shape as that of the linear layer that it is."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


def _alpha(place: str, tensors: Mapping[str, torch.Tensor], key: str) -> float:
    shape, dtype = form(tensors, key)
    single = math.prod(shape) == 1 and not dtype.is_complex
    alpha = float(tensors[key].flatten()[0]) if single else math.nan
    if not 0.0 < alpha < math.inf:
        got = f"{alpha:g}" if single else _form(shape, dtype)
        raise CheckpointError(
            "E_LORA_ALPHA",
            f"{place}, {shown([key])}: got {got}, expected one number above 0. "
            "Give the file as its authors published it.",
        )
    return alpha


def _check_alpha_once(where: str, layers: Mapping[str, Keys], settings: Settings) -> None:
    twice = [keys["alpha"] for keys in layers.values() if "alpha" in keys]
    if twice:
        raise CheckpointError(
            "E_LORA_ALPHA",
            f"{where}: got alpha from {settings.where} and from {len(twice)} tensors "
            f"({shown(twice)}), expected one of them. Remove the one that is wrong.",
        )


def _notes(layers: Mapping[str, Keys], skipped: int, settings: Settings | None) -> Iterator[str]:
    if skipped:
        yield f"changes of {skipped} layers of a text encoder left out"
    if settings is not None:
        yield f"alpha from {settings.where}"
    elif (silent := sum("alpha" not in keys for keys in layers.values())) > 0:
        yield f"alpha of {silent} layers not stated, taken as the rank"


def _check_values(
    where: str, tensors: Mapping[str, torch.Tensor], pairs: Mapping[str, Pair]
) -> None:
    """Refuse what is no number, and a file whose change is nothing; reads every tensor once."""
    changes = False
    for pair in pairs.values():
        peaks = []
        for key in (pair.up, pair.down):
            tensor = tensors[key].float()
            peaks.append(float(tensor.abs().max()))
            if not math.isfinite(peaks[-1]):
                raise CheckpointError(
                    "E_WEIGHTS_NONFINITE",
                    f"{where}, {shown([key])}: got NaN or infinity, expected finite numbers. "
                    "Use a file from before its training diverged.",
                )
        changes = changes or all(peaks)
    if not changes:
        raise CheckpointError(
            "E_WEIGHTS_NONFINITE",
            f"{where}: got zeros for up or down in all {len(pairs)} layers, expected a change. "
            "Use a file from after its training.",
        )


def _form(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}]"
