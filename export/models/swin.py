"""DeepJsccSwin: the image codec with shifted-window attention that the DiffJSCC training code has.

Ke Yang, Sixian Wang, Jincheng Dai, Kailin Tan, Kai Niu, Ping Zhang, "WITT: A Wireless Image
Transmission Transformer for Semantic Communications", arXiv 2211.00937 (the codec).
Ze Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv
2103.14030 (its blocks).
Written from a description of the checkpoints; only the names of the parameters are theirs.

    image [B,3,H,W] in [0,1] --encoder--> planes [B,C,h,w] --radio--> planes --decoder--> image
                                ^ csi [B,1]                              ^ csi [B,1]

h = H / (2 * 2**(stages - 1)), 16 for four stages, and w likewise. The first half of the planes is
the real part of the symbols, the second half the imaginary part; symbols are sent row by row.
`csi` is the SNR in dB whatever the channel: codecs of this kind trained on Rayleigh fading are not
told the gain, and what they receive is not equalised.

H and W must be multiples of `multiple`. Inside, features come last: [B, h, w, features].
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend

PATCH: Final = 2
GATES: Final = 7
# Added to the scores of two positions that only the shift has brought into one window.
APART: Final = -100.0
CHANNELS: Final = ("AWGN", "Rayleigh")
REQUIRED: Final = frozenset(
    {
        "bottleneck_dim",
        "depths",
        "depths_d",
        "embed_dims",
        "embed_dims_d",
        "img_size_h",
        "img_size_w",
        "in_chans",
        "mlp_ratio",
        "num_heads",
        "num_heads_d",
        "window_size",
    }
)


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


class SnrGate(nn.Module):
    """A factor in (0, 1) per feature, from the SNR in dB; float32 in any network."""

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

    def forward(self, csi: Tensor) -> Tensor:
        gate: Tensor = self.fc(csi)
        return gate[:, None, None, :]


class PatchEmbed(nn.Module):
    """Cuts the image into patches of 2x2 pixels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, after, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Turns a picture into the feature planes that become symbols."""

    def __init__(self, stages: Sequence[StageConfig], features: int, image_features: int) -> None:
        super().__init__()
        last = stages[-1].width
        befores = [None, *(stage.width for stage in stages[:-1])]
        self.patch_embed = PatchEmbed(image_features, stages[0].width)
        self.layers = nn.ModuleList(map(EncoderStage, stages, befores))
        self.norm = nn.LayerNorm(last)
        self.bm_list, self.sm_list = _modulation(last)
        self.head_list = nn.Linear(last, features)

    def forward(self, image: Tensor, csi: Tensor) -> Tensor:
        """Return planes [B,C,h,w] of `image` [B,3,H,W] in [0,1], not yet normalised in power."""
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        x = _modulate(self.norm(x), csi, self.bm_list, self.sm_list)
        return self.head_list(x).permute(0, 3, 1, 2).float()  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Turns received planes back into a picture."""

    def __init__(self, stages: Sequence[StageConfig], features: int, image_features: int) -> None:
        super().__init__()
        first = stages[0].width
        afters = [*(stage.width for stage in stages[1:]), image_features]
        self.layers = nn.ModuleList(map(DecoderStage, stages, afters))
        self.head_list = nn.Linear(features, first)
        self.bm_list, self.sm_list = _modulation(first)

    def forward(self, planes: Tensor, csi: Tensor) -> Tensor:
        """Return the picture [B,3,H,W] in [0,1] that `planes` [B,C,h,w] describe."""
        x = self.head_list(planes.permute(0, 2, 3, 1))
        x = _modulate(x, csi, self.bm_list, self.sm_list)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = x.permute(0, 3, 1, 2).float()
        return logits.sigmoid()


class DeepJsccSwin(nn.Module):
    """The codec: `encoder` at the transmitter, `decoder` at the receiver.

    Checkpoints also hold `attn_mask` and `relative_position_index` of every block, which are
    rebuilt here because they belong to one image size, and `decoder.absolute_pos_embed`, which
    nothing reads.
    """

    def __init__(
        self,
        down: Sequence[StageConfig],
        up: Sequence[StageConfig],
        features: int,
        image_features: int = 3,
    ) -> None:
        super().__init__()
        self.down = tuple(down)
        self.up = tuple(up)
        self.encoder = Encoder(down, features, image_features)
        self.decoder = Decoder(up, features, image_features)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the codec of `params`, an official configuration.

        Raises:
            ValueError: A value asks for something this codec has not.
        """
        _check_params(params)
        return cls(
            _stages(params, ""),
            _stages(params, "_d"),
            int(params["bottleneck_dim"]),
            int(params["in_chans"]),
        )

    @property
    def multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        return math.lcm(
            *(
                PATCH * 2**level * stage.window
                for stages in (self.down, reversed(self.up))
                for level, stage in enumerate(stages)
            )
        )


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
    x = torch.unflatten(torch.unflatten(x, 1, (-1, window)), 3, (-1, window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _join_windows(windows: Tensor, window: int, like: Tensor) -> Tensor:
    """Turn [B, windows, positions, features] back into the shape of `like`."""
    x = torch.unflatten(windows, 1, (-1, like.shape[2] // window))
    x = torch.unflatten(x, 3, (window, window))
    return x.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def _modulation(width: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build what `_modulate` takes."""
    hidden = int(1.5 * width)
    gates = nn.ModuleList(SnrGate(hidden) for _ in range(GATES))
    mixers = [nn.Linear(width, hidden), *(nn.Linear(hidden, hidden) for _ in range(GATES - 1))]
    return gates, nn.ModuleList([*mixers, nn.Linear(hidden, width)])


def _modulate(x: Tensor, csi: Tensor, gates: nn.ModuleList, mixers: nn.ModuleList) -> Tensor:
    """Scale every feature of every position by what the features and the SNR say."""
    h = x
    for gate, mixer in zip(gates, mixers, strict=False):
        h = mixer(h)
        h = h * gate(csi).to(h.dtype)
    return x * mixers[-1](h).sigmoid()  # type: ignore[no-any-return]


def _blocks(stage: StageConfig) -> nn.ModuleList:
    """Build the blocks of a stage; every second one shifts its windows."""
    return nn.ModuleList(
        Block(stage, stage.shift if index % 2 else 0) for index in range(stage.depth)
    )


def _stages(params: Mapping[str, Any], suffix: str) -> list[StageConfig]:
    """Read the stages of the encoder (no suffix) or of the decoder (`_d`)."""
    columns = [list(params[f"{name}{suffix}"]) for name in ("embed_dims", "depths", "num_heads")]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            f"deepjscc_swin: got {[len(column) for column in columns]} entries in embed_dims, "
            f"depths and num_heads{suffix}, expected equal numbers. Correct the file."
        )
    side = min(int(params["img_size_h"]), int(params["img_size_w"])) // PATCH
    sides = [side // 2**level for level in range(len(columns[0]))]
    rows = zip(*columns, sides if not suffix else reversed(sides), strict=True)
    stages = []
    for width, depth, heads, side in rows:
        # The network was built for one image size: where a window did not fit into it, windows
        # are smaller and unshifted at every size.
        fits = side > int(params["window_size"])
        window = int(params["window_size"]) if fits else side
        shift = window // 2 if fits else 0
        ratio = float(params["mlp_ratio"])
        stages.append(StageConfig(width, depth, heads, window, shift, ratio))
    return stages


def _check_params(params: Mapping[str, Any]) -> None:
    if missing := sorted(REQUIRED - set(params)):
        raise ValueError(
            f"deepjscc_swin: got no {missing}, expected a value for each. "
            "Take the config.yaml that came with the checkpoint."
        )
    fixed = {"patch_size": PATCH, "qkv_bias": True, "qk_scale": None}
    for key, value in fixed.items():
        if params.get(key, value) != value:
            raise ValueError(
                f"deepjscc_swin.{key}: got {params[key]!r}, expected {value!r}. "
                "This variant of the codec is not implemented."
            )
    if params.get("channel", "AWGN") not in CHANNELS:
        raise ValueError(
            f"deepjscc_swin.channel: got {params['channel']!r}, expected one of {CHANNELS}. "
            "Correct the file."
        )
    if len(params["embed_dims"]) != len(params["embed_dims_d"]):
        raise ValueError(
            f"deepjscc_swin.embed_dims_d: got {len(params['embed_dims_d'])} stages, expected "
            f"{len(params['embed_dims'])} as in embed_dims. Correct the file."
        )
