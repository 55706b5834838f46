"""Perceptual codec stage: squared error, LPIPS and, from a share of the budget on, a critic.

Jun Wang et al., "Perceptual Learned Source-Channel Coding for High-Fidelity Image Semantic
Transmission", arXiv 2205.13120: first without the critic, then the critic alone, then both. The
critic and what it is told are those of Fabian Mentzer et al., "High-Fidelity Generative Image
Compression", arXiv 2006.09965.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn

from jscc.export.models.pdjscc import Pdjscc
from jscc.export.reference.adversarial import critic_loss, frozen, model_loss
from jscc.export.reference.codec import EVALUATED_SNR_DB, psnr_db, transmit
from jscc.export.reference.critics import PatchCritic
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jscc.export.reference.perceptual import Lpips
    from jscc.export.reference.tiles import Tiles

ENDS: Final = ("encoder.conv_block1.", "encoder.conv_block5.", "decoder.conv_block_out.")
# Of a PReLU at its start.
SLOPE: Final = 0.25
GATE_BIAS: Final = 3.0
LAST_GAIN: Final = 0.05
LARGER: Final = 2 / 3
EVALUATED_AT_ONCE: Final = 4


class Codec(Protocol):
    """A network of two halves, each told the SNR [B,1]."""

    def encode(self, image: Tensor, snr_db: Tensor) -> Tensor:
        """Returns planes of any power, of which the first half is real, of `image` in [0,1]."""

    def decode(self, received: Tensor, snr_db: Tensor) -> Tensor:
        """Returns the image, not clipped, of planes of unit mean symbol power."""


@dataclass(frozen=True)
class Weights:
    """How much each term of the loss counts, with pictures in [0,1] (LPIPS: in [-1,1]).

    Attributes:
        squared: Of the mean squared error. The paper's 1e-5 on the scale to 255 is 0.65; a short
            training needs more of it, or LPIPS alone decides the colours.
        perceptual: Of LPIPS.
        adversarial: Of the critic's judgement.
    """

    squared: float = 30.0
    perceptual: float = 1.0
    adversarial: float = 0.0


@dataclass(frozen=True)
class Phases:
    """When what joins, as shares of the budget.

    Attributes:
        perceptual: LPIPS joins, and has its full weight after as much again.
        critic: The critic begins, and the codec rests.
        both: The codec goes on, against the critic.
    """

    perceptual: float = 0.05
    critic: float = 1.0
    both: float = 1.0


@dataclass(frozen=True)
class PerceptualCodecStage:
    """Random crops through encoder, radio channel and decoder; the last third sees larger ones.

    Attributes:
        model: Both halves of the codec.
        codec: How `model`, or its average, is called.
        matrices: Names of the weights that Muon updates.
        draw_snr: SNRs in dB [count,1] for a batch.
        planes: Real values per position of the code.
        critic_width: Planes of the critic's first layer.
        lpips: None leaves LPIPS out of the loss.
    """

    tiles: Tiles
    model: nn.Module
    codec: Callable[[nn.Module], Codec]
    matrices: set[str]
    draw_snr: Callable[[int, torch.Generator], Tensor]
    planes: int
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    lpips: Lpips | None
    name: str
    weights: Weights = field(default_factory=Weights)
    phases: Phases = field(default_factory=Phases)
    critic_width: int = 32
    critic: PatchCritic = field(init=False)

    def __post_init__(self) -> None:
        self.model.to(self.device)
        critic = PatchCritic(self.planes, self.critic_width).to(self.device)
        object.__setattr__(self, "critic", critic)

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the codec's loss, the critic's, or both, as the phase wants it."""
        size = self.crop if progress < LARGER else self.last_crop
        count = max(2, self.batch * self.crop**2 // size**2)
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        image, snr_db = image.to(self.device), self.draw_snr(count, generator).to(self.device)
        codec_rests = self.phases.critic <= progress < self.phases.both
        with torch.no_grad() if codec_rests else nullcontext():
            restored, sent = self._receive(self.model, image, snr_db, generator)
        terms: dict[str, Tensor] = {}
        if not codec_rests:
            terms |= self._codec_terms(progress, image, restored, sent)
        if progress >= self.phases.critic:
            terms["critic"] = self._critic_term(image, restored.detach(), sent)
        return terms | {"psnr_db": psnr_db(restored.detach(), image).mean()}

    def _codec_terms(
        self, progress: float, image: Tensor, restored: Tensor, sent: Tensor
    ) -> dict[str, Tensor]:
        terms = {"squared": (restored - image).square().mean()}
        loss = self.weights.squared * terms["squared"]
        # To a first blurred picture LPIPS prefers anything textured, so it joins once there is one.
        joined = (progress - self.phases.perceptual) / max(self.phases.perceptual, 1e-9)
        weight = self.weights.perceptual * min(1.0, max(0.0, joined))
        if self.lpips is not None and weight > 0:
            with mixed(self.device):
                terms["lpips"] = self.lpips(2 * restored - 1, 2 * image - 1).mean()
            loss = loss + weight * terms["lpips"]
        if progress >= self.phases.both and self.weights.adversarial > 0:
            with frozen(self.critic), mixed(self.device):
                terms["adversarial"] = model_loss(self.critic(2 * restored - 1, sent))
            loss = loss + self.weights.adversarial * terms["adversarial"]
        return terms | {"loss": loss}

    def _critic_term(self, image: Tensor, restored: Tensor, sent: Tensor) -> Tensor:
        both = torch.cat((2 * image - 1, 2 * restored - 1))
        with mixed(self.device):
            real, made = self.critic(both, sent.repeat(2, 1, 1, 1)).chunk(2)
        return critic_loss(real, made)

    def _receive(
        self, model: nn.Module, image: Tensor, snr_db: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the reconstruction and what was sent of it, at unit power and without noise."""
        codec = self.codec(model)
        with mixed(self.device):
            planes = codec.encode(image, snr_db)
        noise = torch.randn(planes.shape, generator=generator).to(self.device)
        received = transmit(planes, snr_db, noise)
        with mixed(self.device):
            restored = codec.decode(received, snr_db)
        silent = torch.full_like(snr_db, torch.inf)
        return restored.float(), transmit(planes.detach(), silent, noise)

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns mean PSNR and LPIPS of the held-out tiles per SNR, always with the same noise."""
        figures = {}
        for snr in EVALUATED_SNR_DB:
            generator = torch.Generator().manual_seed(1)
            quality, distance = [], []
            for chunk in torch.split(self.tiles.held_out, EVALUATED_AT_ONCE):
                image = (chunk.float() / 255).to(self.device)
                known = torch.full((len(image), 1), snr, device=self.device)
                restored = self._receive(model, image, known, generator)[0].clamp(0, 1)
                quality.append(psnr_db(restored, image))
                if self.lpips is not None:
                    distance.append(self.lpips(2 * restored - 1, 2 * image - 1))
            figures[f"psnr_db@{snr:g}dB"] = float(torch.cat(quality).mean())
            if distance:
                figures[f"lpips@{snr:g}dB"] = float(torch.cat(distance).mean())
        return figures


def uniform(low_db: float, high_db: float) -> Callable[[int, torch.Generator], Tensor]:
    """Returns what draws SNRs between two bounds."""

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return low_db + (high_db - low_db) * torch.rand(count, 1, generator=generator)

    return draw


def one_of(snrs_db: tuple[float, ...]) -> Callable[[int, torch.Generator], Tensor]:
    """Returns what draws one of a few SNRs per picture."""
    choices = torch.tensor(snrs_db)

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return choices[torch.randint(len(choices), (count, 1), generator=generator)]

    return draw


@dataclass(frozen=True)
class _Halves:
    model: Pdjscc

    def encode(self, image: Tensor, snr_db: Tensor) -> Tensor:
        return self.model.encoder(image, snr_db)  # type: ignore[no-any-return]

    def decode(self, received: Tensor, snr_db: Tensor) -> Tensor:
        return self.model.decoder(received, snr_db)  # type: ignore[no-any-return]


def _halves(model: nn.Module) -> Codec:
    assert isinstance(model, Pdjscc)
    return _Halves(model)


def perceptual_stage(
    tiles: Tiles,
    params: Mapping[str, Any],
    device: torch.device,
    *,
    batch: int,
    crop: int,
    last_crop: int,
    lpips: Lpips | None,
    name: str,
    critic_width: int = 32,
) -> PerceptualCodecStage:
    """Returns the stage of a pDJSCC with the configuration `params`, in the paper's three phases.

    The paper has 100,000 steps without the critic, 10,000 of the critic alone and then both, and
    weights its judgement 1e-3 beside an LPIPS of 1. The ten times larger weight is this project's:
    what is left of a short training shows nothing of the other.
    """
    model = Pdjscc.from_config(params)
    open_up(model)
    return PerceptualCodecStage(
        tiles=tiles,
        model=model,
        codec=_halves,
        matrices={
            key for key, p in model.named_parameters() if p.ndim == 4 and not key.startswith(ENDS)
        },
        draw_snr=one_of(tuple(float(snr) for snr in params["SNR_list"])),
        planes=int(params["c_out"]),
        device=device,
        batch=batch,
        crop=crop,
        last_crop=last_crop,
        lpips=lpips,
        name=name,
        weights=Weights(adversarial=0.01),
        phases=Phases(critic=0.65, both=0.7),
        critic_width=critic_width,
    )


@torch.no_grad()
def open_up(model: Pdjscc) -> None:
    """Begins with a signal of unit size in every layer, and with attention that lets it pass.

    From torch's own beginning a signal comes through the eleven layers a thousandth of its size.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            reached = module.weight[0].numel()
            if isinstance(module, nn.ConvTranspose2d):
                kernel = module.kernel_size[0] * module.kernel_size[1]
                reached = module.in_channels * kernel // module.stride[0] ** 2
            module.weight.normal_(std=(2 / ((1 + SLOPE**2) * reached)) ** 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("fc2.bias"):
            parameter.fill_(GATE_BIAS)
        if name.startswith("decoder.conv_block_out."):
            parameter.mul_(LAST_GAIN)  # the first picture is grey, with no sigmoid at its end
