"""Perceptual DeepJSCC: the codec of ADJSCC and pDJSCC checkpoints, with SNR attention and GDN.

Jun Wang, Sixian Wang, Jincheng Dai, Zhongwei Si, Dekun Zhou, Kai Niu, "Perceptual Learned
Source-Channel Coding for High-Fidelity Image Semantic Transmission", arXiv 2205.13120; the
attention is that of Jialong Xu et al., arXiv 2012.00533. Written from a description of the
checkpoints; only the names of the parameters are theirs.

    image [B,3,H,W] ─▶ Encoder ─▶ code [B,C,H/4,W/4] ─ radio ─▶ code ─▶ Decoder ─▶ image
       in [0,1]          ▲ snr_db [B,1]                           ▲ snr_db [B,1]

C = 2, 4 and 6 are bandwidths of 1/48, 1/24 and 1/16. The first half of the planes are the real
parts. The decoder takes symbols of unit mean complex power as they are.

NOTE: the authors normalise the power over a whole batch; one image at a time that is the power of
each image, which is what a radio has. They pad to multiples of 4 by reflection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from jscc.export.models.gdn import Gdn
from jscc.export.models.params import integer

if TYPE_CHECKING:
    from collections.abc import Mapping

STRIDE: Final = 4
SQUEEZE: Final = 16  # how much narrower the attention's inner layer is
COLOURS: Final = 3


class _Attention(nn.Module):
    """Scales every plane by what the mean features and the SNR in dB say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = (width + 1) // SQUEEZE
        self.fc1 = nn.Linear(width + 1, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        summary = torch.cat((snr_db.to(x.dtype), x.mean(dim=(2, 3))), dim=1)
        factor = torch.sigmoid(self.fc2(torch.relu(self.fc1(summary))))
        return x * factor[:, :, None, None]


def _down(width_in: int, width: int, kernel: int, stride: int, *, last: bool) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2)
    norm = Gdn(width, bare=True)
    return nn.Sequential(convolution, norm, *(() if last else (nn.PReLU(),)))


def _up(width_in: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(
            width_in, width, kernel, stride, padding=kernel // 2, output_padding=stride - 1
        ),
        Gdn(width, inverse=True, bare=True),
        nn.PReLU(),
    )


class Encoder(nn.Module):
    """Image to code: four convolutions with attention, and a fifth to the code's planes."""

    def __init__(self, width: int, planes: int) -> None:
        super().__init__()
        self.attention1 = _Attention(width)
        self.attention2 = _Attention(width)
        self.attention3 = _Attention(width)
        self.attention4 = _Attention(width)
        self.conv_block1 = _down(COLOURS, width, 9, 2, last=False)
        self.conv_block2 = _down(width, width, 5, 2, last=False)
        self.conv_block3 = _down(width, width, 5, 1, last=False)
        self.conv_block4 = _down(width, width, 5, 1, last=False)
        self.conv_block5 = _down(width, planes, 5, 1, last=True)

    def forward(self, image: Tensor, snr_db: Tensor) -> Tensor:
        """Returns the code [B,C,H/4,W/4], of any power, of `image` [B,3,H,W] in [0,1]."""
        x = self.attention1(self.conv_block1(image), snr_db)
        x = self.attention2(self.conv_block2(x), snr_db)
        x = self.attention3(self.conv_block3(x), snr_db)
        x = self.attention4(self.conv_block4(x), snr_db)
        return self.conv_block5(x)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Code to image: five transposed convolutions with attention, a sixth plain one, sigmoid."""

    def __init__(self, width: int, planes: int) -> None:
        super().__init__()
        self.attention1 = _Attention(width)
        self.attention2 = _Attention(width)
        self.attention3 = _Attention(width)
        self.attention4 = _Attention(width)
        self.attention5 = _Attention(width)
        self.upconv_block1 = _up(planes, width, 5, 1)
        self.upconv_block2 = _up(width, width, 5, 1)
        self.upconv_block3 = _up(width, width, 5, 1)
        self.upconv_block4 = _up(width, width, 5, 2)
        self.upconv_block5 = _up(width, width, 9, 2)
        self.conv_block_out = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(width, COLOURS, 7), nn.Sigmoid()
        )

    def forward(self, code: Tensor, snr_db: Tensor) -> Tensor:
        """Returns the image [B,3,H,W] in [0,1] that a received `code` [B,C,H/4,W/4] holds."""
        x = self.attention1(self.upconv_block1(code), snr_db)
        x = self.attention2(self.upconv_block2(x), snr_db)
        x = self.attention3(self.upconv_block3(x), snr_db)
        x = self.attention4(self.upconv_block4(x), snr_db)
        x = self.attention5(self.upconv_block5(x), snr_db)
        return self.conv_block_out(x)  # type: ignore[no-any-return]


class Pdjscc(nn.Module):
    """Encoder and decoder.

    Args:
        width: Planes inside the networks.
        planes: Real values per position of the code.
    """

    def __init__(self, width: int, planes: int) -> None:
        super().__init__()
        if width + 1 < SQUEEZE:
            raise ValueError(
                f"pdjscc.c_feat: got {width}, expected {SQUEEZE - 1} or more. Correct the file."
            )
        self.encoder = Encoder(width, planes)
        self.decoder = Decoder(width, planes)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Pdjscc:
        """The network of a configuration with ``c_feat`` and ``c_out``.

        Raises:
            ValueError: One of them is missing or too small.
        """
        return cls(integer(params, "c_feat", "pdjscc"), integer(params, "c_out", "pdjscc"))


_HALVES: Final = {
    "Encoder": "encoder",
    "Decoder": "decoder",
    "Generator": "decoder",
    "jscc_encoder": "encoder",
    "jscc_decoder": "decoder",
}


def canonical(name: str) -> str | None:
    """The authors' ``Encoder.`` and ``Decoder.``, also as DiffCom renames them."""
    half, dot, rest = name.partition(".")
    return f"{_HALVES.get(half, half)}{dot}{rest}"


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any] | None:
    """Widths of the network that has these names and shapes; None if it is no such."""
    last = shapes.get("encoder.conv_block5.0.weight")
    if last is None or "encoder.attention1.fc1.weight" not in shapes:
        return None
    return {"c_feat": last[1], "c_out": last[0]}
