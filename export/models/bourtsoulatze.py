"""Bourtsoulatze: the small convolutional DeepJSCC, the first of its kind.

Eirina Bourtsoulatze, David Burth Kurka, Deniz Gündüz, "Deep Joint Source-Channel Coding for
Wireless Image Transmission", arXiv 1809.01733, figure 3. The names of the parameters are those of
the public checkpoints of `chunbaobao/Deep-JSCC-PyTorch`; the rest is written from the paper.

    image [B,3,H,W] ─▶ Encoder ─▶ code [B,2c,H/4,W/4] ─ radio ─▶ code ─▶ Decoder ─▶ image
       in [0,1]                                                               in [0,1]

Neither half is told the SNR: a network is trained for one. Its decoder takes a mean square of 1 per
real value, that is a mean power of 2 per symbol.

NOTE: in those checkpoints one PReLU slope serves the first four layers of the decoder and is stored
under four names. Their SNR is labelled 3.01 dB too low: signal power 1 per real value is held
against a noise variance of 10^(-SNR/10)/2 per real value. The label of 10 dB is a channel of
13.01 dB; `TRUE_SNR_DB` is the difference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn

from jscc.export.models.params import integer

if TYPE_CHECKING:
    from collections.abc import Mapping

STRIDE: Final = 4
TRUE_SNR_DB: Final = 10 * math.log10(2)  # true SNR minus the checkpoints' label
SCALE: Final = math.sqrt(2)  # of the decoder's input over symbols of unit mean power


class _Down(nn.Module):
    """A 5x5 convolution and a PReLU."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 5, stride, padding=2)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.conv(x))  # type: ignore[no-any-return]


class _Up(nn.Module):
    """A transposed 5x5 convolution and a PReLU, or a sigmoid."""

    def __init__(self, width_in: int, width: int, stride: int, *, last: bool = False) -> None:
        super().__init__()
        self.transconv = nn.ConvTranspose2d(
            width_in, width, 5, stride, padding=2, output_padding=stride - 1
        )
        self.activate = nn.Sigmoid() if last else nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.transconv(x))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Image to code; `csi` is not looked at."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.conv1 = _Down(3, 16, 2)
        self.conv2 = _Down(16, 32, 2)
        self.conv3 = _Down(32, 32, 1)
        self.conv4 = _Down(32, 32, 1)
        self.conv5 = _Down(32, planes, 1)

    def forward(self, image: Tensor, csi: Tensor) -> Tensor:
        """Returns the code [B,2c,H/4,W/4], of any power, of `image` [B,3,H,W] in [0,1]."""
        del csi
        x = self.conv3(self.conv2(self.conv1(image)))
        return self.conv5(self.conv4(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Code to image; `csi` is not looked at."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.tconv1 = _Up(planes, 32, 1)
        self.tconv2 = _Up(32, 32, 1)
        self.tconv3 = _Up(32, 32, 1)
        self.tconv4 = _Up(32, 16, 2)
        self.tconv5 = _Up(16, 3, 2, last=True)

    def forward(self, code: Tensor, csi: Tensor) -> Tensor:
        """Returns the image in [0,1] of a `code` with a mean square of 1."""
        del csi
        x = self.tconv3(self.tconv2(self.tconv1(code)))
        return self.tconv5(self.tconv4(x))  # type: ignore[no-any-return]


class Bourtsoulatze(nn.Module):
    """Encoder and decoder.

    Args:
        planes: Real values per position of the code, `2c`.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.encoder = Encoder(planes)
        self.decoder = Decoder(planes)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Bourtsoulatze:
        """The network of a configuration with ``c_out``.

        Raises:
            ValueError: It is missing or not positive.
        """
        return cls(integer(params, "c_out", "bourtsoulatze"))


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any] | None:
    """Width of the network that has these names and shapes; None if it is no such."""
    last = shapes.get("encoder.conv5.conv.weight")
    if last is None or "decoder.tconv5.transconv.weight" not in shapes:
        return None
    return {"c_out": last[0]}
