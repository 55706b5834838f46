"""Train one of the networks of `networks`: from pictures to packed weights.

    python -m jscc.export.reference.train_networks --network NAME --data DIR --out DIR

A training can be interrupted and continued with `--resume`; `--begin` trains packed weights on,
without what the optimiser knew. What comes out lies in
``OUT/packed/NAME``: ``model.safetensors`` (float16) and ``config.yaml``.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import save

from jscc.export.reference.loop import Plan, read_checkpoint, run
from jscc.export.reference.networks import DEVICES, NETWORKS, WEIGHTS, Job, Network, unpack
from jscc.export.reference.tiles import read_tiles
from jscc.runtime.errors import DataError
from jscc.runtime.terminal import Parser
from jscc.runtime.terminal import run as run_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


def pack(name: str, folder: Path, network: Network | None = None) -> Path:
    """Write the averaged weights in `folder` as ``packed/NAME``, floats as float16.

    Args:
        name: Of the network.
        folder: Where it was trained.
        network: What was trained, if with another configuration than the usual one.

    Raises:
        ValueError: A weight is beyond float16.
    """
    network = NETWORKS[name] if network is None else network
    out = folder / "packed" / name
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    weights = read_checkpoint(folder / f"{name}.pt")["ema"]
    beside = {} if network.beside is None else network.beside(network.config, weights)
    for key, value in (weights | dict(beside)).items():
        kept = value.half() if value.is_floating_point() else value
        if not bool(torch.isfinite(kept).all()):
            raise ValueError(f"pack: got values beyond float16 in {key}, expected none.")
        tensors[network.prefix + key] = kept.contiguous().clone()
    part = out / f"{WEIGHTS}.part"
    part.write_bytes(save(tensors))
    os.replace(part, out / WEIGHTS)
    text = yaml.safe_dump(dict(network.config), sort_keys=False)
    (out / "config.yaml").write_text(text, encoding="utf-8")
    return out


def begin(model: nn.Module, folder: Path, prefix: str) -> None:
    """Give `model` the packed weights in `folder`, which may hold more than it takes.

    Raises:
        DataError: ``E_NETWORK``, some are missing or of another shape.
    """
    if not (folder / WEIGHTS).is_file():
        raise DataError(
            "E_NETWORK", f"--begin {folder}: got no {WEIGHTS}, expected one. Name its folder."
        )
    packed = unpack(folder)
    wanted = model.state_dict()
    unfit = [
        name
        for name, value in wanted.items()
        if prefix + name not in packed or packed[prefix + name].shape != value.shape
    ]
    if unfit:
        raise DataError(
            "E_NETWORK",
            f"--begin {folder}: got no {unfit[0]!r} of shape {tuple(wanted[unfit[0]].shape)} "
            f"({len(unfit)} like it), expected the packed weights of this network. Name them.",
        )
    model.load_state_dict({name: packed[prefix + name] for name in wanted})


def device_from(text: str) -> torch.device:
    """A device that the networks have batches and budgets for.

    Raises:
        ArgumentTypeError: It is of another kind.
    """
    if text.partition(":")[0] not in DEVICES:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {' or '.join(DEVICES)}")
    return torch.device(text)


def setting(text: str) -> tuple[str, Any]:
    """One ``NAME=VALUE``; the value in YAML.

    Raises:
        ArgumentTypeError: It is none.
    """
    name, equals, value = text.partition("=")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = None
    if not (name and equals) or parsed is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=VALUE")
    return name, parsed


def configured(config: Mapping[str, Any], settings: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns `config` with other values; ``weights.lpips`` is ``lpips`` in ``weights``.

    Raises:
        DataError: ``E_NETWORK``, there is no such name, or its value is of another kind or beyond
            what can be trained.
    """
    changed = copy.deepcopy(dict(config))
    for name, value in settings:
        *above, last = name.split(".")
        inner: Any = changed
        for part in above:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise DataError(
                "E_NETWORK",
                f"--set: got {name!r}, expected one of {', '.join(_names(config))}. "
                "Name what this network has.",
            )
        taken = _taken(value, inner[last], signed="snr" in last.lower())
        if taken is None:
            raise DataError(
                "E_NETWORK",
                f"--set {name}: got {value!r}, expected a value such as {inner[last]!r}. "
                "Give one of that kind.",
            )
        inner[last] = taken
    return changed


def _names(config: Mapping[str, Any], above: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names += _names(value, f"{above}{name}.") if isinstance(value, dict) else [above + name]
    return names


def _taken(value: object, usual: object, *, signed: bool) -> object:
    """`value` in the kind of the usual one, or None where it is of another or beyond it.

    Args:
        value: As YAML has it, for which 1e-3 is text.
        usual: What the configuration has.
        signed: Whether a number may be below the usual ones' end, as those in dB may.
    """
    if isinstance(usual, list):
        if not isinstance(value, list) or not value:
            return None
        items = [_taken(item, usual[0], signed=signed) for item in value]
        return None if None in items else items
    if isinstance(usual, float):
        number = _number(value)
        return number if math.isfinite(number) and (signed or usual < 0 or number >= 0) else None
    if type(value) is not type(usual) or isinstance(value, dict):
        return None
    if type(usual) is int and usual > 0 and not signed and not value > 0:  # type: ignore[operator]
        return None
    return value


def _number(value: object) -> float:
    """As float, or NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m jscc.export.reference.train_networks", description=__doc__)
    parser.add_argument("--network", choices=sorted(NETWORKS), required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of tars of 256x256 tiles, or of pictures"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, logs and packed weights"
    )
    parser.add_argument(
        "--device", type=device_from, default="cpu", help=f"{' or '.join(DEVICES)} (default cpu)"
    )
    parser.add_argument("--minutes", type=float, help="budget; default: the network's own")
    parser.add_argument("--steps", type=int, help="budget in steps instead of minutes")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--begin", type=Path, metavar="DIR", help="packed weights to train on")
    parser.add_argument("--lpips-weights", type=Path, help="folder of LPIPS weights")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another value in the network's configuration, such as weights.lpips=0; repeatable",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    usual = NETWORKS[options.network]
    network = dataclasses.replace(usual, config=configured(usual.config, options.set))
    device = options.device
    minutes = options.minutes if options.minutes is not None else network.minutes[device.type]
    plan = Plan(
        lr=network.lr,
        weight_decay=0.01,
        minutes=None if options.steps is not None else minutes,
        steps=options.steps,
        clip=network.clip,
        betas=network.betas,
        critic_lr=network.critic_lr,
        seed=options.seed,
    )
    torch.manual_seed(options.seed)
    job = Job(
        read_tiles(options.data),
        options.out,
        device,
        network.batch[device.type],
        network.crops,
        options.lpips_weights,
    )
    stage = network.stage(network.config, job)
    if options.begin is not None:
        begin(stage.model, options.begin, network.prefix)
    run(stage, plan, options.out, resume=options.resume, config=network.config)
    pack(options.network, options.out, network)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("train_networks", main, sys.argv[1:]))
