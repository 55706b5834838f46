"""AF stage: trains the AF network on mean squared error over a range of SNRs.

A bandwidth is the number of planes of the code; a network for another bandwidth may begin from one
that is trained: see `widened`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jscc.export.models.af import Af
from jscc.export.reference.codec import EVALUATED_SNR_DB, psnr_db, transmit
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.tiles import Tiles

# Weights whose last input is the SNR: the first layer of each attention-feature module.
TOLD = re.compile(r".*\.af[0-9]+\.layers\.0\.weight")


def widened(trained: Tensor, own: Tensor, *, told: int = 0) -> Tensor:
    """`own`, a weight as it was drawn, with what it has in common with one of another width.

    Where it is the wider one, its trained outputs ignore new inputs.

    Args:
        trained: The other weight.
        own: Of as many axes.
        told: So many inputs, the last ones, are no planes, and are taken over as they are.
    """
    if told:
        planes = widened(trained[:, :-told], own[:, :-told])
        beside = widened(trained[:, -told:], own[:, -told:])
        return torch.cat((planes, beside), dim=1)
    common = own.clone()
    corner = tuple(
        slice(min(length, wanted)) for length, wanted in zip(trained.shape, own.shape, strict=True)
    )
    if own.ndim > 1:
        common[corner[0], trained.shape[1] :] = 0
    common[corner] = trained[corner]
    return common


@dataclass(frozen=True)
class AfStage:
    """Random crops through encoder, radio channel and decoder.

    Attributes:
        params: ``c_feat``, ``c_out``, ``SNR_low`` and ``SNR_high``.
        begin: Weights of a network of another width to begin from, by name.
    """

    tiles: Tiles
    params: Mapping[str, Any]
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    name: str
    begin: Mapping[str, Tensor] = field(default_factory=dict)
    model: Af = field(init=False)

    def __post_init__(self) -> None:
        # Not in channels_last: torch 2.13 corrupts its heap in the strided convolutions' backward.
        model = Af.from_config(self.params)
        own = model.state_dict()
        taken = {
            name: widened(value, own[name], told=bool(TOLD.fullmatch(name)))
            for name, value in self.begin.items()
            if name in own
        }
        model.load_state_dict(own | taken)
        object.__setattr__(self, "model", model.to(self.device))

    @property
    def matrices(self) -> set[str]:
        """The weights of every hidden layer: all but the first, the last and the norms'."""
        ends = ("encoder.layers.rbws1.", "decoder.layers.rbu4.", "decoder.layers.af4.")
        return {
            name
            for name, p in self.model.named_parameters()
            if p.ndim > 1 and not name.endswith(".gamma") and not name.startswith(ends)
        }

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the error of a batch; the last third of the budget sees whole tiles."""
        size = self.crop if progress < 2 / 3 else self.last_crop
        count = max(2, self.batch * self.crop**2 // size**2)
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        low, high = float(self.params["SNR_low"]), float(self.params["SNR_high"])
        snr_db = low + (high - low) * torch.rand(count, 1, generator=generator)
        restored = receive(self.model, image.to(self.device), snr_db.to(self.device), generator)
        error = (restored - image.to(self.device)).square().mean()
        return {"loss": error * 100, "psnr_db": psnr_db(restored.detach(), image).mean()}

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns the mean PSNR of the held-out tiles per SNR, always with the same noise."""
        assert isinstance(model, Af)
        figures = {}
        for snr in EVALUATED_SNR_DB:
            generator = torch.Generator().manual_seed(1)
            values = []
            for chunk in torch.split(self.tiles.held_out, 8):
                image = (chunk.float() / 255).to(self.device)
                known = torch.full((len(image), 1), snr, device=self.device)
                values.append(psnr_db(receive(model, image, known, generator), image))
            figures[f"psnr_db@{snr:g}dB"] = float(torch.cat(values).mean())
        return figures


def receive(model: Af, image: Tensor, snr_db: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the reconstruction [B,3,H,W] of `image` in [0,1] after one transmission.

    Args:
        snr_db: Per picture [B,1].
        generator: Of the radio's noise.
    """
    with mixed(image.device):
        code = model.encoder(image, snr_db)
    noise = torch.randn(code.shape, generator=generator).to(image.device)
    received = transmit(code, snr_db, noise)
    with mixed(image.device):
        restored = model.decoder(received, snr_db)
    return torch.sigmoid(restored.float())
