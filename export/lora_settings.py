"""LoRA settings: the alpha of a LoRA file where it is not among the tensors.

peft writes it into an ``adapter_config.json`` beside the file, diffusers into the header of the
file itself, as the text of a JSON object under ``lora_adapter_metadata``.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jscc.export.checkpoint import Checkpoint
from jscc.export.safetensors_file import read_metadata
from jscc.export.tensor_file import OpenFile
from jscc.runtime.errors import CheckpointError
from jscc.runtime.trust import strict_json

FILE = "adapter_config.json"
METADATA = "lora_adapter_metadata"
LIMIT = 1 << 20  # bytes
# Beginnings of training that leave the base model's weights as they are; PiSSA, OLoRA and the
# like do not, and their matrices would be added to weights that they do not belong to.
KEEP_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """What a file's authors say of its scale.

    Attributes:
        where: Name of what says it.
        alpha: Of every layer …
        patterns: … but of those whose names end so.
        rank: Of every layer; None where layers have ranks of their own.
        root: Whether alpha is divided by the root of the rank, Damjan Kalajdzievski, "A Rank
            Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732.
    """

    where: str
    alpha: float
    patterns: Mapping[str, float]
    rank: float | None
    root: bool

    def scale(self, place: str, layer: str, rank: int) -> float:
        """Factor of the product of the matrices of `layer`, a diffusers name.

        Raises:
            CheckpointError: ``E_LORA_ALPHA``, the settings are those of another rank.
        """
        if self.rank not in (None, rank):
            raise CheckpointError(
                "E_LORA_ALPHA",
                f"{place}: got matrices of rank {rank}, expected r = {self.rank:g} of "
                f"{self.where}. Check that they belong together.",
            )
        found = (value for name, value in self.patterns.items() if _is_meant(name, layer))
        return next(found, self.alpha) / (math.sqrt(rank) if self.root else rank)


def read_settings(checkpoint: Checkpoint, *, peft: bool) -> Settings | None:
    """The settings of a file, or None where nothing states them.

    Args:
        checkpoint: The file.
        peft: Whether its keys are peft's, whose settings lie beside the file.

    Raises:
        CheckpointError: ``E_LORA_ALPHA``, they are malformed; ``E_LORA_KIND``, they are of
            another method.
    """
    tree = _beside(checkpoint) if peft else None
    if tree is not None:
        return _read(FILE, tree)
    text = read_metadata(checkpoint.file) if checkpoint.container == "safetensors" else {}
    if METADATA not in text:
        return None
    tree = _parse(METADATA, text[METADATA].encode())
    return _read(METADATA, {name.removeprefix("unet."): value for name, value in tree.items()})


def _beside(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    path = checkpoint.path.parent / FILE
    if not path.exists():
        return None
    file = OpenFile(path)
    return _parse(FILE, file.read(0, min(file.size, LIMIT + 1)))


def _parse(where: str, data: bytes) -> Mapping[str, Any]:
    tree = strict_json(data, limit=LIMIT, refuse=lambda at, got, want: _wrong(where, at, got, want))
    if not isinstance(tree, dict):
        raise _wrong(where, "", f"a {type(tree).__name__}", "an object")
    return tree


def _read(where: str, tree: Mapping[str, Any]) -> Settings:
    kind, start = tree.get("peft_type", "LORA"), tree.get("init_lora_weights", True)
    other = {
        f"peft_type {kind!r:.40}": kind != "LORA",
        "use_dora": tree.get("use_dora", False) is not False,
        f"init_lora_weights {start!r:.40}": start not in KEEP_BASE,
    }
    for got, refused in other.items():
        if refused:
            raise CheckpointError(
                "E_LORA_KIND",
                f"--lora, {where}: got {got}, expected a LoRA on the base model's own weights. "
                "Merge it where it was trained and give the checkpoint.",
            )
    root, ranks = tree.get("use_rslora", False), tree.get("rank_pattern") or {}
    patterns = tree.get("alpha_pattern") or {}
    if type(root) is not bool:
        raise _wrong(where, "/use_rslora", f"{root!r:.40}", "true or false")
    if not isinstance(patterns, dict) or not all(map(_is_literal, patterns)):
        raise _wrong(where, "/alpha_pattern", f"{patterns!r:.80}", "names of layers and numbers")
    return Settings(
        where,
        _number(where, "lora_alpha", tree.get("lora_alpha")),
        {name: _number(where, f"alpha_pattern/{name}", each) for name, each in patterns.items()},
        None if ranks else _number(where, "r", tree.get("r")),
        root,
    )


def _is_literal(pattern: str) -> bool:
    """Whether a pattern, which may be any regular expression, is a name or the end of one."""
    return re.fullmatch(r"\^?[A-Za-z0-9_.]+", pattern) is not None


def _is_meant(pattern: str, layer: str) -> bool:
    return layer == pattern.removeprefix("^") or layer.endswith(f".{pattern}")


def _number(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _wrong(where, f"/{name}", f"{value!r:.40}", "a number above 0")
    return float(value)


def _wrong(where: str, at: str, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "E_LORA_ALPHA",
        f"--lora, {where}{at and f', {at}'}: got {got}, expected {expected}. "
        "Give the file as its authors published it.",
    )
