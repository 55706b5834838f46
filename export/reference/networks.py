"""Networks: what this project trains besides DiffJSCC's, each with its configuration and budget.

A network is one entry of `NETWORKS`: a folder of that name in ``export/reference`` holds what
comes out. Nothing here is a published value; the sizes are what a CPU can train in an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from jscc.export.models.af import Af
from jscc.export.models.commin import Commin
from jscc.export.models.generative import REFERENCE as GENERATIVE
from jscc.export.models.inn import Inn
from jscc.export.reference.af import AfStage
from jscc.export.reference.codec import EVALUATED_SNR_DB
from jscc.export.reference.distil import DistilStage
from jscc.export.reference.generative_codec import generative_stage
from jscc.export.reference.inn import InnStage
from jscc.export.reference.loop import Stage, read_checkpoint
from jscc.export.reference.optimizer import BETAS
from jscc.export.reference.perceptual import Lpips
from jscc.export.reference.perceptual_codec import perceptual_stage
from jscc.export.reference.prior import PriorStage
from jscc.export.reference.stylegan import StyleganStage, latent_statistics
from jscc.export.reference.teacher import read_teacher
from jscc.export.reference.tiles import Tiles
from jscc.export.reference.tiny_autoencoder import TinyAutoencoderStage
from jscc.export.roles import REFERENCES
from jscc.runtime.errors import DataError

SNR_DB: Final = (0.0, 14.0)
WEIGHTS: Final = "model.safetensors"  # of a packed network, in its folder
DEVICES: Final = ("cpu", "cuda")  # kinds that every network has a budget and a batch for


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        tiles: Training pictures.
        out: Folder of the checkpoints, where a network finds those that it builds on.
        device: Where to train.
        batch: Crops a step.
        crops: Edge of the crops, and that of the last third of the budget, in pixels.
        lpips_weights: Folder of the LPIPS weights, or None.
    """

    tiles: Tiles
    out: Path
    device: torch.device
    batch: int
    crops: tuple[int, int]
    lpips_weights: Path | None

    @property
    def lpips(self) -> Lpips | None:
        """The distance, on the device, if there are weights of it."""
        return None if self.lpips_weights is None else Lpips(self.lpips_weights).to(self.device)

    def trained(self, name: str) -> dict[str, Tensor]:
        """Averaged weights of a network that was trained before this one.

        They are its checkpoint's in `out`; where there is none, those that lie packed in
        ``export/reference``.

        Raises:
            DataError: ``E_NETWORK``, there are neither.
        """
        path = self.out / f"{name}.pt"
        if path.exists():
            weights: dict[str, Tensor] = read_checkpoint(path)["ema"]
            return weights
        if (REFERENCES / name).is_dir():
            return unpack(REFERENCES / name)
        raise DataError(
            "E_NETWORK",
            f"{path}: got no checkpoint, expected that of {name}, which this network builds "
            f"on. Train it first: --network {name}.",
        )


def unpack(folder: Path) -> dict[str, Tensor]:
    """Packed weights of this project in `folder`, floats as float32."""
    tensors = load_file(folder / WEIGHTS)
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
    }


@dataclass(frozen=True)
class Network:
    """How one network is trained and what its configuration says.

    Attributes:
        config: What ``config.yaml`` holds beside the weights.
        stage: Makes the stage that the loop runs.
        lr: Largest learning rate.
        minutes: Default budget per device type.
        batch: Crops a step per device type.
        crops: Edge of the crops at first, and in the last third of the budget, in pixels.
        prefix: Put before every weight's name when packed.
        clip: Largest norm of the gradient.
        betas: AdamW's decay rates.
        critic_lr: Largest learning rate of the critic, where there is one; None takes `lr`.
        beside: From configuration and weights to tensors that are packed beside the weights.
    """

    config: Mapping[str, Any]
    stage: Callable[[Mapping[str, Any], Job], Stage]
    lr: float
    minutes: Mapping[str, float] = field(default_factory=lambda: {"cpu": 45, "cuda": 60})
    batch: Mapping[str, int] = field(default_factory=lambda: {"cpu": 16, "cuda": 64})
    crops: tuple[int, int] = (128, 256)
    prefix: str = ""
    clip: float = 1.0
    betas: tuple[float, float] = BETAS
    critic_lr: float | None = None
    beside: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None


def _af(name: str, begin: str | None) -> Callable[[Mapping[str, Any], Job], Stage]:
    def make(config: Mapping[str, Any], job: Job) -> Stage:
        return AfStage(
            job.tiles,
            config,
            job.device,
            batch=job.batch,
            crop=job.crops[0],
            last_crop=job.crops[1],
            name=name,
            begin={} if begin is None else job.trained(begin),
        )

    return make


def _af_network(name: str, planes: int, begin: str | None, minutes: float) -> Network:
    config = {
        "family": "af",
        "c_feat": 48,
        "c_out": planes,
        "SNR_low": SNR_DB[0],
        "SNR_high": SNR_DB[1],
    }
    return Network(
        config=config,
        stage=_af(name, begin),
        lr=2e-3,
        minutes={"cpu": minutes, "cuda": 60},
    )


def _prior(config: Mapping[str, Any], job: Job) -> Stage:
    crop, last_crop = job.crops
    return PriorStage(
        job.tiles, config, job.device, batch=job.batch, crop=crop, last_crop=last_crop
    )


def _generative(config: Mapping[str, Any], job: Job) -> Stage:
    return generative_stage(
        job.tiles,
        config,
        job.device,
        batch=job.batch,
        crop=job.crops[0],
        last_crop=job.crops[1],
        lpips=job.lpips,
        name="generative-96",
    )


def _perceptual(config: Mapping[str, Any], job: Job) -> Stage:
    return perceptual_stage(
        job.tiles,
        config,
        job.device,
        batch=job.batch,
        crop=job.crops[0],
        last_crop=job.crops[1],
        lpips=job.lpips,
        name="pdjscc-48",
    )


def _stylegan(config: Mapping[str, Any], job: Job) -> Stage:
    return StyleganStage(job.tiles, config, job.device, batch=job.batch, name="stylegan2")


def _inn(name: str, codec: str) -> Callable[[Mapping[str, Any], Job], Stage]:
    def make(config: Mapping[str, Any], job: Job) -> Stage:
        network = Af.from_config(NETWORKS[codec].config)
        network.load_state_dict(job.trained(codec))
        model = Commin.from_config(config) if "nets" in config else Inn.from_config(config)
        return InnStage(
            job.tiles,
            network.to(job.device).eval().requires_grad_(requires_grad=False),
            model.to(job.device),
            tuple(config.get("snrs_db", SNR_DB)),
            job.device,
            batch=job.batch,
            crop=job.crops[0],
            name=name,
        )

    return make


def _tiny(config: Mapping[str, Any], job: Job) -> Stage:
    crop, last_crop = job.crops
    return TinyAutoencoderStage(
        job.tiles,
        config,
        read_teacher(job.out, job.device).link(),
        job.device,
        batch=job.batch,
        crop=crop,
        last_crop=last_crop,
        lpips=job.lpips,
        name="diffjscc-tiny",
    )


def _few_step(config: Mapping[str, Any], job: Job) -> Stage:
    crop, last_crop = job.crops
    return DistilStage(
        job.tiles,
        config,
        read_teacher(job.out, job.device),
        job.device,
        batch=job.batch,
        crop=crop,
        last_crop=last_crop,
        lpips=job.lpips,
        name="diffjscc-few-step",
    )


_INN: Final = {"lifts": 4, "levels": 2, "slicing": "clean"}

# Planes: reals per 16x16 block, so cbr = planes / 1536.
NETWORKS: Final[dict[str, Network]] = {
    "af-96": _af_network("af-96", 16, None, 60),
    "af-48": _af_network("af-48", 32, "af-96", 25),
    "af-384": _af_network("af-384", 4, "af-96", 25),
    "prior": Network(
        config={
            "family": "adm",
            "image_size": 128,
            "in_channels": 3,
            "model_channels": 32,
            "out_channels": 3,
            "num_res_blocks": 1,
            "attention_resolutions": [8],
            "channel_mult": [1, 2, 3, 3],
            "num_head_channels": 32,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "use_new_attention_order": False,
        },
        stage=_prior,
        lr=1.5e-3,
        minutes={"cpu": 90, "cuda": 120},
        crops=(64, 128),
    ),
    "generative-96": Network(
        config={**GENERATIVE, "SNR_low": SNR_DB[0], "SNR_high": SNR_DB[1]},
        stage=_generative,
        lr=3e-3,
        minutes={"cpu": 45, "cuda": 60},
        batch={"cpu": 8, "cuda": 64},
    ),
    "pdjscc-48": Network(
        config={
            "family": "pdjscc",
            "c_feat": 64,
            "c_out": 2,
            "SNR_list": [1, 4, 7, 10, 13],
        },
        stage=_perceptual,
        lr=1e-3,
        minutes={"cpu": 40, "cuda": 90},
        batch={"cpu": 6, "cuda": 48},
        # Convolutions at full size are most of the work: smaller crops, more of them.
        crops=(96, 192),
        critic_lr=1e-3,
    ),
    "stylegan2": Network(
        config={
            "family": "stylegan2",
            "channels": [64, 64, 64, 32, 16],
            "style_dim": 64,
            "n_mlp": 4,
            "lr_mlp": 0.01,
        },
        stage=_stylegan,
        lr=3e-3,
        minutes={"cpu": 35, "cuda": 90},
        batch={"cpu": 24, "cuda": 64},
        crops=(64, 64),
        clip=10.0,
        betas=(0.0, 0.99),
        beside=latent_statistics,
    ),
    "inn-96": Network(
        config={
            "family": "inn",
            **_INN,
            "blocks": 2,
            "width": 32,
            "condition": 64,
            "hidden": 32,
            "snr": True,
            "SNR_low": SNR_DB[0],
            "SNR_high": SNR_DB[1],
        },
        stage=_inn("inn-96", "af-96"),
        lr=1e-3,
        minutes={"cpu": 25, "cuda": 20},
        batch={"cpu": 8, "cuda": 32},
    ),
    "commin-96": Network(
        config={
            "family": "commin",
            **_INN,
            "blocks": 1,
            "width": 24,
            "nets": len(EVALUATED_SNR_DB),
            "snrs_db": list(EVALUATED_SNR_DB),
        },
        stage=_inn("commin-96", "af-96"),
        lr=1e-3,
        minutes={"cpu": 20, "cuda": 20},
        batch={"cpu": 8, "cuda": 32},
    ),
    "diffjscc-tiny": Network(
        config={"latent": 4, "width": 16, "pooled": False},
        stage=_tiny,
        lr=2.5e-3,
        minutes={"cpu": 25, "cuda": 60},
        batch={"cpu": 4, "cuda": 64},
        crops=(96, 192),
    ),
    "diffjscc-few-step": Network(
        config={
            "rank": 16,
            "steps": [1, 2, 4],
            "weights": {"target": 0.0, "picture": 1.0, "lpips": 0.5},
        },
        stage=_few_step,
        lr=3e-4,
        minutes={"cpu": 30, "cuda": 60},
        batch={"cpu": 4, "cuda": 32},
        crops=(128, 256),
        prefix="lora_unet_",
    ),
}
