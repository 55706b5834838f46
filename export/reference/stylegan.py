"""StyleGAN stage: trains a StyleGAN2 generator on tiles of photographs, with a small critic.

Tero Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958: the
logistic loss, R1 and path-length regularisation now and then, mixed styles, averaged weights.

What is learnt are tiles of 64x64 pixels cut from photographs at full scale, because that is how the
generator is used: a receiver searches the latents of every such tile of its picture. They are
mostly surfaces, edges and textures, which a small generator can learn; whole scenes it could not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.stylegan2 import Generator, moments
from jscc.export.reference.adversarial import (
    critic_loss,
    frozen,
    gradient_penalty,
    model_loss,
    path_lengths,
)
from jscc.export.reference.critics import ResidualCritic
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.tiles import Tiles

PENALTY_EVERY: Final = 16
PATHS_EVERY: Final = 16
PATH_WEIGHT: Final = 2.0
PATH_DECAY: Final = 0.05
MIXED: Final = 0.9
EVALUATED_TILES: Final = 1024
PATCHES_PER_TILE: Final = 32
DIRECTIONS: Final = 128
PATCH: Final = 7
LEVELS: Final = (64, 32, 16)
STATISTICS_OF: Final = 100_000


class _Critic(nn.Module):
    """The critic, and the mean path length so far, which a resumed training needs as well."""

    path_mean: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.network = ResidualCritic(widths)
        self.register_buffer("path_mean", torch.zeros(()))

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class StyleganStage:
    """Random tiles against tiles made of random latents.

    R1 and path lengths join on a step in so many, drawn at random, with as many times the weight:
    the mean is the same and no counter need be kept.

    Attributes:
        params: Configuration of the generator; its size is that of the tiles.
        penalty: Gamma of R1; `PENALTY_EVERY` steps between.
        paths: Whether path lengths are regularised.
    """

    tiles: Tiles
    params: Mapping[str, Any]
    device: torch.device
    batch: int
    name: str
    penalty: float = 0.3
    paths: bool = True
    model: Generator = field(init=False)
    critic: _Critic = field(init=False)

    def __post_init__(self) -> None:
        model = Generator.from_config(self.params).to(self.device)
        object.__setattr__(self, "model", model)
        widths = tuple(reversed(model.channels))
        object.__setattr__(self, "critic", _Critic(widths).to(self.device))

    @property
    def matrices(self) -> set[str]:
        """None: adversaries are kept in balance by Adam's small steps."""
        return set()

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the generator's and the critic's loss on one batch of each kind."""
        edge = self.model.size
        real = draw_crops(self.tiles.train, count=self.batch, size=edge, generator=generator)
        real = (2 * real - 1).to(self.device)
        latent = self._latents(generator)
        made = self._make(self.model, latent, generator)
        with frozen(self.critic):
            terms = {"adversarial": model_loss(self._judge(made))}
        terms["loss"] = terms["adversarial"]
        if self.paths and _sometimes(PATHS_EVERY, generator):
            excess, mean = self._path_terms(generator)
            terms["path_length"] = mean
            terms["loss"] = terms["loss"] + PATH_WEIGHT * PATHS_EVERY * excess
        judged_real, judged_made = self._judge(real), self._judge(made.detach())
        terms["critic"] = critic_loss(judged_real, judged_made)
        terms["judged_real"], terms["judged_made"] = judged_real.mean(), judged_made.mean()
        if _sometimes(PENALTY_EVERY, generator):
            terms["slope"] = gradient_penalty(self.critic, real)
            terms["critic"] = terms["critic"] + 0.5 * self.penalty * PENALTY_EVERY * terms["slope"]
        return terms

    def _latents(self, generator: torch.Generator) -> Tensor:
        """Returns latents [B,rows,width], most with two styles and a random place of the change."""
        z = torch.randn(2, self.batch, self.model.style_dim, generator=generator)
        rows = self.model.latents
        change = torch.randint(1, rows, (self.batch, 1, 1), generator=generator)
        mixed = torch.rand(self.batch, 1, 1, generator=generator) < MIXED
        other = (torch.arange(rows)[None, :, None] >= change) & mixed
        first, second = (self.model.spread(self.model.map(part.to(self.device))) for part in z)
        return torch.where(other.to(self.device), second, first)

    def _make(self, model: Generator, latent: Tensor, generator: torch.Generator) -> Tensor:
        """Returns pictures in [-1,1] with new noise maps."""
        maps = [
            torch.randn(len(latent), 1, edge, edge, generator=generator).to(self.device)
            for edge in model.noise_edges
        ]
        with mixed(self.device):
            image: Tensor = model(latent, maps)
        return image.float()

    def _judge(self, image: Tensor) -> Tensor:
        with mixed(self.device):
            return self.critic(image).float()  # type: ignore[no-any-return]

    def _path_terms(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the mean squared distance from the mean path length, and that mean."""
        latent = self._latents(generator)[: max(1, self.batch // 2)]
        image = self._make(self.model, latent, generator)
        noise = torch.randn(image.shape, generator=generator).to(self.device)
        lengths = path_lengths(image, latent, noise)
        now, before = lengths.detach().mean(), self.critic.path_mean
        mean = torch.where(before > 0, before.lerp(now, PATH_DECAY), now)
        self.critic.path_mean.copy_(mean)
        return (lengths - mean).square().mean(), mean

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns how far patches of made tiles are from those of held-out tiles, per scale.

        `floor` is the same distance between training and held-out tiles: no generator comes lower.
        The figure knows neither the critic nor a network; it tells nothing about colours, nor about
        the arrangement of things beyond seven pixels of each scale.
        """
        assert isinstance(model, Generator)
        drawn = torch.Generator().manual_seed(1)
        held_out, train = (
            draw_crops(tiles, count=EVALUATED_TILES, size=model.size, generator=drawn)
            for tiles in (self.tiles.held_out, self.tiles.train)
        )
        made = []
        for _ in range(EVALUATED_TILES // 32):
            z = torch.randn(32, model.style_dim, generator=drawn).to(self.device)
            latent = model.spread(model.map(z))
            made.append(((self._make(model, latent, drawn) + 1) / 2).clamp(0, 1).cpu())
        figures = {}
        for edge in (level for level in LEVELS if level <= model.size):
            wanted = _patches(held_out, edge)
            figures[f"patches@{edge}px"] = sliced_distance(_patches(torch.cat(made), edge), wanted)
            figures[f"floor@{edge}px"] = sliced_distance(_patches(train, edge), wanted)
        return figures


def _sometimes(every: int, generator: torch.Generator) -> bool:
    return int(torch.randint(every, (), generator=generator)) == 0


def _patches(images: Tensor, edge: int) -> Tensor:
    """Returns random 7x7 patches [N,147] of pictures reduced to `edge` pixels, less their means.

    Without the mean colours, in which a few dozen held-out pictures differ from all photographs far
    more than in anything else.
    """
    reduced = functional.adaptive_avg_pool2d(images, edge)
    drawn = torch.Generator().manual_seed(2)
    shape = (len(images), PATCHES_PER_TILE)
    tops, lefts = (torch.randint(edge - PATCH + 1, shape, generator=drawn) for _ in range(2))
    windows = reduced.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [N,3,y,x,7,7], no copy
    which = torch.arange(len(images))[:, None].expand(shape)
    patches = windows[which, :, tops, lefts].flatten(0, 1)
    return (patches - patches.mean(dim=(2, 3), keepdim=True)).flatten(1)


def sliced_distance(first: Tensor, second: Tensor) -> float:
    """Returns the sliced Wasserstein-1 distance of two sets of vectors [N,D] of the same number.

    Julien Rabin et al., "Wasserstein Barycenter and Its Application to Texture Mixing" (2011): the
    mean over random directions of the distance of the projections, which is that of their sorted
    values; used on patches of pictures by Karras et al., arXiv 1710.10196, section 5. Here in grey
    levels of 255 per pixel, and without making the patches' mean and deviation equal first.
    """
    directions = torch.randn(first.shape[1], DIRECTIONS, generator=torch.Generator().manual_seed(3))
    directions = directions / directions.norm(dim=0)
    sorted_first, sorted_second = (
        (part @ directions).sort(dim=0).values for part in (first, second)
    )
    return float((sorted_first - sorted_second).abs().mean()) * 255


def latent_statistics(
    params: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns what a search of latents starts from, under the names that ILO's files have.

    Giannis Daras et al., "Intermediate Layer Optimization for Inverse Problems using Deep
    Generative Models", arXiv 2102.07364.

    Returns:
        `mean` and `std` [D] of w before its last activation, and `latent_avg` [D], the mean w.
    """
    model = Generator.from_config(params)
    model.load_state_dict(dict(weights))
    mean, std = moments(model, STATISTICS_OF, 0)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = torch.randn(STATISTICS_OF, model.style_dim, generator=drawn)
        average = model.map(z).mean(dim=0)
    return {"mean": mean, "std": std, "latent_avg": average}
