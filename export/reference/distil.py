"""Distil stage: a low-rank change of the UNet with which few steps do what many did.

The student is, by its target, a consistency function (Yang Song, Prafulla Dhariwal, Mark Chen, Ilya
Sutskever, "Consistency Models", arXiv 2303.01469, section 3): from any noise level it answers with
the end of the teacher's trajectory. That end is computed, by a few deterministic steps of the
teacher, as in Eric Luhman, Troy Luhman, "Knowledge Distillation in Iterative Generative Models for
Improved Sampling Speed", arXiv 2101.02388, not bootstrapped. It is learnt at the levels of
receptions of 1, 2 and 4 steps (that paper: of 1), where the student's own steps before lead. LPIPS
and absolute error of the rendered picture to the one that was sent are added; with no weight on the
target, they alone are learnt, and the teacher is not asked.

    noise --student, no gradient--> state at level t --student--> clean --render--> picture
                                         |                          |                  |
                                         +--teacher, few steps--> target       what was sent
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jscc.export.models.unet_names import diffusers_names
from jscc.export.reference.codec import psnr_db, receive
from jscc.export.reference.diffusion import Denoiser, alphas_cumprod
from jscc.export.reference.precision import mixed
from jscc.export.reference.tiles import draw_crops
from jscc.export.systems.diffjscc import Render
from jscc.runtime.errors import DataError
from jscc.runtime.samplers import ddim, lcm
from jscc.runtime.schedule import Schedule
from jscc.runtime.spacing import trailing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export.reference.perceptual import Lpips
    from jscc.export.reference.teacher import Link, Teacher
    from jscc.export.reference.tiles import Tiles
    from jscc.runtime.table import Row

LARGER: Final = 2 / 3
CROSS: Final = ".attn2."
EVALUATED_SNR_DB: Final = 7.0
EVALUATED_AT_ONCE: Final = 4
EVALUATED_EVERY: Final = 4


class LowRank(nn.Module):
    """Change of one layer, as `jscc.export.lora` reads it; nothing at first."""

    alpha: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        rank = min(rank, *layer.weight.flatten(1).shape)
        self.shape = layer.weight.shape
        down, up = (rank, *self.shape[1:]), (self.shape[0], rank, *(1,) * (len(self.shape) - 2))
        self.lora_down = _Matrix(torch.randn(down) / layer.weight[0].numel() ** 0.5)
        self.lora_up = _Matrix(torch.zeros(up))
        self.register_buffer("alpha", torch.tensor(float(rank)))

    def forward(self) -> Tensor:
        """Returns what is to be added to the layer's weight."""
        product = self.lora_up.weight.flatten(1) @ self.lora_down.weight.flatten(1)
        return product.reshape(self.shape)


class _Matrix(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class Student(nn.Module):
    """Changes of a UNet's layers, named in kohya's style, less its beginning ``lora_unet_``.

    Those of cross-attention are left alone: the context is a token of zeros.

    Attributes:
        layers: The layers' names in the denoiser, by their names here.
    """

    def __init__(self, denoiser: Denoiser, rank: int) -> None:
        super().__init__()
        names = (name for name in diffusers_names(denoiser.unet) if CROSS not in name)
        self.layers = {name.replace(".", "_"): name for name in names}
        for flat, name in self.layers.items():
            layer = denoiser.unet.get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            self.add_module(flat, LowRank(layer, rank))

    def weights(self, denoiser: Denoiser) -> dict[str, Tensor]:
        """Returns the changed weights by their names in `denoiser`, which stays as it is."""
        names = {flat: f"unet.{name}.weight" for flat, name in self.layers.items()}
        return {
            name: denoiser.get_parameter(name) + self.get_submodule(flat)()
            for flat, name in names.items()
        }


@dataclass(frozen=True)
class Hint:
    """What a denoiser is told of a reception.

    Attributes:
        latent: Of the codec's reconstruction, scaled, [B,z,h,w].
        snr_db: [B].
    """

    latent: Tensor
    snr_db: Tensor


@dataclass(frozen=True)
class DistilStage:
    """Random crops, received, denoised in few steps and rendered.

    Attributes:
        params: ``rank`` of the change; ``steps``, those of the receptions; ``weights`` of the
            squared error to the ``target``, of the absolute error of the ``picture`` and of its
            ``lpips``.
        lpips: None leaves LPIPS out of the loss.
        teacher_steps: From the state to the target.

    Raises:
        DataError: ``E_NETWORK``, nothing is to be learnt.
        UsageError: ``E_STEPS``, there are fewer noise levels than steps.
    """

    tiles: Tiles
    params: Mapping[str, Any]
    teacher: Teacher
    device: torch.device
    batch: int
    crop: int
    last_crop: int
    lpips: Lpips | None
    name: str
    teacher_steps: int = 4
    model: Student = field(init=False)
    denoiser: Denoiser = field(init=False)
    link: Link = field(init=False)
    renderer: Render = field(init=False)
    schedule: Schedule = field(init=False)

    def __post_init__(self) -> None:
        _check(self.params, lpips=self.lpips is not None)
        denoiser, link = self.teacher.denoiser(), self.teacher.link()
        student = Student(denoiser, int(self.params["rank"])).to(self.device)
        object.__setattr__(self, "denoiser", denoiser)
        object.__setattr__(self, "link", link)
        object.__setattr__(self, "model", student)
        object.__setattr__(self, "renderer", Render(_Picture(link)).to(self.device))
        object.__setattr__(self, "schedule", Schedule(alphas_cumprod(self.teacher.params).numpy()))
        for steps in self.params["steps"]:
            self.rows(steps)  # refuses more than there are levels

    @property
    def matrices(self) -> set[str]:
        """None: an orthogonal step would use all of the low rank at once."""
        return set()

    def loss(self, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the errors of a batch at one level; the last third sees larger crops."""
        size = self.crop if progress < LARGER else self.last_crop
        count = max(1, self.batch * self.crop**2 // size**2)
        image = draw_crops(self.tiles.train, count=count, size=size, generator=generator)
        image = image.to(self.device)
        steps = self.params["steps"][_below(len(self.params["steps"]), generator)]
        rows = self.rows(steps)
        last = _below(len(rows), generator)
        weights, terms = self.params["weights"], {}
        with mixed(self.device):
            with torch.no_grad():
                received, snr_db = self.link.send(image, generator)
                hint = Hint(self.link.latent(received), snr_db)
                state = self._follow(self.model, rows[:last], hint, generator)
            clean = self._clean(self.model, state, level_of(rows[last]), hint)
            picture = self.renderer(clean, received).float()
            if weights["target"]:
                with torch.no_grad():
                    target = self._target(state, level_of(rows[last]), hint)
                terms["target"] = (clean - target).square().mean()
            if self.lpips is not None:
                terms["lpips"] = self.lpips(2 * picture - 1, 2 * image - 1).mean()
        terms["picture"] = 2 * (picture - image).abs().mean()
        loss = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
        return terms | {"loss": loss}

    def rows(self, steps: int) -> tuple[Row, ...]:
        """The steps of multistep consistency sampling, the noisiest first."""
        levels = lcm.timesteps(self.schedule, steps, self.schedule.last)
        return lcm.rows(self.schedule, levels).rows

    def _follow(
        self,
        model: nn.Module,
        rows: tuple[Row, ...],
        hint: Hint,
        generator: torch.Generator,
    ) -> Tensor:
        """Returns the state after `rows`, from noise."""
        state = self._noise(hint, generator)
        for row in rows:
            clean = self._clean(model, state, level_of(row), hint)
            state = row.a * state + row.b * clean
            if row.s:
                state = state + row.s * self._noise(hint, generator)
        return state

    def _noise(self, hint: Hint, generator: torch.Generator) -> Tensor:
        return torch.randn(hint.latent.shape, generator=generator).to(self.device)

    def _target(self, state: Tensor, level: int, hint: Hint) -> Tensor:
        """Returns the end of the teacher's trajectory through `state`."""
        levels = trailing(self.schedule, min(self.teacher_steps, level + 1), level)
        for row in ddim.rows(self.schedule, levels).rows:
            clean = self._clean(None, state, level_of(row), hint)
            state = row.a * state + row.b * clean
        return state

    def _clean(self, model: nn.Module | None, state: Tensor, level: int, hint: Hint) -> Tensor:
        """Returns the clean latent that the student, or the teacher if None, sees in `state`."""
        timestep = torch.full((len(state),), float(level), device=self.device)
        changed = {}
        if model is not None:
            assert isinstance(model, Student)
            changed = model.weights(self.denoiser)
        inputs = (state, hint.latent, timestep, hint.snr_db)
        noise: Tensor = functional_call(self.denoiser, changed, inputs)
        share = float(self.schedule.alphas_cumprod[level])
        clean: Tensor = (state - (1 - share) ** 0.5 * noise.float()) / share**0.5
        return clean

    def settle(self, model: nn.Module) -> None:
        """Does nothing: the averaged weights are ready as they are."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Returns PSNR in dB and LPIPS of some held-out tiles received at 7 dB, by steps.

        ``target`` is the squared error of one step to the end of the teacher's trajectory.
        """
        sums: dict[str, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(1)
        for chunk in torch.split(self.tiles.held_out[::EVALUATED_EVERY], EVALUATED_AT_ONCE):
            image = (chunk.float() / 255).to(self.device)
            with mixed(self.device):
                received = receive(self.link.codec, image, EVALUATED_SNR_DB, generator).float()
                snr_db = torch.full((len(image),), EVALUATED_SNR_DB, device=self.device)
                hint = Hint(self.link.latent(received), snr_db)
                figures = {}
                for steps in self.params["steps"]:
                    clean = self._follow(model, self.rows(steps), hint, generator)
                    picture = self.renderer(clean, received).float().clamp(0, 1)
                    figures[f"psnr_db@{steps}"] = psnr_db(picture, image)
                    if self.lpips is not None:
                        figures[f"lpips@{steps}"] = self.lpips(2 * picture - 1, 2 * image - 1)
                state = self._noise(hint, generator)
                error = self._clean(model, state, self.schedule.last, hint)
                error = error - self._target(state, self.schedule.last, hint)
                figures["target"] = error.square().mean(dim=(1, 2, 3))
            for name, values in figures.items():
                sums.setdefault(name, []).append(values)
        return {name: float(torch.cat(values).mean()) for name, values in sums.items()}


def _check(params: Mapping[str, Any], *, lpips: bool) -> None:
    """Hold the weights to a loss that is not always 0."""
    weights = params["weights"]
    if not any(weight > 0 for name, weight in weights.items() if lpips or name != "lpips"):
        raise DataError(
            "E_NETWORK",
            f"weights: got {weights}{'' if lpips else ' without weights of LPIPS'}, expected one "
            "above 0 that is learnt from. Raise one.",
        )


class _Picture(nn.Module):
    """The first stage's decoder, from scaled latents to [0,1]."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link

    def forward(self, latent: Tensor) -> Tensor:
        return self.link.picture(latent)


def level_of(row: Row) -> int:
    """Returns the noise level at which a row asks the network."""
    assert row.t is not None
    return row.t


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
