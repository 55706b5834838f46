"""GenerativeJSCC: an encoder trained end to end with a StyleGAN2-based decoder; our reference.

Method: Ecenaz Erdemir, Tze-Yang Tung, Pier Luigi Dragotti, Deniz Gündüz, "Generative Joint
Source-Channel Coding for Semantic Image Transmission", arXiv 2211.13772. How that paper maps
channel symbols to the generator's latents and noises is not public; the mapping below is this
project's own, and its numbers are not the paper's.

    image [B,3,H,W] ─▶ Encoder ─▶ planes [B,C,H/16,W/16] ─ radio ─▶ planes ─┬─▶ conv ─▶ features
       in [0,1]          ▲ snr_db [B]                                        │            │
                                             snr_db [B] ─▶ mapping ◀─ pooled ┴─ ... ◀─────┤
                                                             │ style                      ▼
                                                             └──────▶ modulated convolutions ×16
                                                                                          ▼
                                                                                        image

The received symbols take the place of StyleGAN2's constant input (what is where), and their mean
features with the SNR make the style of every layer (what kind of picture, how much to trust).
Nothing depends on the size: any multiple of 16 works. There are no noise maps: the same symbols
give the same image.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.stylegan2 import Linear, StyledConv, ToRgb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLOPE: Final = 0.2
SNR_UNIT: Final = 10.0  # dB; brings the SNR to the size of the other features
MIDDLE: Final = 0.5  # grey: what a decoder that has learnt nothing shows
HALVINGS: Final = 4
STRIDE: Final = 16


class _Gate(nn.Module):
    """Scales every plane by what its mean and the SNR say (arXiv 2012.00533)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width + 1, width // 2)
        self.outer = nn.Linear(width // 2, width)

    def forward(self, x: Tensor, snr: Tensor) -> Tensor:
        summary = torch.cat((x.mean(dim=(2, 3)), snr), dim=1)
        inner = functional.leaky_relu(self.inner(summary), SLOPE)
        return x * (2 * torch.sigmoid(self.outer(inner)))[:, :, None, None]


class _Residual(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.conv1(functional.leaky_relu(x, SLOPE)), SLOPE)
        return x + self.conv2(inner)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Image to planes at a sixteenth of its size.

    Args:
        widths: Planes behind each of the four halvings.
        planes: Real values per position of the code.
    """

    def __init__(self, widths: Sequence[int], planes: int) -> None:
        super().__init__()
        edges = [5, 3, 3, 3]
        self.halve = nn.ModuleList(
            nn.Conv2d(before, after, edge, stride=2, padding=edge // 2)
            for (before, after), edge in zip(itertools.pairwise((3, *widths)), edges, strict=True)
        )
        self.residual = nn.ModuleList(_Residual(width) for width in widths[1:])
        self.gate = nn.ModuleList(_Gate(width) for width in widths)
        self.project = nn.Conv2d(widths[-1], planes, 3, padding=1)

    def forward(self, image: Tensor, snr_db: Tensor) -> Tensor:
        """Planes [B,C,H/16,W/16], of any power, of an image [B,3,H,W] in [0,1].

        `snr_db` is [B] or [B,1].
        """
        snr = snr_db.reshape(-1, 1) / SNR_UNIT
        x = image - MIDDLE
        for level, halve in enumerate(self.halve):
            x = functional.leaky_relu(halve(x), SLOPE)
            if level:
                x = self.residual[level - 1](x)
            x = self.gate[level](x, snr)
        return self.project(functional.leaky_relu(x, SLOPE))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Received planes to the image, by StyleGAN2's modulated convolutions.

    Args:
        planes: Real values per position of the code.
        channels: Planes of each block, from a sixteenth of the size up to full size.
        style_dim: Width of the style.
    """

    def __init__(self, planes: int, channels: Sequence[int], style_dim: int) -> None:
        super().__init__()
        first = channels[0]
        self.spread = nn.Conv2d(planes, first, 3, padding=1)
        self.mapping = nn.Sequential(
            Linear(first + 1, style_dim, activated=True),
            Linear(style_dim, style_dim, activated=True),
            Linear(style_dim, style_dim, activated=True),
        )
        self.first = nn.ModuleList(
            StyledConv(first, first, style_dim, noisy=False) for _ in range(2)
        )
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList([ToRgb(first, style_dim, enlarged=False)])
        for below, width in itertools.pairwise(channels):
            self.convs.append(StyledConv(below, width, style_dim, enlarged=True, noisy=False))
            self.convs.append(StyledConv(width, width, style_dim, noisy=False))
            self.to_rgbs.append(ToRgb(width, style_dim))

    def forward(self, received: Tensor, snr_db: Tensor) -> Tensor:
        """The image [B,3,H,W], not clipped, of planes [B,C,H/16,W/16]; snr_db [B] or [B,1].

        The planes have the power of symbols of unit mean power: one half.
        """
        x = functional.leaky_relu(self.spread(received), SLOPE)
        snr = snr_db.reshape(-1, 1) / SNR_UNIT
        pooled = torch.cat((x.mean(dim=(2, 3)), snr), dim=1)
        style = self.mapping(pooled)
        for conv in self.first:
            x = conv(x, style)
        colours = self.to_rgbs[0](x, style)
        for block in range(len(self.convs) // 2):
            x = self.convs[2 * block](x, style)
            x = self.convs[2 * block + 1](x, style)
            colours = self.to_rgbs[block + 1](x, style, colours)
        return colours / 2 + MIDDLE  # type: ignore[no-any-return]


class Generative(nn.Module):
    """The codec: `encoder` at the transmitter, `decoder` at the receiver."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Generative:
        """The codec of a configuration as `config_of` makes it.

        Raises:
            KeyError: A value is missing.
            ValueError: There are not four encoder widths and five decoder widths.
        """
        widths = [int(width) for width in params["encoder_widths"]]
        channels = [int(width) for width in params["decoder_widths"]]
        if (len(widths), len(channels)) != (HALVINGS, HALVINGS + 1):
            raise ValueError(
                f"generative: got {len(widths)} encoder and {len(channels)} decoder widths, "
                f"expected {HALVINGS} and {HALVINGS + 1}. Give one per size."
            )
        planes = int(params["planes"])
        return cls(Encoder(widths, planes), Decoder(planes, channels, int(params["style_dim"])))


# 16 reals per 16×16 block: cbr 1/96.
REFERENCE: Final[dict[str, Any]] = {
    "family": "generative",
    "planes": 16,
    "encoder_widths": [48, 96, 96, 96],
    "decoder_widths": [112, 96, 96, 64, 32],
    "style_dim": 96,
}


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Configuration of the codec whose weights have these names and shapes, or None."""
    halve = [f"encoder.halve.{level}.weight" for level in range(HALVINGS)]
    convs = [f"decoder.convs.{2 * block}.conv.weight" for block in range(HALVINGS)]
    if any(key not in shapes for key in (*halve, *convs, "decoder.mapping.0.weight")):
        return None
    first = shapes["decoder.spread.weight"]
    return {
        "family": "generative",
        "planes": first[1],
        "encoder_widths": [shapes[key][0] for key in halve],
        "decoder_widths": [first[0], *(shapes[key][1] for key in convs)],
        "style_dim": shapes["decoder.mapping.0.weight"][0],
    }
