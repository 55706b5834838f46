"""DeepJSCC with residual blocks: the convolutional image codec inside DiffJSCC checkpoints.

Mingyu Yang, Bowen Liu, Boyang Wang, Hun-Seok Kim, "Diffusion-Aided Joint Source Channel Coding For
High Realism Wireless Image Transmission", arXiv 2404.17736. Written from a description of the
checkpoints; only the names of the parameters are theirs.

    image [B,3,H,W] ─▶ Encoder ─▶ planes [B,C,H/16,W/16] ─ radio ─▶ planes ─▶ Decoder ─▶ image
       in [0,1]           ▲ csi [B,n]                                            ▲ csi [B,n]

The first half of the planes is the real part of the symbols, the second half the imaginary part.
`csi` is `[snr_db]`, or `[snr_db, Re h, Im h]` for a codec that was trained on Rayleigh fading.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

CSI_FEATURES: Final = {"AWGN": 1, "Rayleigh": 3}


class _Residual(nn.Module):
    """`x + block(x)` with two 3x3 convolutions; no activation follows the sum."""

    def __init__(self, width: int, *, reflect: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for last in (False, True):
            if reflect:
                layers.append(nn.ReflectionPad2d(1))
            layers.append(nn.Conv2d(width, width, 3, padding=0 if reflect else 1, bias=False))
            layers.append(nn.BatchNorm2d(width))
            if not last:
                layers.append(nn.ReLU())
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)  # type: ignore[no-any-return]


class _Modulation(nn.Module):
    """Scales and shifts every feature plane by what the picture's mean features and the CSI say."""

    def __init__(self, width: int, csi_features: int) -> None:
        super().__init__()
        inputs = width + csi_features
        self.model_multi = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid()
        )
        self.model_add = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, csi: Tensor) -> Tensor:
        summary = torch.cat([x.mean(dim=(2, 3)), csi.to(x.dtype)], dim=1)
        factor = self.model_multi(summary)[:, :, None, None]
        offset = self.model_add(summary)[:, :, None, None]
        return x * factor + offset  # type: ignore[no-any-return]


def _blocks(count: int, width: int, csi_features: int, *, reflect: bool) -> nn.ModuleList:
    """Returns residual block and modulation in turn, `count` of each."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers.append(_Residual(width, reflect=reflect))
        layers.append(_Modulation(width, csi_features))
    return nn.ModuleList(layers)


def _run_blocks(blocks: nn.ModuleList, x: Tensor, csi: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, csi) if isinstance(block, _Modulation) else block(x)
    return x


class Encoder(nn.Module):
    """Turns a picture into the feature planes that become symbols."""

    def __init__(
        self,
        *,
        input_nc: int,
        ngf: int,
        max_ngf: int,
        n_downsample: int,
        n_blocks: int,
        c_channel: int,
        csi_features: int,
    ) -> None:
        super().__init__()
        widths = [min(ngf * 2**i, max_ngf) for i in range(n_downsample + 1)]
        # The first width is `ngf` itself: the limit holds from the first downsampling on.
        widths[0] = ngf
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(input_nc, widths[0], 7, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.net = nn.Sequential(*layers)
        self.res_list = _blocks(n_blocks, widths[-1], csi_features, reflect=False)
        self.projection = nn.Conv2d(widths[-1], c_channel, 3, padding=1)

    def forward(self, image: Tensor, csi: Tensor) -> Tensor:
        """Returns planes [B,C,H/16,W/16] of `image` [B,3,H,W] in [0,1], of any power."""
        return self.projection(_run_blocks(self.res_list, self.net(image), csi))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Turns received planes back into a picture."""

    def __init__(
        self,
        *,
        output_nc: int,
        ngf: int,
        max_ngf: int,
        n_downsample: int,
        n_blocks: int,
        c_channel: int,
        csi_features: int,
    ) -> None:
        super().__init__()
        widths = [min(ngf * 2**i, max_ngf) for i in range(n_downsample, -1, -1)]
        self.mask_conv = nn.Conv2d(c_channel, widths[0], 3, padding=1, bias=False)
        self.res_list = _blocks(n_blocks, widths[0], csi_features, reflect=True)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [
                nn.ConvTranspose2d(
                    before, after, 3, stride=2, padding=1, output_padding=1, bias=False
                ),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        layers += [nn.ReflectionPad2d(2), nn.Conv2d(widths[-1], output_nc, 5), nn.Sigmoid()]
        self.model = nn.Sequential(*layers)

    def forward(self, planes: Tensor, csi: Tensor) -> Tensor:
        """Returns the picture [B,3,H,W] in [0,1] that equalised `planes` [B,C,H/16,W/16] hold."""
        return self.model(_run_blocks(self.res_list, self.mask_conv(planes), csi))  # type: ignore[no-any-return]


class DeepJscc(nn.Module):
    """The codec: encoder `E` at the transmitter, decoder `G` at the receiver."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.E = encoder
        self.G = decoder

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> DeepJscc:
        """Builds the codec from `preprocess_config.params` of an official configuration.

        Raises:
            ValueError: The channel is neither AWGN nor Rayleigh, or the normalisation is not batch.
        """
        channel = params.get("channel", "AWGN")
        if channel not in CSI_FEATURES:
            raise ValueError(
                f"deepjscc_cnn: got channel {channel!r}, expected one of {sorted(CSI_FEATURES)}."
            )
        if params.get("norm", "batch") != "batch":
            raise ValueError(f"deepjscc_cnn: got norm {params['norm']!r}, expected 'batch'.")
        shared = {
            "ngf": int(params["ngf"]),
            "n_downsample": int(params["n_downsample"]),
            "c_channel": int(params["C_channel"]),
            "csi_features": CSI_FEATURES[channel],
        }
        encoder = Encoder(
            input_nc=int(params["input_nc"]),
            max_ngf=int(params["max_ngf_E"]),
            n_blocks=int(params["n_blocks_E"]),
            **shared,
        )
        decoder = Decoder(
            output_nc=int(params["output_nc"]),
            max_ngf=int(params["max_ngf_D"]),
            n_blocks=int(params["n_blocks_D"]),
            **shared,
        )
        return cls(encoder, decoder)


# Whole ControlLDM files hold the codec below this, beside networks and tables of their own.
WHOLE: Final = "preprocess_model."
BESIDE: Final = re.compile(
    r"(model\.diffusion_model|model_ema|control_model|cond_stage_model|cond_encoder"
    r"|first_stage_model|blip_model)\.|betas$|logvar$|alphas_cumprod|sqrt_|posterior_"
    r"|log_one_minus_alphas_cumprod$"
)


def canonical(name: str) -> str | None:
    """``preprocess_model.E…`` to ``E…``; nothing of what else a ControlLDM is made of."""
    return None if BESIDE.match(name) else name.removeprefix(WHOLE)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The parameters of the codec that has these names and shapes; None if it is no such.

    The channel it was trained on shows in the width of what both halves are told. The range of
    SNRs does not show.
    """
    names = ("E.net.1.weight", "E.projection.weight", "G.mask_conv.weight")
    first, sent, received = (shapes.get(name) for name in names)
    told = shapes.get("E.res_list.1.model_multi.0.weight")
    if first is None or sent is None or received is None or told is None:
        return None
    halvings = sum(1 for name in shapes if re.fullmatch(r"E\.net\.\d+\.running_mean", name)) - 1
    last = shapes.get(f"G.model.{3 * halvings + 1}.weight")
    channels = {told[0] + count: name for name, count in CSI_FEATURES.items()}
    if last is None or told[1] not in channels:
        return None
    return {
        "input_nc": first[1],
        "output_nc": last[0],
        "ngf": first[0],
        "max_ngf_E": sent[1],
        "max_ngf_D": received[0],
        "n_downsample": halvings,
        "n_blocks_E": _count_blocks(shapes, "E"),
        "n_blocks_D": _count_blocks(shapes, "G"),
        "C_channel": sent[0],
        "channel": channels[told[1]],
    }


def _count_blocks(shapes: Mapping[str, tuple[int, ...]], half: str) -> int:
    found = (re.match(rf"{half}\.res_list\.(\d+)\.conv_block\.", name) for name in shapes)
    return len({match[1] for match in found if match})
