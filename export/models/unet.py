"""Unet and Control: the noise predictor of latent diffusion and the side network that steers it.

Robin Rombach, Andreas Blattmann, Dominik Lorenz, Patrick Esser, Björn Ommer, "High-Resolution
Image Synthesis with Latent Diffusion Models", arXiv 2112.10752 (the network).
Lvmin Zhang, Anyi Rao, Maneesh Agrawala, "Adding Conditional Control to Text-to-Image Diffusion
Models", arXiv 2302.05543 (the side network).
Mingyu Yang, Bowen Liu, Boyang Wang, Hun-Seok Kim, "Diffusion-Aided Joint Source Channel Coding For
High Realism Wireless Image Transmission", arXiv 2404.17736 (steering by received picture and SNR).
Written from a description of the checkpoints; only the names of the parameters are theirs.

    x [B,4,h,w] ────────────┬──────────────────▶ Unet ──▶ eps [B,4,h,w]
    hint [B,4,h,w] ─▶ Control ──▶ residuals ───────▲
                        ▲   one per input block, one for the middle
    timestep, snr_db ───┘

h and w must be multiples of 2**(levels - 1), 8 for the published checkpoints.

The context (caption) enters only through keys and values that do not depend on x or on the
timestep. Both networks therefore take them ready made, `kv` [B or 1, tokens, S], from their own
`project_context`: for each transformer block in the order of execution (input blocks, middle,
output blocks) the keys and then the values of its cross-attention, each as wide as the block.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend, join_heads, split_heads
from jscc.export.models.unet_config import ControlConfig, UnetConfig

GROUPS: Final = 32
RESIDUAL_EPS: Final = 1e-5
# NOTE: the norm at the entrance of a transformer has another epsilon than all the others.
TRANSFORMER_EPS: Final = 1e-6
LONGEST_PERIOD: Final = 10_000.0

_Module = TypeVar("_Module", bound=nn.Module)


class Sinusoid(nn.Module):
    """Turns a scalar v into [cos(v f) | sin(v f)] with geometrically spaced frequencies f.

    Everything is float32: with arguments up to 1000 the rounding of f is visible in the output,
    and the checkpoints were trained with it.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        index = torch.arange(half, dtype=torch.float32, device="cpu")
        # A plain attribute: no key in the state dict, and never cast or built on "meta".
        self.frequencies = torch.exp(-math.log(LONGEST_PERIOD) * index / half)

    def forward(self, value: Tensor) -> Tensor:
        """Embed `value` [B]; returns [B, features] in float32."""
        angle = value.float()[:, None] * self.frequencies.to(value.device)[None]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class ScalarMlp(nn.Sequential):
    """Two linear layers on a sinusoid; stays in float32 in a half-precision network."""

    keep_float32: Final = True

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut; the embedding is added between them."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, before, eps=RESIDUAL_EPS),
            nn.SiLU(),
            nn.Conv2d(before, after, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, after))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, after, eps=RESIDUAL_EPS),
            nn.SiLU(),
            nn.Identity(),  # where upstream has dropout
            _zeroed(nn.Conv2d(after, after, 3, padding=1)),
        )
        self.skip_connection = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift: Tensor = self.emb_layers(embedding)
        h = self.in_layers(x) + shift[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class Attention(nn.Module):
    """Multi-head attention; `context` None builds self-attention."""

    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        source = width if context is None else context
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source, width, bias=False)
        self.to_v = nn.Linear(source, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Identity())

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [.., tokens, width] of `context` [.., tokens, source]."""
        return self.to_k(context), self.to_v(context)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (split_heads(t, self.heads) for t in (self.to_q(x), key, value))
        out: Tensor = self.to_out(join_heads(attend(query, key, value)))
        return out


class GatedGelu(nn.Module):
    """Projects to twice the width and gates the first half with the (exact) GELU of the second."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.proj = nn.Linear(before, 2 * after)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * functional.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """The gated MLP of a transformer block, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GatedGelu(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, MLP; each normalised first and added."""

    def __init__(self, width: int, heads: int, context: int, slot: int) -> None:
        super().__init__()
        self.slot = slot
        self.attn1 = Attention(width, heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, heads, context)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x: Tensor, kv: Sequence[Tensor]) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, *self.attn1.project(h))
        x = x + self.attn2(self.norm2(x), kv[2 * self.slot], kv[2 * self.slot + 1])
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return]


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a plane, around a shortcut."""

    def __init__(self, width: int, config: UnetConfig, slots: Iterator[int]) -> None:
        super().__init__()
        self.linear = config.linear_in_transformer
        heads = config.heads(width)
        self.norm = nn.GroupNorm(GROUPS, width, eps=TRANSFORMER_EPS)
        self.proj_in = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, config.context_dim, next(slots))
            for _ in range(config.transformer_depth)
        )
        self.proj_out = _zeroed(
            nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor, kv: Sequence[Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        h = self.proj_in(_tokens(h)) if self.linear else _tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, kv)
        if self.linear:
            return x + _planes(self.proj_out(h), height, width)
        return x + self.proj_out(_planes(h, height, width))  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halves height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Doubles height and width by repetition, then convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)  # type: ignore[no-any-return]


class Block(nn.ModuleList):
    """Layers in a row; each is given what it asks for of embedding and context."""

    def forward(self, x: Tensor, embedding: Tensor, kv: Sequence[Tensor]) -> Tensor:
        for layer in self:
            if isinstance(layer, ResidualBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, kv)
            else:
                x = layer(x)
        return x


class Unet(nn.Module):
    """Predicts the noise in a noisy latent. Keys `model.diffusion_model.*` of a checkpoint."""

    def __init__(self, config: UnetConfig) -> None:
        super().__init__()
        width, slots = config.model_channels, itertools.count()
        self.config = config
        self.sinusoid = Sinusoid(width)
        self.time_embed = ScalarMlp(width, config.embedding)
        self.input_blocks, widths = _input_blocks(config, config.in_channels, slots)
        self.middle_block = _middle_block(config, slots)
        self.output_blocks = _output_blocks(config, widths, slots)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, width, eps=RESIDUAL_EPS),
            nn.SiLU(),
            _zeroed(nn.Conv2d(width, config.out_channels, 3, padding=1)),
        )

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the network of `unet_config.params`, an official configuration.

        Raises:
            ValueError: A value is missing or asks for something this network has not.
        """
        return cls(UnetConfig.from_params(params, "unet_config"))

    @property
    def context_width(self) -> int:
        """S, the width of `kv`."""
        return sum(kv_widths(self))

    @property
    def residual_count(self) -> int:
        """How many residuals the network takes: one per input block and one for the middle."""
        return len(self.input_blocks) + 1

    def project_context(self, context: Tensor) -> Tensor:
        """Return `kv` [B or 1, tokens, S] of `context` [B or 1, tokens, context_dim]."""
        return _project_context(self, context)

    def forward(
        self, x: Tensor, timestep: Tensor, kv: Tensor, residuals: Sequence[Tensor] = ()
    ) -> Tensor:
        """Predict the noise in `x`.

        Args:
            x: Noisy latent, [B, in_channels, h, w].
            timestep: [B], float32, 0 (clean) to 999 (noise).
            kv: What `project_context` returned.
            residuals: What `Control` returned, times the wanted strength; empty for none.

        Returns:
            eps [B, out_channels, h, w], float32.
        """
        if residuals and len(residuals) != self.residual_count:
            raise ValueError(
                f"unet: got {len(residuals)} residuals, expected {self.residual_count} or none. "
                "Use the Control network of the same checkpoint."
            )
        dtype = _dtype(self)
        added = [residual.to(dtype) for residual in residuals]
        pieces = torch.split(kv.to(dtype), kv_widths(self), dim=-1)
        embedding: Tensor = self.time_embed(self.sinusoid(timestep))
        skips = _run(self.input_blocks, x.to(dtype), embedding, pieces)
        h: Tensor = self.middle_block(skips[-1], embedding, pieces)
        if added:
            h = h + added[-1]
            skips = [skip + more for skip, more in zip(skips, added[:-1], strict=True)]
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), embedding, pieces)
        return self.out(h).float()  # type: ignore[no-any-return]


class Control(nn.Module):
    """Reads the received picture and tells `Unet` what to add. Keys `control_model.*`."""

    def __init__(self, config: ControlConfig) -> None:
        super().__init__()
        trunk, slots = config.trunk, itertools.count()
        width = trunk.model_channels
        self.config = config
        self.sinusoid = Sinusoid(width)
        self.time_embed = ScalarMlp(width, trunk.embedding)
        self.snr_embed = ScalarMlp(width, trunk.embedding) if config.use_snr else None
        inputs = trunk.in_channels + config.hint_channels
        self.input_blocks, widths = _input_blocks(trunk, inputs, slots)
        self.zero_convs = nn.ModuleList(Block([_zeroed(nn.Conv2d(w, w, 1))]) for w in widths)
        self.middle_block = _middle_block(trunk, slots)
        self.middle_block_out = Block([_zeroed(nn.Conv2d(widths[-1], widths[-1], 1))])

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the network of `control_stage_config.params`, an official configuration.

        Without `use_snr` this is the control network of DiffBIR.

        Raises:
            ValueError: A value is missing or asks for something this network has not.
        """
        return cls(ControlConfig.from_params(params, "control_stage_config"))

    @property
    def context_width(self) -> int:
        """S, the width of `kv`."""
        return sum(kv_widths(self))

    @property
    def residual_count(self) -> int:
        """How many residuals `forward` returns."""
        return len(self.input_blocks) + 1

    def project_context(self, context: Tensor) -> Tensor:
        """Return `kv` [B or 1, tokens, S] of `context` [B or 1, tokens, context_dim]."""
        return _project_context(self, context)

    def embed(self, timestep: Tensor, snr_db: Tensor | None) -> Tensor:
        """Return the embedding [B, 4 * model_channels] of timestep and SNR, float32."""
        embedding: Tensor = self.time_embed(self.sinusoid(timestep))
        if self.snr_embed is None:
            return embedding
        if snr_db is None:
            raise ValueError("control: got no snr_db, expected [batch] in dB. Pass the SNR.")
        # NOTE: the lowest SNR is subtracted after scaling; that is how the checkpoints were made.
        value = self.config.snr_scale * snr_db.float() - self.config.min_snr
        return embedding + self.snr_embed(self.sinusoid(value))  # type: ignore[no-any-return]

    def forward(
        self, x: Tensor, hint: Tensor, timestep: Tensor, snr_db: Tensor | None, kv: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute what `Unet` shall add to its skip connections and to its middle.

        Args:
            x: Noisy latent, [B, in_channels, h, w].
            hint: Latent of the received picture, scaled like `x`, [B, hint_channels, h, w].
            timestep: [B], float32, 0 (clean) to 999 (noise).
            snr_db: SNR of the radio channel, [B], dB, float32; unused without `use_snr`.
            kv: What `project_context` returned.

        Returns:
            One float32 tensor per input block, in order, and last the middle's.
        """
        dtype = _dtype(self)
        pieces = torch.split(kv.to(dtype), kv_widths(self), dim=-1)
        embedding = self.embed(timestep, snr_db)
        h = torch.cat([x, hint], dim=1).to(dtype)
        skips = _run(self.input_blocks, h, embedding, pieces)
        outs = [conv(h, embedding, pieces) for conv, h in zip(self.zero_convs, skips, strict=True)]
        h = self.middle_block(skips[-1], embedding, pieces)
        outs.append(self.middle_block_out(h, embedding, pieces))
        return tuple(out.float() for out in outs)


def _zeroed(module: _Module) -> _Module:
    """Zero the parameters: at the start of training the branch that ends here adds nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def _tokens(planes: Tensor) -> Tensor:
    """Turn planes [B, C, h, w] into tokens [B, h*w, C], row by row."""
    return planes.flatten(2).transpose(1, 2)


def _planes(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens [B, h*w, C] back into planes [B, C, h, w]."""
    return torch.unflatten(tokens.transpose(1, 2), 2, (height, width))


def _dtype(network: Unet | Control) -> torch.dtype:
    """Return the dtype that the network computes in: that of its first convolution."""
    return next(network.input_blocks.parameters()).dtype


def _input_blocks(
    config: UnetConfig, inputs: int, slots: Iterator[int]
) -> tuple[nn.ModuleList, list[int]]:
    """Build the half that goes down; also returns the width of each block's output."""
    width = config.model_channels
    blocks, widths = [Block([nn.Conv2d(inputs, width, 3, padding=1)])], [width]
    for level, (after, count) in enumerate(config.levels):
        for _ in range(count):
            layers: list[nn.Module] = [ResidualBlock(width, after, config.embedding)]
            width = after
            if config.attends(level):
                layers.append(SpatialTransformer(width, config, slots))
            blocks.append(Block(layers))
            widths.append(width)
        if level + 1 < len(config.levels):
            blocks.append(Block([Downsample(width)]))
            widths.append(width)
    return nn.ModuleList(blocks), widths


def _middle_block(config: UnetConfig, slots: Iterator[int]) -> Block:
    """Build the blocks at the lowest resolution; they always attend."""
    width = config.levels[-1][0]
    return Block(
        [
            ResidualBlock(width, width, config.embedding),
            SpatialTransformer(width, config, slots),
            ResidualBlock(width, width, config.embedding),
        ]
    )


def _output_blocks(config: UnetConfig, widths: list[int], slots: Iterator[int]) -> nn.ModuleList:
    """Build the half that goes up; every block takes one skip connection, last one first."""
    skips, width, blocks = list(widths), widths[-1], []
    for level, (after, count) in reversed(list(enumerate(config.levels))):
        for index in range(count + 1):
            layers: list[nn.Module] = [ResidualBlock(width + skips.pop(), after, config.embedding)]
            width = after
            if config.attends(level):
                layers.append(SpatialTransformer(width, config, slots))
            if level > 0 and index == count:
                layers.append(Upsample(width))
            blocks.append(Block(layers))
    return nn.ModuleList(blocks)


def _run(blocks: nn.ModuleList, x: Tensor, embedding: Tensor, kv: Sequence[Tensor]) -> list[Tensor]:
    """Run the input blocks and return the output of each."""
    outs = []
    for block in blocks:
        x = block(x, embedding, kv)
        outs.append(x)
    return outs


def _transformers(network: Unet | Control) -> list[TransformerBlock]:
    """List the transformer blocks in the order of their keys and values in `kv`."""
    found = [module for module in network.modules() if isinstance(module, TransformerBlock)]
    return sorted(found, key=lambda block: block.slot)


def kv_widths(network: Unet | Control) -> list[int]:
    """Widths of the pieces of `kv`: of a block's keys, of its values, and so on."""
    widths = [block.attn2.to_k.out_features for block in _transformers(network)]
    return [width for width in widths for _ in range(2)]


def _project_context(network: Unet | Control, context: Tensor) -> Tensor:
    context = context.to(_dtype(network))
    pieces = [block.attn2.project(context) for block in _transformers(network)]
    return torch.cat([piece for pair in pieces for piece in pair], dim=-1).float()
