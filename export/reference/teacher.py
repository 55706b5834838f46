"""Teacher: the finished reference DiffJSCC, from whose networks smaller or faster ones learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch
import yaml
from safetensors.torch import load_file

from jscc.export.models.autoencoder import Autoencoder, split_moments
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.reference.codec import receive
from jscc.export.reference.diffusion import Denoiser
from jscc.export.roles import REFERENCES
from jscc.runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    Network = TypeVar("Network", bound=nn.Module)

NAME: Final = "diffjscc"
WEIGHTS: Final = "model.safetensors"
CODEC: Final = {"": "preprocess_model."}
AUTOENCODER: Final = {"": "first_stage_model."}
DENOISER: Final = {"control.": "control_model.", "unet.": "model.diffusion_model."}


@dataclass(frozen=True)
class Link:
    """What lies before the diffusion: codec and first stage.

    Attributes:
        scale: What latents are multiplied by, to have unit deviation.
        snr_range_db: SNRs that the codec was trained for.
    """

    codec: DeepJscc
    first_stage: Autoencoder
    scale: float
    snr_range_db: tuple[float, float]

    def send(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns what is received of `image` [B,3,H,W] in [0,1], and its random SNRs in dB [B]."""
        low, high = self.snr_range_db
        snr_db = low + (high - low) * torch.rand(len(image), 1, generator=generator)
        snr_db = snr_db.to(image.device)
        return receive(self.codec, image, snr_db, generator).float(), snr_db[:, 0]

    def latent(self, image: Tensor) -> Tensor:
        """Returns the scaled latent [B,z,h,w] of `image` [B,3,H,W] in [0,1]."""
        return split_moments(self.first_stage.moments(2 * image - 1))[0].float() * self.scale

    def picture(self, latent: Tensor) -> Tensor:
        """Returns what the first stage makes of a scaled `latent`, in [0,1], not clamped."""
        return (self.first_stage.decode(latent / self.scale).float() + 1) / 2


@dataclass(frozen=True)
class Teacher:
    """Packed weights under official names, and their configuration; nothing here is trained.

    Attributes:
        tensors: Weights, floats as float32.
        params: The configuration's ``params``.
        device: Where its networks lie.
    """

    tensors: Mapping[str, Tensor]
    params: dict[str, Any]
    device: torch.device

    def link(self) -> Link:
        """Codec and first stage."""
        codec = self.params["preprocess_config"]["params"]
        first_stage = Autoencoder.from_config(self.params["first_stage_config"]["params"])
        return Link(
            codec=self._ready(DeepJscc.from_config(codec), CODEC),
            first_stage=self._ready(first_stage, AUTOENCODER),
            scale=float(self.params["scale_factor"]),
            snr_range_db=(float(codec["SNR_low"]), float(codec["SNR_high"])),
        )

    def denoiser(self) -> Denoiser:
        """UNet and control module."""
        return self._ready(Denoiser(self.params), DENOISER)

    def _ready(self, model: Network, prefixes: Mapping[str, str]) -> Network:
        """Gives `model` the weights below official prefixes, each in place of a prefix of its."""
        weights = {
            own + name.removeprefix(official): value
            for own, official in prefixes.items()
            for name, value in self.tensors.items()
            if name.startswith(official)
        }
        model.load_state_dict(weights)
        return model.to(self.device).eval().requires_grad_(requires_grad=False)


def read_teacher(out: Path, device: torch.device) -> Teacher:
    """Reads what `train` packed in ``out/packed``, else what lies in ``export/reference``.

    Raises:
        DataError: ``E_NETWORK``, there is neither.
    """
    at_hand = [
        folder for folder in (out / "packed", REFERENCES / NAME) if (folder / WEIGHTS).is_file()
    ]
    if not at_hand:
        raise DataError(
            "E_NETWORK",
            f"{out / 'packed' / WEIGHTS}: got no weights, expected those of {NAME}, which this "
            "network builds on. Train it first: python -m jscc.export.reference.train.",
        )
    tensors = load_file(at_hand[0] / WEIGHTS)
    config = yaml.safe_load((at_hand[0] / "config.yaml").read_text(encoding="utf-8"))
    return Teacher(
        {
            name: value.float() if value.is_floating_point() else value
            for name, value in tensors.items()
        },
        config["params"],
        device,
    )
