"""Autoencoder with a Gaussian latent: the first stage of latent diffusion checkpoints.

Robin Rombach, Andreas Blattmann, Dominik Lorenz, Patrick Esser, Björn Ommer, "High-Resolution
Image Synthesis with Latent Diffusion Models", arXiv 2112.10752. Written from a description of the
checkpoints; only the names of the parameters are theirs.

    image [B,3,H,W] in [-1,1] --encoder, quant_conv--> moments [B,2z,H/8,W/8] = mean, log variance
    latent [B,z,H/8,W/8] --post_quant_conv, decoder--> image [B,3,H,W]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.attention import attend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUPS: Final = 32
# NOTE: every norm here has 1e-6, unlike the diffusion network's 1e-5.
EPS: Final = 1e-6


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, width, eps=EPS)


class _Residual(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut, which is 1x1 where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = _norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention with one head over all positions of the plane."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        # One head, on an axis of its own: the exporter knows fused attention with rank 4 only.
        mixed = attend(q[:, None], k[:, None], v[:, None])[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)  # type: ignore[no-any-return]


class _Downsample(nn.Module):
    """Halves height and width, with zeros at the bottom and the right only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class _Upsample(nn.Module):
    """Doubles height and width by repetition, then convolves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """The blocks of one resolution and, where another follows, the change of resolution."""

    def __init__(
        self, before: int, after: int, *, count: int, attend: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            _Residual(before if i == 0 else after, after) for i in range(count)
        )
        self.attn = nn.ModuleList(_Attention(after) for _ in range(count if attend else 0))
        # Upstream gave the same thing two names, and the checkpoints keep them.
        self.downsample = resample if isinstance(resample, _Downsample) else None
        self.upsample = resample if isinstance(resample, _Upsample) else None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class _Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = _Residual(width, width)
        self.attn_1 = _Attention(width)
        self.block_2 = _Residual(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Turns a picture [B,3,H,W] into features [B,2z,H/f,W/f], f = 2**(levels - 1)."""

    def __init__(
        self,
        *,
        in_channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        out_features: int,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        levels, before = [], ch
        for i, mult in enumerate(ch_mult):
            # Only blocks change the width.
            after = ch * mult if num_res_blocks else before
            levels.append(
                _Level(
                    before,
                    after,
                    count=num_res_blocks,
                    attend=resolution // 2**i in attn_resolutions,
                    resample=_Downsample(after) if i + 1 < len(ch_mult) else None,
                )
            )
            before = after
        self.down = nn.ModuleList(levels)
        self.mid = _Middle(before)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, out_features, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Turns a latent [B,z,h,w] into a picture [B,3,f*h,f*w]."""

    def __init__(
        self,
        *,
        out_ch: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
    ) -> None:
        super().__init__()
        before = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, before, 3, padding=1)
        self.mid = _Middle(before)
        levels: list[_Level] = []
        for i in reversed(range(len(ch_mult))):
            after = ch * ch_mult[i]
            levels.append(
                _Level(
                    before,
                    after,
                    count=num_res_blocks + 1,
                    attend=resolution // 2**i in attn_resolutions,
                    resample=_Upsample(after) if i > 0 else None,
                )
            )
            before = after
        # Index 0 is the full resolution, so the levels run from the last to the first.
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, out_ch, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for i in reversed(range(len(self.up))):
            x = self.up[i](x)
        return self.conv_out(functional.silu(self.norm_out(x)))  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Encoder, decoder and the 1x1 convolutions next to the latent."""

    def __init__(
        self, encoder: Encoder, decoder: Decoder, *, z_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Autoencoder:
        """Builds the autoencoder from `first_stage_config.params` of an official configuration.

        Raises:
            ValueError: The latent has no variance (`double_z` is false).
        """
        config: Mapping[str, Any] = params["ddconfig"]
        if not config.get("double_z", True):
            raise ValueError(
                "autoencoder: got double_z False, expected True (mean and log variance)."
            )
        z_channels = int(config["z_channels"])
        ch, num_res_blocks, resolution = (
            int(config[k]) for k in ("ch", "num_res_blocks", "resolution")
        )
        encoder = Encoder(
            in_channels=int(config["in_channels"]),
            ch=ch,
            ch_mult=config["ch_mult"],
            num_res_blocks=num_res_blocks,
            attn_resolutions=config["attn_resolutions"],
            resolution=resolution,
            out_features=2 * z_channels,
        )
        decoder = Decoder(
            out_ch=int(config["out_ch"]),
            ch=ch,
            ch_mult=config["ch_mult"],
            num_res_blocks=num_res_blocks,
            attn_resolutions=config["attn_resolutions"],
            resolution=resolution,
            z_channels=z_channels,
        )
        return cls(encoder, decoder, z_channels=z_channels, embed_dim=int(params["embed_dim"]))

    def moments(self, image: Tensor) -> Tensor:
        """Returns mean and log variance [B,2z,h,w] of the latent of `image` [B,3,H,W] in [-1,1]."""
        return self.quant_conv(self.encoder(image))  # type: ignore[no-any-return]

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the picture [B,3,H,W], not clamped to [-1,1], of unscaled `latent` [B,z,h,w]."""
        return self.decoder(self.post_quant_conv(latent))  # type: ignore[no-any-return]


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the log variance, the latter clamped to [-30, 20] as upstream does."""
    mean, log_variance = torch.chunk(moments, 2, dim=1)
    return mean, torch.clamp(log_variance, -30.0, 20.0)
