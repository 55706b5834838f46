"""Train: the recipe of the reference weights, one command from pictures to packed weights.

    python -m jscc.export.reference.train --data DIR --out DIR --lpips-weights DIR

The stages run one after the other, or one at a time with `--stage`, and each can be interrupted and
continued with `--resume`:

    codec ───────┐
                 ├─▶ diffusion ─▶ pack
    autoencoder ─┤                 ▲
                 └─▶ decoder ──────┘   (the autoencoder's, trained further)
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from jscc.export.models.autoencoder import Autoencoder
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.reference.codec import CodecStage
from jscc.export.reference.config import reference_config
from jscc.export.reference.diffusion import DiffusionStage
from jscc.export.reference.first_stage import FirstStage
from jscc.export.reference.loop import Plan, State, read_checkpoint, run
from jscc.export.reference.pack import pack
from jscc.export.reference.pairs import Pairs, make_pairs
from jscc.export.reference.perceptual import Lpips
from jscc.export.reference.tiles import Tiles, read_tiles
from jscc.runtime.terminal import Parser
from jscc.runtime.terminal import run as run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES: Final = ("codec", "autoencoder", "decoder", "diffusion")
# Without these there is nothing to pack; the decoder is an improvement.
PACKED: Final = ("codec", "autoencoder", "diffusion")


@dataclass(frozen=True)
class Preset:
    """What a machine can carry, per stage; `minutes` is the default budget of each."""

    device: str
    batch: dict[str, int]
    crop: int
    last_crop: int
    first_stage_crop: int
    first_stage_last_crop: int
    lr: dict[str, float]
    minutes: dict[str, float]
    latent_crop: int
    snrs_per_tile: int
    mirrored: bool


PRESETS: Final = {
    "cpu": Preset(
        device="cpu",
        batch={"codec": 16, "autoencoder": 8, "decoder": 8, "diffusion": 64},
        crop=128,
        last_crop=256,
        first_stage_crop=96,
        first_stage_last_crop=192,
        lr={"codec": 3e-3, "autoencoder": 2.5e-3, "decoder": 1.5e-3, "diffusion": 2e-3},
        minutes={"codec": 50, "autoencoder": 33, "decoder": 40, "diffusion": 40},
        latent_crop=16,
        snrs_per_tile=2,
        mirrored=False,
    ),
    "gpu": Preset(
        device="cuda",
        batch={"codec": 64, "autoencoder": 32, "decoder": 32, "diffusion": 256},
        crop=128,
        last_crop=256,
        first_stage_crop=128,
        first_stage_last_crop=256,
        lr={"codec": 3e-3, "autoencoder": 2.5e-3, "decoder": 1.5e-3, "diffusion": 2e-3},
        minutes={"codec": 120, "autoencoder": 120, "decoder": 60, "diffusion": 300},
        latent_crop=32,
        snrs_per_tile=8,
        mirrored=True,
    ),
}


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        limit: The budget of each stage, in minutes or steps.
        lpips_weights: Folder of the LPIPS weights; None leaves them out of the loss.
    """

    data: Path
    out: Path
    preset: Preset
    config: dict[str, Any]
    limit: dict[str, Plan]
    lpips_weights: Path | None = None
    resume: bool = False
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Where the preset trains."""
        return torch.device(self.preset.device)


def train(recipe: Recipe, stages: Sequence[str], *, stop_after: int | None = None) -> None:
    """Trains `stages` in order and, after the last of them, packs what is there."""
    tiles = read_tiles(recipe.data)
    for stage in stages:
        # The initial weights depend on the seed and the stage only, not on what ran before.
        torch.manual_seed(recipe.seed)
        _RUN[stage](recipe, tiles, stop_after)
    if all((recipe.out / f"{stage}.pt").exists() for stage in PACKED):
        pairs, _ = _pairs(recipe, tiles)
        pack(recipe.out, recipe.out / "packed", _scaled_config(recipe, pairs))


def _scaled_config(recipe: Recipe, pairs: Pairs) -> dict[str, Any]:
    """Returns the configuration with the scale that gives these latents unit deviation."""
    config = copy.deepcopy(recipe.config)
    config["params"]["scale_factor"] = round(1 / float(pairs.clean.float().std()), 5)
    return config


def _params(recipe: Recipe, section: str) -> dict[str, Any]:
    params: dict[str, Any] = recipe.config["params"][section]["params"]
    return params


def _train_codec(recipe: Recipe, tiles: Tiles, stop_after: int | None) -> State:
    preset = recipe.preset
    stage = CodecStage(
        tiles,
        _params(recipe, "preprocess_config"),
        recipe.device,
        batch=preset.batch["codec"],
        crop=preset.crop,
        last_crop=preset.last_crop,
    )
    return run(
        stage, recipe.limit["codec"], recipe.out, resume=recipe.resume, stop_after=stop_after
    )


def _train_autoencoder(recipe: Recipe, tiles: Tiles, stop_after: int | None) -> State:
    return _train_first_stage("autoencoder", recipe, tiles, stop_after)


def _train_decoder(recipe: Recipe, tiles: Tiles, stop_after: int | None) -> State:
    return _train_first_stage("decoder", recipe, tiles, stop_after)


def _train_first_stage(name: str, recipe: Recipe, tiles: Tiles, stop_after: int | None) -> State:
    preset = recipe.preset
    finished = recipe.out / "autoencoder.pt"
    lpips = None if recipe.lpips_weights is None else Lpips(recipe.lpips_weights).to(recipe.device)
    stage = FirstStage(
        tiles,
        _params(recipe, "first_stage_config"),
        recipe.device,
        batch=preset.batch[name],
        crop=preset.first_stage_crop,
        last_crop=preset.first_stage_last_crop,
        lpips=lpips,
        encoder_from=read_checkpoint(finished)["ema"] if name == "decoder" else None,
        name=name,
    )
    return run(stage, recipe.limit[name], recipe.out, resume=recipe.resume, stop_after=stop_after)


def _train_diffusion(recipe: Recipe, tiles: Tiles, stop_after: int | None) -> State:
    pairs, held_out = _pairs(recipe, tiles)
    stage = DiffusionStage(
        pairs,
        held_out,
        _scaled_config(recipe, pairs)["params"],
        recipe.device,
        batch=recipe.preset.batch["diffusion"],
        crop=recipe.preset.latent_crop,
    )
    return run(
        stage, recipe.limit["diffusion"], recipe.out, resume=recipe.resume, stop_after=stop_after
    )


_RUN: Final = {
    "codec": _train_codec,
    "autoencoder": _train_autoencoder,
    "decoder": _train_decoder,
    "diffusion": _train_diffusion,
}


def _pairs(recipe: Recipe, tiles: Tiles) -> tuple[Pairs, Pairs]:
    """Reads `pairs.pt`, or makes it of the finished codec and autoencoder."""
    path = recipe.out / "pairs.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        return Pairs(**saved["train"]), Pairs(**saved["held_out"])
    codec = DeepJscc.from_config(_params(recipe, "preprocess_config"))
    codec.load_state_dict(read_checkpoint(recipe.out / "codec.pt")["ema"])
    autoencoder = Autoencoder.from_config(_params(recipe, "first_stage_config"))
    autoencoder.load_state_dict(read_checkpoint(recipe.out / "autoencoder.pt")["ema"])
    codec.to(recipe.device).eval()
    autoencoder.to(recipe.device).eval()
    params = _params(recipe, "preprocess_config")
    # Mirrored here, for latents cannot be mirrored afterwards.
    mirrored = [tiles.train.flip(3)] if recipe.preset.mirrored else []
    shown = torch.cat([tiles.train, *mirrored])
    made = [
        make_pairs(
            pictures,
            codec,
            autoencoder,
            snr_range_db=(float(params["SNR_low"]), float(params["SNR_high"])),
            snrs=recipe.preset.snrs_per_tile,
            generator=torch.Generator().manual_seed(recipe.seed + 1),
            device=recipe.device,
        )
        for pictures in (shown, tiles.held_out)
    ]
    part = path.with_suffix(".part")
    torch.save({"train": made[0].dump(), "held_out": made[1].dump()}, part)
    os.replace(part, path)
    return made[0], made[1]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m jscc.export.reference.train", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of tars of 256x256 tiles, or of pictures"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, logs and packed weights"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--minutes", type=float, help="budget of each stage; default: the preset's")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument(
        "--lpips-weights",
        type=Path,
        help="folder of AlexNet features and LPIPS heads (safetensors)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    limit = {
        stage: replace(
            Plan(lr=preset.lr[stage], weight_decay=0.01, seed=options.seed),
            minutes=options.minutes if options.minutes is not None else preset.minutes[stage],
        )
        for stage in STAGES
    }
    recipe = Recipe(
        data=options.data,
        out=options.out,
        preset=preset,
        config=reference_config(),
        limit=limit,
        lpips_weights=options.lpips_weights,
        resume=options.resume,
        seed=options.seed,
    )
    train(recipe, STAGES if options.stage == "all" else [options.stage])
    return 0


if __name__ == "__main__":
    sys.exit(run_command("train", main, sys.argv[1:]))
