"""Generative codec stage: trains GenerativeJSCC end to end on squared error and LPIPS.

Ecenaz Erdemir, Tze-Yang Tung, Pier Luigi Dragotti, Deniz Gündüz, "Generative Joint Source-Channel
Coding for Semantic Image Transmission", arXiv 2211.13772: a factor times the squared error plus
LPIPS. The paper's factor is not public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from jscc.export.models.generative import Generative
from jscc.export.models.stylegan2 import ModulatedConv
from jscc.export.reference.perceptual_codec import (
    Codec,
    PerceptualCodecStage,
    uniform,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from jscc.export.reference.perceptual import Lpips
    from jscc.export.reference.tiles import Tiles

ENDS: Final = ("encoder.halve.0.", "decoder.to_rgbs.", "decoder.mapping.")


@dataclass(frozen=True)
class _Halves:
    model: Generative

    def encode(self, image: Tensor, snr_db: Tensor) -> Tensor:
        return self.model.encoder(image, snr_db[:, 0])  # type: ignore[no-any-return]

    def decode(self, received: Tensor, snr_db: Tensor) -> Tensor:
        return self.model.decoder(received, snr_db[:, 0])  # type: ignore[no-any-return]


def _halves(model: nn.Module) -> Codec:
    assert isinstance(model, Generative)
    return _Halves(model)


def generative_stage(
    tiles: Tiles,
    params: Mapping[str, Any],
    device: torch.device,
    *,
    batch: int,
    crop: int,
    last_crop: int,
    lpips: Lpips | None,
    name: str,
) -> PerceptualCodecStage:
    """Returns the stage of a codec with the configuration `params`."""
    model = Generative.from_config(params)
    shrink(model)
    return PerceptualCodecStage(
        tiles=tiles,
        model=model,
        codec=_halves,
        matrices=hidden(model),
        draw_snr=uniform(float(params["SNR_low"]), float(params["SNR_high"])),
        planes=int(params["planes"]),
        device=device,
        batch=batch,
        crop=crop,
        last_crop=last_crop,
        lpips=lpips,
        name=name,
    )


@torch.no_grad()
def shrink(model: nn.Module) -> None:
    """Brings the weights of demodulated convolutions to the usual size, which changes no output.

    They start from unit variance. Muon's steps have the size that suits the usual weights and
    would hardly turn such large ones.
    """
    for module in model.modules():
        if isinstance(module, ModulatedConv) and module.demodulated:
            module.weight.mul_(module.gain)


def hidden(model: nn.Module) -> set[str]:
    """Names of the hidden convolutions' weights, without those that make styles and colours."""
    return {
        name for name, p in model.named_parameters() if p.ndim >= 4 and not name.startswith(ENDS)
    }
