"""Adm configuration: read from the words of the official constructor, or off a checkpoint's shapes.

What shapes cannot tell has the default of the published checkpoints, which a configuration beside
the checkpoint overrides: heads 64 wide where every attention is a multiple of that, else 4 heads;
query, key and value of a head side by side ("legacy" order).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from jscc.export.models.params import counts, flag, integer, integers, positive

Shapes = Mapping[str, tuple[int, ...]]

HEAD_CHANNELS: Final = 64
HEADS: Final = 4
# All weights lie below these.
BELOW: Final = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
# Change neither shapes nor values at inference.
IGNORED: Final = frozenset(
    {"dropout", "family", "image_size", "use_checkpoint", "use_fp16", "dtype"}
)
# Must be absent or equal to this.
FIXED: Final[Mapping[str, Any]] = {
    "class_cond": False,
    "conv_resample": True,
    "dims": 2,
    "num_classes": None,
    "num_heads_upsample": -1,
}
KNOWN: Final = frozenset(
    {
        "attention_resolutions",
        "channel_mult",
        "in_channels",
        "learn_sigma",
        "model_channels",
        "num_head_channels",
        "num_heads",
        "num_res_blocks",
        "out_channels",
        "resblock_updown",
        "use_new_attention_order",
        "use_scale_shift_norm",
    }
)


@dataclass(frozen=True)
class AdmConfig:
    """Shape of the network.

    Attributes:
        in_channels: Planes of the image.
        out_channels: Planes of the prediction; twice as many with a learned variance.
        model_channels: Width of the timestep's sinusoid.
        levels: (width, number of residual blocks going down) per resolution, highest first.
        attention: For each level whether its blocks attend.
        head_channels: Width of one attention head; None if `head_count` says how many there are.
        head_count: Number of attention heads; unused where `head_channels` is given.
        scale_shift: Whether the embedding scales and shifts after the second norm, or is added
            before it.
        residual_resampling: Whether residual blocks change the resolution, or convolutions.
        interleaved: Whether query, key and value of a head lie side by side ("legacy" order).
    """

    in_channels: int
    out_channels: int
    model_channels: int
    levels: tuple[tuple[int, int], ...]
    attention: tuple[bool, ...]
    head_channels: int | None
    head_count: int
    scale_shift: bool
    residual_resampling: bool
    interleaved: bool

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str) -> Self:
        """Read `params`; `where` names their place in the file for messages.

        ``attention_resolutions`` are down-sampling factors, as the constructor has them, and not
        the resolutions of images that the official command line takes.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        _check_keys(params, where)
        width = integer(params, "model_channels", where)
        mults = integers(params, "channel_mult", where)
        blocks = counts(params, where, len(mults))
        factors = integers(params, "attention_resolutions", where, default=())
        in_channels = integer(params, "in_channels", where, default=3)
        config = cls(
            in_channels=in_channels,
            out_channels=_out_channels(params, in_channels, where),
            model_channels=width,
            levels=tuple((width * mult, n) for mult, n in zip(mults, blocks, strict=True)),
            attention=tuple(2**level in factors for level in range(len(mults))),
            head_channels=_head_channels(params, where),
            head_count=integer(params, "num_heads", where, default=1),
            scale_shift=flag(params, "use_scale_shift_norm", where),
            residual_resampling=flag(params, "resblock_updown", where),
            interleaved=not flag(params, "use_new_attention_order", where),
        )
        config._check_heads(where)
        return config

    @property
    def embedding(self) -> int:
        """Width of the embedding of the timestep."""
        return 4 * self.model_channels

    def heads(self, width: int) -> int:
        """The number of attention heads at a place of this `width`."""
        return self.head_count if self.head_channels is None else width // self.head_channels

    def _check_heads(self, where: str) -> None:
        attending = [
            width
            for (width, _), attends in zip(self.levels, self.attention, strict=True)
            if attends
        ]
        unit = self.head_channels or self.head_count
        for width in (*attending, self.levels[-1][0]):  # the middle block always attends
            if width % unit:
                raise ValueError(
                    f"{where}: got attention of width {width}, expected a multiple of {unit}. "
                    "Check num_heads and num_head_channels."
                )


def config_of(shapes: Shapes) -> dict[str, Any] | None:
    """The parameters of the network that tensors of these shapes belong to, None for another.

    Args:
        shapes: Shape by key, without a prefix.
    """
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
    if not all(key in shapes for key in needed) or _has(shapes, r"\.attn1\.|transformer_blocks"):
        return None
    channels = shapes["time_embed.0.weight"][1]
    levels = _levels(shapes)
    factors = [
        1 << level
        for level, blocks in enumerate(levels)
        if any(f"input_blocks.{block}.1.qkv.weight" in shapes for block in blocks)
    ]
    attending = {shape[1] for key, shape in shapes.items() if key.endswith(".qkv.weight")}
    wide = all(width % HEAD_CHANNELS == 0 for width in attending)
    first = f"input_blocks.{levels[0][0]}.0"
    return {
        "family": "adm",
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "model_channels": channels,
        "num_res_blocks": [len(blocks) for blocks in levels],
        "channel_mult": [
            shapes[f"input_blocks.{blocks[0]}.0.out_layers.3.weight"][0] // channels
            for blocks in levels
        ],
        "attention_resolutions": factors,
        "num_heads": HEADS,
        "num_head_channels": HEAD_CHANNELS if wide else -1,
        "use_scale_shift_norm": shapes[f"{first}.emb_layers.1.weight"][0]
        == 2 * shapes[f"{first}.out_layers.0.weight"][0],
        "resblock_updown": not _has(shapes, r"^input_blocks\.\d+\.0\.op\.")
        and not _has(shapes, r"^output_blocks\.\d+\.\d+\.conv\."),
        "use_new_attention_order": False,
    }


def _levels(shapes: Shapes) -> list[list[int]]:
    """Numbers of the input blocks that keep the resolution, level by level, highest first.

    A block that lowers it is a convolution called ``op`` or, where residual blocks do that too,
    told by the output half: each level there ends with one layer more.
    """
    count = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("input_blocks."))
    if _has(shapes, r"^input_blocks\.\d+\.0\.op\."):
        lowers = [f"input_blocks.{block}.0.op.weight" in shapes for block in range(count)]
    else:
        # Output block k takes the skip of input block count-1-k; where it raises the resolution
        # it takes the last one of its level, the output of the block that lowered it.
        lowers = [_raises(shapes, count - 1 - block) for block in range(count)]
    levels: list[list[int]] = [[]]
    for block in range(1, count):
        if lowers[block]:
            levels.append([])
        else:
            levels[-1].append(block)
    return levels


def _raises(shapes: Shapes, block: int) -> bool:
    """Whether output block `block` ends with a residual block beside its own."""
    return any(f"output_blocks.{block}.{layer}.in_layers.0.weight" in shapes for layer in (1, 2))


def _has(shapes: Shapes, pattern: str) -> bool:
    found = re.compile(pattern)
    return any(found.search(key) for key in shapes)


def _out_channels(params: Mapping[str, Any], in_channels: int, where: str) -> int:
    """As given, or from ``learn_sigma``, the switch of the official command line."""
    if "learn_sigma" not in params:
        allowed = [in_channels, 2 * in_channels]
    else:
        allowed = [2 * in_channels if flag(params, "learn_sigma", where) else in_channels]
    default = allowed[0] if len(allowed) == 1 else None
    value = integer(params, "out_channels", where, default=default)
    if value not in allowed:
        raise ValueError(
            f"{where}.out_channels: got {value}, expected {' or '.join(map(str, allowed))}: noise, "
            "and as many planes of its variance with learn_sigma. Correct the file."
        )
    return value


def _head_channels(params: Mapping[str, Any], where: str) -> int | None:
    value = params.get("num_head_channels", -1)
    return None if value == -1 else positive(value, f"{where}.num_head_channels")


def _check_keys(params: Mapping[str, Any], where: str) -> None:
    for key, value in params.items():
        if key in FIXED:
            if value != FIXED[key]:
                raise ValueError(
                    f"{where}.{key}: got {value!r}, expected {FIXED[key]!r}. "
                    "This variant of the network is not implemented."
                )
        elif key not in KNOWN and key not in IGNORED:
            raise ValueError(
                f"{where}: got unknown key {key!r}, expected some of {sorted(KNOWN)}. "
                "Remove it if it does not change the network."
            )
