"""AF network: the DeepJSCC codec of DeepWiVe and DeepJSCC-Q, with attention-feature modules.

Tze-Yang Tung, Deniz Gündüz, "DeepWiVe: Deep-Learning-Aided Wireless Video Transmission",
arXiv 2111.13034; attention-feature modules after Jialong Xu et al., "Wireless Image Transmission
Using Deep Source Channel Coding With Attention Modules", arXiv 2012.00533. The blocks have the
names and shapes of CompressAI's (Jean Bégaint et al., arXiv 2011.03029).

    image [B,3,H,W] ─▶ Encoder ─▶ code [B,M,H/16,W/16] ─ radio ─▶ code ─▶ Decoder ─▶ image
       in [0,1]          ▲ snr_db [B,1]                             ▲ snr_db [B,1]

Consecutive values of the flattened code are real and imaginary part of one symbol. Every network
of this kind is a chain of the same five blocks, so that the published ones are rows of a table:

    regular   DeepWiVe, and the larger DeepJSCC-Q; 1/16 of the height and width
    reduced   the same author's network for small images; 1/4
    wz        what `ipc-lab/deepjscc-wz` and kaira store as ``g_a.{i}``, ``g_s.{i}``: regular, but
              the decoder's first residual block has M -> N planes already
    q         kaira's DeepJSCC-Q: wz without attention-feature modules
    q2        kaira's DeepJSCC-Q of the conference paper, with them; 1/4
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.gdn import Gdn
from jscc.export.models.params import integer

SLOPE: Final = 0.01
COLOURS: Final = 3

# Blocks as name:kind:widths; N planes inside the networks, M per position of the code.
_REGULAR_ENCODER = """
    rbws1:strided:3-N af1:feature:N rb1:residual:N-N
    rbws2:strided:N-N af2:feature:N a1:attention:N rb2:residual:N-N
    rbws3:strided:N-N af3:feature:N rb3:residual:N-N
    rbws4:strided:N-M af4:feature:M a2:attention:M
"""
_REGULAR_DECODER = """
    a1:attention:M rb1:residual:M-M
    rbu1:upsampled:M-N af1:feature:N rb2:residual:N-N
    rbu2:upsampled:N-N af2:feature:N a2:attention:N rb3:residual:N-N
    rbu3:upsampled:N-N af3:feature:N rb4:residual:N-N
    rbu4:upsampled:N-3 af4:feature:3
"""
_REDUCED_ENCODER = """
    rbws1:strided:3-N af1:feature:N rb1:residual:N-N
    rbws2:residual:N-N rb2:residual:N-N af2:feature:N a1:attention:N
    rbws3:strided:N-N af3:feature:N rb3:residual:N-N
    rb4:residual:N-N rbws4:residual:N-M af4:feature:M a2:attention:M
"""
_REDUCED_DECODER = """
    a1:attention:M af1:feature:M rb1:residual:M-N rbu1:residual:N-N
    rb2:residual:N-N af2:feature:N rbu2:upsampled:N-N af3:feature:N a2:attention:N
    rb3:residual:N-N rbu3:residual:N-N rb4:residual:N-N af4:feature:N rbu4:upsampled:N-3
"""
_WZ_DECODER = _REGULAR_DECODER.replace("M-M", "M-N").replace(
    "rbu1:upsampled:M-N", "rbu1:upsampled:N-N"
)
_Q2_ENCODER = """
    strided:3-N feature:N residual:N-N residual:N-N feature:N attention:N
    residual:N-N strided:N-N feature:N residual:N-N residual:N-M feature:M attention:M
"""
_Q2_DECODER = """
    attention:M residual:M-N residual:N-N feature:N residual:N-N upsampled:N-N feature:N
    attention:N residual:N-N residual:N-N feature:N residual:N-N upsampled:N-3 feature:3
"""


class _Strided(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, and GDN; beside them a strided 1x1."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.gdn = Gdn(width)
        self.skip = nn.Conv2d(width_in, width, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(functional.leaky_relu(self.conv1(x), SLOPE))
        return self.gdn(inner) + self.skip(x)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """Two 3x3 convolutions, each followed by a leaky ReLU, and the identity (or a 1x1)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.conv1(x), SLOPE)
        inner = functional.leaky_relu(self.conv2(inner), SLOPE)
        return inner + (x if self.skip is None else self.skip(x))


class _Upsampled(nn.Module):
    """A sub-pixel convolution, a 3x3 convolution and inverse GDN; beside them another sub-pixel."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.subpel_conv = _sub_pixel(width_in, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.igdn = Gdn(width, inverse=True)
        self.upsample = _sub_pixel(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv(functional.leaky_relu(self.subpel_conv(x), SLOPE))
        return self.igdn(inner) + self.upsample(x)  # type: ignore[no-any-return]


def _sub_pixel(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, 4 * width, 3, padding=1), nn.PixelShuffle(2))


class _Unit(nn.Module):
    """1x1, 3x3, 1x1 at half the width, added to the input, then a ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv = nn.Sequential(
            nn.Conv2d(width, half, 1),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.conv(x))


class _Attention(nn.Module):
    """`x + a(x) sigmoid(b(x))` with three units in each branch and a 1x1 behind the second."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_Unit(width) for _ in range(3)))
        self.conv_b = nn.Sequential(*(_Unit(width) for _ in range(3)), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))  # type: ignore[no-any-return]


class _AttentionFeature(nn.Module):
    """Scales every plane by what the mean features and the SNR in dB say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width + 1, width),
            nn.LeakyReLU(SLOPE),
            nn.Linear(width, width),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        summary = torch.cat((x.mean(dim=(2, 3)), snr_db.to(x.dtype)), dim=1)
        return x * self.layers(summary)[:, :, None, None]  # type: ignore[no-any-return]


class _Chain(nn.Module):
    """Blocks in order; the attention-feature modules among them are told the SNR."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x, snr_db) if isinstance(layer, _AttentionFeature) else layer(x)
        return x


_KINDS: Final[Mapping[str, Callable[..., nn.Module]]] = {
    "strided": _Strided,
    "residual": _Residual,
    "upsampled": _Upsampled,
    "attention": _Attention,
    "feature": _AttentionFeature,
}


def _unnamed(table: str, *, without: str = "none") -> str:
    """The same blocks, named by their place, those of the kind `without` left out."""
    blocks = [block.split(":")[-2:] for block in table.split()]
    kept = [block for block in blocks if block[0] != without]
    return " ".join(f"{place}:{kind}:{widths}" for place, (kind, widths) in enumerate(kept))


VARIANTS: Final[Mapping[str, tuple[str, str]]] = {
    "regular": (_REGULAR_ENCODER, _REGULAR_DECODER),
    "reduced": (_REDUCED_ENCODER, _REDUCED_DECODER),
    "wz": (_unnamed(_REGULAR_ENCODER), _unnamed(_WZ_DECODER)),
    "q": (_unnamed(_REGULAR_ENCODER, without="feature"), _unnamed(_WZ_DECODER, without="feature")),
    "q2": (_unnamed(_Q2_ENCODER), _unnamed(_Q2_DECODER)),
}


def _chain(table: str, width: int, planes: int) -> _Chain:
    numbers = {"N": width, "M": planes, "3": COLOURS}
    layers = {}
    for block in table.split():
        name, kind, widths = block.split(":")
        layers[name] = _KINDS[kind](*(numbers[each] for each in widths.split("-")))
    return _Chain(layers)


class Af(nn.Module):
    """Encoder and decoder; neither has an activation at its end.

    Args:
        width: Planes inside the networks, `c_feat`.
        planes: Real values per position of the code, `c_out`.
        variant: A key of `VARIANTS`.
    """

    def __init__(self, width: int, planes: int, variant: str = "regular") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"af.variant: got {variant!r}, expected one of {', '.join(VARIANTS)}. Pick one."
            )
        encoder, decoder = VARIANTS[variant]
        self.encoder = _chain(encoder, width, planes)
        self.decoder = _chain(decoder, width, planes)
        self.stride = 2 ** encoder.count("strided")
        self.told_snr = "feature" in encoder

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Af:
        """The network of a configuration with ``c_feat``, ``c_out`` and ``variant``.

        Raises:
            ValueError: A width is missing or the variant unknown.
        """
        width, planes = (integer(params, key, "af") for key in ("c_feat", "c_out"))
        return cls(width, planes, str(params.get("variant", "regular")))


def canonical(name: str) -> str | None:
    """``g_a.{i}…`` and ``g_s.{i}…``, wherever they stand, to ``encoder.layers.{i}…`` and so on."""
    found = re.search(r"(?:^|\.)g_([as])\.(\d+\..*)", name)
    if found is None:
        return name
    return f"{'encoder' if found[1] == 'a' else 'decoder'}.layers.{found[2]}"


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any] | None:
    """Variant and widths of the network that has these names and shapes; None if it is no such."""
    first = shapes.get(
        "encoder.layers.rbws1.conv1.weight", shapes.get("encoder.layers.0.skip.weight")
    )
    last = shapes.get(
        "decoder.layers.a1.conv_a.0.conv.4.weight",
        shapes.get("decoder.layers.0.conv_a.0.conv.4.weight"),
    )
    if first is None or last is None:
        return None
    params = {"c_feat": first[0], "c_out": last[0]}
    for variant in VARIANTS:
        with torch.device("meta"):
            network = Af(params["c_feat"], params["c_out"], variant)
        if network.state_dict().keys() == shapes.keys():
            return {"variant": variant, **params}
    return None
