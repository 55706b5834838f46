"""Swin blocks: shifted-window attention over planes of any size, and the modulation by SNR or rate.

Ze Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv
2103.14030 (the blocks).
Ke Yang, Sixian Wang, Jincheng Dai, Kailin Tan, Kai Niu, Ping Zhang, "SwinJSCC: Taming Swin
Transformer for Deep Joint Source-Channel Coding", arXiv 2308.09361 (the modulation).
Written from a description of the checkpoints; only the names of the parameters are theirs.

Features come last: [B, h, w, features].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend

PATCH: Final = 2
GATES: Final = 7
# Added to the scores of two positions that only the shift has brought into one window.
APART: Final = -100.0


@dataclass(frozen=True)
class StageConfig:
    """Shape of the blocks at one resolution.

    Attributes:
        width: Features.
        depth: Blocks.
        heads: Attention heads.
        window: Side of a window.
        shift: How far every second block shifts its windows; 0 for not at all.
        mlp_ratio: Width inside the MLP over `width`.
    """

    width: int
    depth: int
    heads: int
    window: int
    shift: int
    mlp_ratio: float


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias for every relative position."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.heads = stage.heads
        self.positions = stage.window**2
        table = torch.zeros((2 * stage.window - 1) ** 2, stage.heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.qkv = nn.Linear(stage.width, 3 * stage.width)
        self.proj = nn.Linear(stage.width, stage.width)
        # A plain attribute: no key in the state dict, and never cast or built on "meta".
        self.index = _relative_positions(stage.window)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within `windows` [B, count, positions, features].

        `mask` [count, positions, positions] is added to the scores.
        """
        qkv = torch.unflatten(self.qkv(windows), -1, (3, self.heads, -1))
        query, key, value = (part.transpose(2, 3) for part in qkv.unbind(dim=3))
        table = self.relative_position_bias_table[self.index.to(windows.device)]
        bias = table.reshape(self.positions, self.positions, self.heads).permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        mixed = attend(query, key, value, bias)
        out: Tensor = self.proj(mixed.transpose(2, 3).flatten(3))
        return out


class Mlp(nn.Module):
    """Two linear layers around an (exact) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Window attention and MLP, each normalised first and added."""

    def __init__(self, stage: StageConfig, shift: int) -> None:
        super().__init__()
        self.window = stage.window
        self.shift = shift
        self.norm1 = nn.LayerNorm(stage.width)
        self.attn = WindowAttention(stage)
        self.norm2 = nn.LayerNorm(stage.width)
        self.mlp = Mlp(stage.width, int(stage.width * stage.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        h, mask = self.norm1(x), None
        if self.shift:
            h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
            mask = shift_mask(x.shape[1], x.shape[2], self.window, self.shift).to(x)
        h = _join_windows(self.attn(_split_windows(h, self.window), mask), self.window, x)
        if self.shift:
            h = torch.roll(h, (self.shift, self.shift), (1, 2))
        x = x + h
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Halves height and width: four neighbours become one position."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * before, after, bias=False)
        self.norm = nn.LayerNorm(4 * before)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))  # type: ignore[no-any-return]


class PatchSplitting(nn.Module):
    """Doubles height and width: one position becomes four neighbours."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.increment = nn.Linear(before, 4 * after, bias=False)
        self.norm = nn.LayerNorm(before)

    def forward(self, x: Tensor) -> Tensor:
        planes: Tensor = self.increment(self.norm(x)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(planes, 2).permute(0, 2, 3, 1)


class EncoderStage(nn.Module):
    """Merging (except at the first stage), then blocks."""

    def __init__(self, stage: StageConfig, before: int | None) -> None:
        super().__init__()
        self.downsample = None if before is None else PatchMerging(before, stage.width)
        self.blocks = _blocks(stage)

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class DecoderStage(nn.Module):
    """Blocks, then splitting."""

    def __init__(self, stage: StageConfig, after: int) -> None:
        super().__init__()
        self.blocks = _blocks(stage)
        self.upsample = PatchSplitting(stage.width, after)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.upsample(x)  # type: ignore[no-any-return]


class Gate(nn.Module):
    """A factor in (0, 1) per feature, from one number; float32 in any network."""

    keep_float32: Final = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(1, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.Sigmoid(),
        )

    def forward(self, value: Tensor) -> Tensor:
        gate: Tensor = self.fc(value)
        return gate[:, None, None, :]


class PatchEmbed(nn.Module):
    """Cuts the image into patches of 2x2 pixels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def multiple_of(down: Sequence[StageConfig], up: Sequence[StageConfig]) -> int:
    """What height and width of an image must be multiples of, so that windows fit everywhere.

    Args:
        down: Stages of the encoder, in order.
        up: Stages of the decoder, in order.
    """
    sides = (
        PATCH * 2**level * stage.window
        for stages in (down, tuple(reversed(up)))
        for level, stage in enumerate(stages)
    )
    return math.lcm(*sides)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Build the mask that keeps apart what only the shift has brought together.

    Args:
        height: Height of the plane in positions.
        width: Width of the plane in positions.
        window: Side of a window.
        shift: How far the plane has been rolled up and left.

    Returns:
        [windows, positions, positions], 0 or -100.
    """
    rows, columns = (_regions(length, window, shift) for length in (height, width))
    region = (3 * rows[:, None] + columns[None, :])[None, :, :, None]
    ids = _split_windows(region, window)[0, :, :, 0]
    return (ids[:, None, :] != ids[:, :, None]) * APART


def _regions(length: int, window: int, shift: int) -> Tensor:
    """Number the stretches of one axis: before the last window, unrolled, rolled around."""
    index = torch.arange(length)
    return (index >= length - window).long() + (index >= length - shift).long()


def _relative_positions(window: int) -> Tensor:
    """For every pair of positions of a window the row of the bias table, [window**4]."""
    index = torch.arange(window, device="cpu")
    rows, columns = (axis.flatten() for axis in torch.meshgrid(index, index, indexing="ij"))
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return (down * (2 * window - 1) + right).flatten()


def _split_windows(x: Tensor, window: int) -> Tensor:
    """Turn [B, h, w, features] into [B, windows, positions, features], both row by row."""
    batch, height, width, features = x.shape
    rows, columns = height // window, width // window
    x = x.reshape(batch, rows, window, columns, window * features).transpose(2, 3)
    return x.reshape(batch, rows * columns, window**2, features)


def _join_windows(windows: Tensor, window: int, like: Tensor) -> Tensor:
    """Turn [B, windows, positions, features] back into the shape of `like`."""
    batch, height, width, features = like.shape
    rows, columns = height // window, width // window
    x = windows.reshape(batch, rows, columns, window, window * features).transpose(2, 3)
    return x.reshape(batch, height, width, features)


def modulation(width: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build what `factors` takes for features of `width`: gates and mixers."""
    hidden = int(1.5 * width)
    gates = nn.ModuleList(Gate(hidden) for _ in range(GATES))
    mixers = [nn.Linear(width, hidden), *(nn.Linear(hidden, hidden) for _ in range(GATES - 1))]
    return gates, nn.ModuleList([*mixers, nn.Linear(hidden, width)])


def factors(x: Tensor, value: Tensor, gates: nn.ModuleList, mixers: nn.ModuleList) -> Tensor:
    """What every feature of every position is to be scaled by, in (0, 1).

    Args:
        x: Features [B, h, w, width].
        value: [B, 1], the SNR in dB or the rate.
        gates: Of `modulation`.
        mixers: Of `modulation`.
    """
    h = x
    for gate, mixer in zip(gates, mixers, strict=False):
        h = mixer(h)
        h = h * gate(value).to(h.dtype)
    return mixers[-1](h).sigmoid()  # type: ignore[no-any-return]


def _blocks(stage: StageConfig) -> nn.ModuleList:
    """Build the blocks of a stage; every second one shifts its windows."""
    return nn.ModuleList(
        Block(stage, stage.shift if index % 2 else 0) for index in range(stage.depth)
    )
