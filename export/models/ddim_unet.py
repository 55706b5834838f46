"""DdimUnet: the pixel-space noise predictor of the DDPM family (``celeba_hq.ckpt``).

Jonathan Ho, Ajay Jain, Pieter Abbeel, "Denoising Diffusion Probabilistic Models", arXiv 2006.11239,
appendix B, in the form that SDEdit, DDRM and DDNM distribute. Written from a description of the
checkpoints; only the names of the parameters are theirs.

    x [B,3,h,w] ─▶ conv_in ─▶ down ─▶ mid ─▶ up ─▶ conv_out ─▶ noise [B,3,h,w]
    timestep ─▶ temb ──────────┴───────┴─────┘

h and w must be multiples of 2**(levels - 1).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend
from jscc.export.models.params import counts, integer, integers

Shapes = Mapping[str, tuple[int, ...]]

GROUPS: Final = 32
EPS: Final = 1e-6
LONGEST_PERIOD: Final = 10_000.0
# Shapes tell at which level a network attends; the official words for it are the resolutions of
# the images it was trained on, which they do not tell. Only the quotient counts.
NOMINAL_RESOLUTION: Final = 256
# All weights lie below these.
BELOW: Final = ("temb.", "conv_in.", "down.", "mid.", "up.", "norm_out.", "conv_out.")
# Change neither shapes nor values at inference.
IGNORED: Final = frozenset({"dropout", "ema", "ema_rate", "family", "type", "var_type"})
KNOWN: Final = frozenset(
    {"attn_resolutions", "ch", "ch_mult", "in_channels", "num_res_blocks", "out_ch", "resolution"}
)


@dataclass(frozen=True)
class DdimConfig:
    """Shape of the network.

    Attributes:
        in_channels: Planes of the image.
        out_channels: Planes of the prediction.
        channels: Width of the first convolution.
        levels: Width per resolution, highest first.
        count: Residual blocks per level going down; going up there is one more.
        attention: For each level whether its blocks attend.
    """

    in_channels: int
    out_channels: int
    channels: int
    levels: tuple[int, ...]
    count: int
    attention: tuple[bool, ...]

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str) -> Self:
        """Read `params`, the section ``model`` of an official configuration.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        _check_keys(params, where)
        channels = integer(params, "ch", where)
        mults = integers(params, "ch_mult", where)
        blocks = counts(params, where, len(mults))
        resolution = integer(params, "resolution", where, default=NOMINAL_RESOLUTION)
        attending = integers(params, "attn_resolutions", where, default=())
        return cls(
            in_channels=integer(params, "in_channels", where, default=3),
            out_channels=integer(params, "out_ch", where, default=3),
            channels=channels,
            levels=tuple(channels * mult for mult in mults),
            count=blocks[0],
            attention=tuple(resolution >> level in attending for level in range(len(mults))),
        )

    @property
    def embedding(self) -> int:
        """Width of the embedding of the timestep."""
        return 4 * self.channels


class Timestep(nn.Module):
    """Two linear layers on a sinusoid; stays in float32 in a half-precision network."""

    keep_float32: Final = True

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width)])
        half = features // 2
        index = torch.arange(half, dtype=torch.float32, device="cpu")
        # NOTE: sines first and a step of 1/(half - 1), unlike other networks' sinusoids. A plain
        # attribute: no key in the state dict, and never cast or built on "meta".
        self.frequencies = torch.exp(index * -(math.log(LONGEST_PERIOD) / (half - 1)))

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.float()[:, None] * self.frequencies.to(timestep.device)[None]
        h = self.dense[0](torch.cat([angle.sin(), angle.cos()], dim=-1))
        out: Tensor = self.dense[1](functional.silu(h))
        return out


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut; the embedding is added between them."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, after)
        self.norm2 = _norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.temb_proj(functional.silu(embedding))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class Attention(nn.Module):
    """Self-attention with one head over the positions of a plane, around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (
            layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v)
        )
        mixed = attend(query, key, value)[:, 0].transpose(1, 2)
        out: Tensor = x + self.proj_out(torch.unflatten(mixed, 2, x.shape[2:]))
        return out


class Downsample(nn.Module):
    """Halves height and width, with zeros at the bottom and the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles height and width by repetition, then convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The blocks of one resolution and, where another follows, the change of resolution.

    Args:
        befores: Width that comes into each block.
        after: Width that goes out of each.
        embedding: Width of the embedding.
        attend: Whether an attention follows each block.
        resample: The change of resolution at the end, or None.
    """

    def __init__(
        self,
        befores: list[int],
        after: int,
        embedding: int,
        *,
        attend: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(before, after, embedding) for before in befores)
        self.attn = nn.ModuleList(Attention(after) for _ in (befores if attend else ()))
        # The checkpoints have two names for the same place.
        self.downsample = resample if isinstance(resample, Downsample) else None
        self.upsample = resample if isinstance(resample, Upsample) else None

    def step(self, x: Tensor, embedding: Tensor, index: int) -> Tensor:
        """Run block `index` and its attention."""
        out: Tensor = self.block[index](x, embedding)
        return self.attn[index](out) if len(self.attn) else out


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, embedding)
        self.attn_1 = Attention(width)
        self.block_2 = ResidualBlock(width, width, embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x, embedding)), embedding)
        return out


class DdimUnet(nn.Module):
    """Predicts the noise in a noisy image. Keys of a published checkpoint, without a prefix."""

    def __init__(self, config: DdimConfig) -> None:
        super().__init__()
        self.config = config
        self.temb = Timestep(config.channels, config.embedding)
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        down, skips = _down(config)
        self.down = nn.ModuleList(down)
        self.mid = Middle(config.levels[-1], config.embedding)
        self.up = nn.ModuleList(_up(config, skips))
        self.norm_out = _norm(config.levels[0])
        self.conv_out = nn.Conv2d(config.levels[0], config.out_channels, 3, padding=1)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the network of `params`, the section ``model`` of an official configuration.

        Raises:
            ValueError: A value is missing or asks for something this network has not.
        """
        return cls(DdimConfig.from_params(params, "ddim"))

    @property
    def stride(self) -> int:
        """Height and width of x must be multiples of this."""
        return 1 << (len(self.config.levels) - 1)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: Noisy image, [B, in_channels, h, w], clean images span [-1, 1].
            timestep: [B], 0 (clean) to 999 (noise), integers or floats.

        Returns:
            [B, out_channels, h, w].
        """
        embedding = self.temb(timestep)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for index in range(self.config.count):
                h = level.step(h, embedding, index)  # type: ignore[operator]
                skips.append(h)
            if level.downsample is not None:
                h = level.downsample(h)  # type: ignore[operator]
                skips.append(h)
        h = self.mid(h, embedding)
        for level in reversed(self.up):
            for index in range(self.config.count + 1):
                h = level.step(torch.cat([h, skips.pop()], dim=1), embedding, index)  # type: ignore[operator]
            if level.upsample is not None:
                h = level.upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out


def config_of(shapes: Shapes) -> dict[str, Any] | None:
    """The parameters of the network that tensors of these shapes belong to, None for another.

    Args:
        shapes: Shape by key, without a prefix.
    """
    needed = ("temb.dense.0.weight", "conv_in.weight", "mid.attn_1.q.weight", "conv_out.weight")
    if not all(key in shapes for key in needed):
        return None
    channels = shapes["conv_in.weight"][0]
    blocks: dict[int, int] = {}
    for key in shapes:
        found = re.fullmatch(r"down\.(\d+)\.block\.(\d+)\.conv1\.weight", key)
        if found is not None:
            level = int(found[1])
            blocks[level] = max(blocks.get(level, 0), 1 + int(found[2]))
    levels = sorted(blocks)
    return {
        "family": "ddim",
        "in_channels": shapes["conv_in.weight"][1],
        "out_ch": shapes["conv_out.weight"][0],
        "ch": channels,
        "ch_mult": [
            shapes[f"down.{level}.block.0.conv1.weight"][0] // channels for level in levels
        ],
        "num_res_blocks": blocks[levels[0]],
        "resolution": NOMINAL_RESOLUTION,
        "attn_resolutions": [
            NOMINAL_RESOLUTION >> level
            for level in levels
            if f"down.{level}.attn.0.q.weight" in shapes
        ],
    }


def _down(config: DdimConfig) -> tuple[list[Level], list[int]]:
    """Build the half that goes down; also return the width of each skip connection."""
    width, levels, skips = config.channels, [], [config.channels]
    last = len(config.levels) - 1
    for index, after in enumerate(config.levels):
        befores = [width] + [after] * (config.count - 1)
        resample = Downsample(after) if index < last else None
        levels.append(
            Level(
                befores,
                after,
                config.embedding,
                attend=config.attention[index],
                resample=resample,
            )
        )
        skips += [after] * (config.count + (index < last))
        width = after
    return levels, skips


def _up(config: DdimConfig, skips: list[int]) -> list[Level]:
    """Build the half that goes up, full resolution first; each block takes one skip connection."""
    width, levels = config.levels[-1], []
    for index, after in reversed(list(enumerate(config.levels))):
        befores = [
            (width if block == 0 else after) + skips.pop() for block in range(config.count + 1)
        ]
        resample = Upsample(after) if index > 0 else None
        levels.append(
            Level(
                befores,
                after,
                config.embedding,
                attend=config.attention[index],
                resample=resample,
            )
        )
        width = after
    return levels[::-1]


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPS)


def _check_keys(params: Mapping[str, Any], where: str) -> None:
    if params.get("resamp_with_conv", True) is not True:
        raise ValueError(
            f"{where}.resamp_with_conv: got {params['resamp_with_conv']!r}, expected True. "
            "This variant of the network is not implemented."
        )
    for key in params:
        if key not in KNOWN and key not in IGNORED and key != "resamp_with_conv":
            raise ValueError(
                f"{where}: got unknown key {key!r}, expected some of {sorted(KNOWN)}. "
                "Remove it if it does not change the network."
            )
