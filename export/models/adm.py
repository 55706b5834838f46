"""Adm: the pixel-space noise predictor of guided-diffusion, P2, ILVR and DifFace checkpoints.

Prafulla Dhariwal, Alex Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233,
section 3 and appendix. Written from a description of the checkpoints; only the names of the
parameters are theirs.

    x [B,3,h,w] ─▶ input_blocks ─▶ middle_block ─▶ output_blocks ─▶ out ─▶ [B,3 or 6,h,w]
    timestep ─▶ time_embed ──┴────────────┴──────────────┘

The first three planes of the output are the noise; three more, where a checkpoint has them, say
how its variance lies between two bounds. h and w must be multiples of 2**(levels - 1).

NOTE: every normalisation has the greatest common divisor of 32 and its width as its groups. That
is 32 in all published checkpoints; the smaller widths of this project's own network need less.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.adm_config import AdmConfig
from jscc.export.models.attention import attend
from jscc.export.models.unet import Downsample, ScalarMlp, Sinusoid, Upsample

GROUPS: Final = 32
EPS: Final = 1e-5

_Module = TypeVar("_Module", bound=nn.Module)


class Halve(nn.Module):
    """Halves height and width by averaging; has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 2)


class Repeat(nn.Module):
    """Doubles height and width by repetition; has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut, the embedding between them.

    Args:
        before: Width that comes in.
        after: Width that goes out.
        config: Of the network: how the embedding enters.
        resample: What happens to both branches before their first convolution.
    """

    def __init__(
        self, before: int, after: int, config: AdmConfig, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.resample = nn.Identity() if resample is None else resample
        self.in_layers = nn.Sequential(
            _norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        shifts = 2 * after if self.scale_shift else after
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embedding, shifts))
        self.out_layers = nn.Sequential(
            _norm(after),
            nn.SiLU(),
            nn.Identity(),  # where upstream has dropout
            _zeroed(nn.Conv2d(after, after, 3, padding=1)),
        )
        self.skip_connection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self.resample(activation(norm(x))))
        shift: Tensor = self.emb_layers(embedding)[:, :, None, None]
        norm, activation, dropout, convolution = self.out_layers
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        h = convolution(dropout(activation(h)))
        out: Tensor = self.skip_connection(self.resample(x)) + h
        return out


class Attention(nn.Module):
    """Self-attention over the positions of a plane, around a shortcut.

    Args:
        width: Width that comes in and goes out.
        heads: Number of attention heads.
        interleaved: Whether each head's query, key and value lie together in the output of `qkv`
            (the "legacy" order) or all queries come first, then all keys, then all values.
    """

    def __init__(self, width: int, heads: int, *, interleaved: bool) -> None:
        super().__init__()
        self.heads = heads
        self.interleaved = interleaved
        self.norm = _norm(width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = _zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        split = (self.heads, 3, -1) if self.interleaved else (3, self.heads, -1)
        pieces = self.qkv(self.norm(tokens)).unflatten(1, split).transpose(-1, -2)
        query, key, value = pieces.unbind(2 if self.interleaved else 1)
        mixed = attend(query, key, value).transpose(-1, -2).flatten(1, 2)
        out: Tensor = (tokens + self.proj_out(mixed)).view_as(x)
        return out


class Block(nn.ModuleList):
    """Layers in a row; those that ask for the embedding are given it."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class Adm(nn.Module):
    """Predicts the noise in a noisy image. Keys of a published checkpoint, without a prefix."""

    def __init__(self, config: AdmConfig) -> None:
        super().__init__()
        width = config.model_channels
        self.config = config
        self.sinusoid = Sinusoid(width)
        self.time_embed = ScalarMlp(width, config.embedding)
        self.input_blocks, widths = _input_blocks(config)
        self.middle_block = Block(
            [
                ResidualBlock(widths[-1], widths[-1], config),
                _attention(widths[-1], config),
                ResidualBlock(widths[-1], widths[-1], config),
            ]
        )
        self.output_blocks = _output_blocks(config, widths)
        self.out = nn.Sequential(
            _norm(widths[0]),
            nn.SiLU(),
            _zeroed(nn.Conv2d(widths[0], config.out_channels, 3, padding=1)),
        )

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the network of `params`, in the words of the official constructor.

        Raises:
            ValueError: A value is missing or asks for something this network has not.
        """
        return cls(AdmConfig.from_params(params, "adm"))

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
        embedding: Tensor = self.time_embed(self.sinusoid(timestep))
        skips: list[Tensor] = []
        h = x
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.out(h)
        return out


def _input_blocks(config: AdmConfig) -> tuple[nn.ModuleList, list[int]]:
    """Build the half that goes down; also return the width of each block's output."""
    width = config.levels[0][0]
    blocks = [Block([nn.Conv2d(config.in_channels, width, 3, padding=1)])]
    widths = [width]
    for level, (after, count) in enumerate(config.levels):
        for _ in range(count):
            blocks.append(Block(_layers(width, after, level, config)))
            width = after
            widths.append(width)
        if level + 1 < len(config.levels):
            if config.residual_resampling:
                blocks.append(Block([ResidualBlock(width, width, config, Halve())]))
            else:
                blocks.append(Block([Downsample(width)]))
            widths.append(width)
    return nn.ModuleList(blocks), widths


def _output_blocks(config: AdmConfig, widths: list[int]) -> nn.ModuleList:
    """Build the half that goes up; every block takes one skip connection, last one first."""
    skips, width, blocks = list(widths), widths[-1], []
    for level, (after, count) in reversed(list(enumerate(config.levels))):
        for index in range(count + 1):
            layers = _layers(width + skips.pop(), after, level, config)
            width = after
            if level > 0 and index == count:
                if config.residual_resampling:
                    layers.append(ResidualBlock(width, width, config, Repeat()))
                else:
                    layers.append(Upsample(width))
            blocks.append(Block(layers))
    return nn.ModuleList(blocks)


def _layers(before: int, after: int, level: int, config: AdmConfig) -> list[nn.Module]:
    """One residual block of `level` and, where the level has it, its attention."""
    layers: list[nn.Module] = [ResidualBlock(before, after, config)]
    if config.attention[level]:
        layers.append(_attention(after, config))
    return layers


def _attention(width: int, config: AdmConfig) -> Attention:
    return Attention(width, config.heads(width), interleaved=config.interleaved)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(GROUPS, width), width, eps=EPS)


def _zeroed(module: _Module) -> _Module:
    """Let a module start as zero, so that what it is added to passes unchanged at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
