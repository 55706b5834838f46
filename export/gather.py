"""Gathering: what the command line names, turned into one source of weights."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jscc.export.checkpoint import (
    Checkpoint,
    add_prefix,
    is_bare_controlnet,
    merge,
    read_checkpoint,
    read_config,
)
from jscc.export.hub import locate
from jscc.export.source import CheckpointSource, RandomSource
from jscc.runtime.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from jscc.export.source import Config, WeightSource
    from jscc.export.system import System

REFERENCE_LICENCE = "Apache-2.0"
CONTROL_PREFIX = "control_model."


def gather(
    system: System,
    names: tuple[str, ...],
    *,
    config: Path | None,
    revision: str | None,
    licence: str,
    random_seed: int | None,
) -> tuple[WeightSource, Mapping[str, Any]]:
    """The source that `names` (files, folders, hub ids) mean, and defaults for its bundle.

    Without names these are the system's reference weights.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, a checkpoint holds weights that no stage takes;
            ``E_CKPT_CONFIG``, there is no configuration.
        UsageError: ``E_WEIGHTS``, weights were named and asked to be random.
    """
    if random_seed is not None:
        return _random(names, config, random_seed), {}
    if not names:
        folder = system.reference_folder
        names, licence = (str(folder),), REFERENCE_LICENCE
    paths = [locate(name, revision=revision) for name in names]
    checkpoints = [read_checkpoint(path) for path in paths]
    tensors = _merge(checkpoints)
    _refuse_strangers(system, names[0], tensors)
    found = config or _config_beside(paths)
    settings = read_config(found)
    source = CheckpointSource(tuple(checkpoints), tensors, settings, found.parent, licence)
    return source, _defaults(settings)


def _random(names: tuple[str, ...], config: Path | None, seed: int) -> RandomSource:
    if names:
        raise UsageError(
            "E_WEIGHTS",
            f"--random-weights: got --checkpoint {names[0]} too, expected one of them. Drop one.",
        )
    if config is None:
        raise UsageError(
            "E_WEIGHTS",
            "--random-weights: got no --config, expected the config.yaml of the architecture. "
            "Add --config.",
        )
    return RandomSource(read_config(config), config.parent, seed)


def _config_beside(paths: list[Path]) -> Path:
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for name in ("config.yaml", f"{path.stem}.yaml"):
            if (folder / name).is_file():
                return folder / name
    raise CheckpointError(
        "E_CKPT_CONFIG",
        f"{paths[0]}: got no config.yaml beside it, expected one in the official schema: widths "
        "and the SNR embedding's offset are not in the weights. Add --config FILE.",
    )


def _defaults(settings: Config) -> Mapping[str, Any]:
    """Receiver defaults that a configuration carries for its own weights (``receiver:``)."""
    defaults = settings.get("receiver", {})
    return defaults if isinstance(defaults, dict) else {}


def _merge(checkpoints: list[Checkpoint]) -> Mapping[str, torch.Tensor]:
    """The weights of all files; a name in two of them is taken from the last.

    A bare ControlNet, as DiffBIR publishes it, gets the prefix that it has in the whole.
    """
    parts = [
        add_prefix(each.tensors, CONTROL_PREFIX)
        if is_bare_controlnet(each.tensors)
        else each.tensors
        for each in checkpoints
    ]
    return merge(parts)


def _refuse_strangers(system: System, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    strangers = [
        key
        for key in tensors
        if not key.startswith(system.prefixes)
        and not any(fnmatch.fnmatch(key, pattern) for pattern in system.ignored)
    ]
    if strangers:
        raise CheckpointError(
            "E_CKPT_KEYS",
            f"{name}: got {len(strangers)} weights that no stage takes "
            f"({', '.join(strangers[:10])}), expected keys below {', '.join(system.prefixes)}. "
            "Check that --model fits the checkpoint.",
        )
