"""Gathering: what the command line names, turned into one source of weights."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from jscc.export.bank import in_bank, shared_settings
from jscc.export.checkpoint import (
    Checkpoint,
    add_prefix,
    is_bare_controlnet,
    merge,
    read_checkpoint,
    read_config,
)
from jscc.export.hub import locate
from jscc.export.load import rename
from jscc.export.lora import parse_lora, read_lora
from jscc.export.models.tiny_autoencoder import tiny_names, tiny_shape
from jscc.export.recognise import Recognised, family_names, find_family, must_match, recognise
from jscc.export.roles import (
    REFERENCE,
    REFERENCE_LICENCE,
    by_role,
    config_path,
    own_lora,
    own_tiny,
    reference_folder,
)
from jscc.export.source import CheckpointSource, NetworkFiles, RandomSource, configured
from jscc.export.tensor_file import form
from jscc.runtime.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jscc.export.lora import Lora
    from jscc.export.source import Config, WeightSource
    from jscc.export.system import System

CONTROL_PREFIX = "control_model."
CODEC = "codec"
TINY = "tiny"
MAX_LISTED = 10


@dataclass(frozen=True)
class Request:
    """What the command line says about weights.

    Attributes:
        checkpoints: ``[ROLE=]`` and a file, a folder, a hub id or ``reference:NAME``, each.
        configs: ``[ROLE=]`` and a file or ``architecture:NAME``, each; by default what lies beside
            the checkpoints.
        codec: Family of the codec; by default what its weights' names and shapes say.
        revision: Of the hub ids.
        licence: Of the weights that are not this project's, recorded as given.
        random_seed: Draw the weights that the configurations ask for instead of loading any.
        tiny: Files of a tiny autoencoder, one for each half or both in one, or
            ``reference:NAME``.
        loras: ``FILE[:WEIGHT]`` of each low-rank change to merge into the diffusion UNet.
        encodes_text: Whether the export encodes a prompt, for which a LoRA's change of a text
            encoder would be wanted too.
    """

    checkpoints: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()
    codec: str = ""
    revision: str | None = None
    licence: str = "unknown"
    random_seed: int | None = None
    tiny: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    encodes_text: bool = False


@dataclass(frozen=True)
class _Opened:
    """The files of one network, unread, and the configuration beside them.

    Attributes:
        name: What was named first.
        own: ``reference:NAME`` if nothing else was named, else empty.
    """

    name: str
    own: str
    files: tuple[Checkpoint, ...]
    tensors: Mapping[str, torch.Tensor]
    beside: Path | None
    licence: str


@dataclass(frozen=True)
class _Network:
    """One network, ready to be loaded from."""

    files: NetworkFiles
    tensors: Mapping[str, torch.Tensor]
    config: Config
    folder: Path
    receiver: Mapping[str, Any]


def gather(system: System, request: Request) -> tuple[WeightSource, Mapping[str, Any]]:
    """The source that `request` means for `system`, and defaults for its bundle.

    A network of the system for which nothing is named is taken from the reference weights.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, a checkpoint holds weights that no stage takes;
            ``E_CKPT_CONFIG``, there is no configuration and the weights do not tell it;
            ``E_CKPT_FAMILY``, the weights are not of the family that was named; or as
            `jscc.export.lora.read_lora`.
        UsageError: ``E_WEIGHTS``, weights were named and asked to be random; ``E_ROLE``, a role is
            unknown or cannot be told; ``E_FAMILY``, a family is unknown; ``E_REFERENCE``, there
            are no such reference weights; ``E_LORA``, the system has no UNet to change.
    """
    configs = _configs(system, request)
    if request.random_seed is not None:
        return _random(system, request, configs), {}
    opened = _open_all(system, request)
    networks = {
        role: _network(system, role, opened[role], configs.get(role), request)
        for role in system.roles
        if role in opened
    }
    tensors = merge(
        [
            add_prefix(network.tensors, f"{role}." if role else "")
            for role, network in networks.items()
        ]
    )
    if request.tiny and "tiny" not in system.autoencoders:
        raise UsageError(
            "E_VAE",
            "--vae tiny: got it for a system whose autoencoders are "
            f"{', '.join(system.autoencoders) or 'none'}, expected one that has a tiny one, "
            "such as diffjscc. Leave it out.",
        )
    if request.tiny:
        _check_tiny(request.tiny, networks[""].files.name)
    files = {role: network.files for role, network in networks.items()}
    if request.tiny:
        halves, files[TINY] = _tiny(request)
        tensors = merge([tensors, halves])
    config = _by_role({role: network.config for role, network in networks.items()})
    source = CheckpointSource(
        files,
        tensors,
        config,
        next(iter(networks.values())).folder,
        _loras(system, request, config, next(iter(networks.values())).files.name),
    )
    defaults = {key: value for each in networks.values() for key, value in each.receiver.items()}
    return source, defaults


def _check_tiny(tiny: tuple[str, ...], checkpoint: str) -> None:
    """Holds a tiny autoencoder to the latents of a checkpoint, as far as names tell."""
    strange = [name for name in tiny if name.startswith(REFERENCE)]
    for name in strange:
        reference_folder(name.removeprefix(REFERENCE), "--tiny")  # refuses one that is not there
    own = own_tiny((checkpoint,), None)
    if checkpoint.startswith(REFERENCE) and tiny != (own,):
        raise UsageError(
            "E_VAE",
            f"--tiny {tiny[0]}: got it with {checkpoint}, expected a --checkpoint whose latents it "
            "was made for: the reference weights have latents of their own. Name the checkpoint"
            f"{f', or take --tiny {own}' if own else ''}.",
        )
    if strange and not checkpoint.startswith(REFERENCE):
        raise UsageError(
            "E_VAE",
            f"--tiny {strange[0]}: got it with another checkpoint, expected the reference weights "
            "whose latents it was made for. Give the tiny autoencoder of your checkpoint.",
        )


def _tiny(request: Request) -> tuple[Mapping[str, torch.Tensor], NetworkFiles]:
    """Both halves of a tiny autoencoder, below ``tiny.``, and the files they lie in."""
    own = request.tiny[0] if request.tiny[0].startswith(REFERENCE) else ""
    files = tuple(read_checkpoint(_path(name, request)) for name in request.tiny)
    parts = [rename(each.tensors, tiny_names(each.tensors, each.path.name)) for each in files]
    halves = merge(parts)
    tiny_shape(_shapes(halves), " + ".join(request.tiny))
    licence = REFERENCE_LICENCE if own else request.licence
    return add_prefix(halves, f"{TINY}."), NetworkFiles(files, licence, own)


def _loras(system: System, request: Request, config: Config, checkpoint: str) -> tuple[Lora, ...]:
    """The LoRAs of the request, held to the system's UNet before any long work begins."""
    if not request.loras:
        return ()
    build = system.unet
    if build is None:
        raise UsageError(
            "E_LORA",
            f"--lora {request.loras[0]}: got a LoRA for a system without a diffusion UNet in the "
            "latent space, expected none. Leave it out, or use --model diffjscc.",
        )
    for text in request.loras:
        if not text.startswith(REFERENCE):
            continue
        parse_lora(text)  # refuses one that is not there
        if not own_lora(text, checkpoint):
            raise UsageError(
                "E_LORA",
                f"--lora {text}: got it with another checkpoint, expected the reference weights "
                "that it was made for. Give a LoRA of your checkpoint.",
            )
    with torch.device("meta"):
        prefix, unet = configured(lambda: build(config))
    return tuple(
        read_lora(text, prefix, unet, licence=request.licence, encodes_text=request.encodes_text)
        for text in request.loras
    )


def _by_role(configs: Mapping[str, Config]) -> Config:
    return configs.get("", configs)


def _configs(system: System, request: Request) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for role, paths in by_role(request.configs, system.roles, "--config").items():
        if role is None or len(paths) > 1:
            raise UsageError(
                "E_ROLE",
                f"--config: got {', '.join(paths)}, expected one file for each of "
                f"{', '.join(system.roles) or 'the networks'}. Write ROLE=FILE.",
            )
        found[role] = config_path(paths[0])
    return found


def _random(system: System, request: Request, configs: Mapping[str, Path]) -> RandomSource:
    for option, names in (("--checkpoint", request.checkpoints), ("--lora", request.loras)):
        if names:
            raise UsageError(
                "E_WEIGHTS",
                f"--random-weights: got {option} {names[0]} too, expected one of them. Drop one.",
            )
    if not configs:
        raise UsageError(
            "E_WEIGHTS",
            "--random-weights: got no --config, expected the config.yaml of the architecture. "
            "Add --config.",
        )
    paths = {
        role: configs.get(role) or reference_folder(name) / "config.yaml"
        for role, name in system.roles.items()
        if name or role in configs
    }
    settings = {role: read_config(path) for role, path in paths.items()}
    assert request.random_seed is not None
    first = next(iter(paths.values()))
    return RandomSource(_by_role(settings), first.parent, request.random_seed)


def _open_all(system: System, request: Request) -> dict[str, _Opened]:
    """The files of every role, those without a role's name sorted by what they hold."""
    named = by_role(request.checkpoints, system.roles, "--checkpoint")
    opened = {role: _open(names, request) for role, names in named.items() if role is not None}
    for name in named.get(None, ()):
        network = _open((name,), request)
        role = _role_of(network)
        if role not in system.roles or role in opened:
            raise UsageError(
                "E_ROLE",
                f"--checkpoint {name}: got {f'the {role}' if role else 'unknown weights'}, "
                f"expected one of {', '.join(system.roles)}, each once. Write ROLE={name}.",
            )
        opened[role] = network
    for role, reference in system.roles.items():
        if role not in opened and reference:  # without one the system does without the network
            opened[role] = _open((f"{REFERENCE}{reference}",), request)
    return opened


def _open(names: tuple[str, ...], request: Request) -> _Opened:
    own = all(name.startswith(REFERENCE) for name in names)
    paths = [_path(name, request) for name in names]
    files = tuple(read_checkpoint(path) for path in paths)
    licence = REFERENCE_LICENCE if own else request.licence
    alone = names[0] if own and len(set(names)) == 1 else ""
    return _Opened(names[0], alone, files, _merge(files), _config_beside(paths), licence)


def _path(name: str, request: Request) -> Path:
    if name.startswith(REFERENCE):
        return reference_folder(name.removeprefix(REFERENCE))
    return locate(name, revision=request.revision)


def _role_of(opened: _Opened) -> str:
    """What the weights are for, or nothing where that cannot be told."""
    settings = read_config(opened.beside) if opened.beside else {}
    if "family" in settings:
        return find_family(str(settings["family"]), str(opened.beside)).role
    if "target" in settings:  # official configurations are those of DiffJSCC's codecs
        return CODEC
    recognised = recognise(_shapes(opened.tensors))
    return recognised.family.role if recognised else ""


def _network(
    system: System, role: str, opened: _Opened, config: Path | None, request: Request
) -> _Network:
    beside = config or opened.beside
    settings = read_config(beside) if beside else {}
    bank = in_bank(opened.files, system.banks[role]) if role in system.banks else None
    if bank is not None:
        opened = replace(opened, tensors=bank)
        each = [_config_beside([file.path]) for file in opened.files]
        settings = shared_settings([config] if config else each)
    forced = request.codec if role in ("", CODEC) else ""
    recognised = _identify(opened, settings, forced)
    if recognised is None and role not in ("", CODEC):
        raise _unrecognised(role, opened)
    if recognised is None and beside is None:
        raise CheckpointError(
            "E_CKPT_CONFIG",
            f"{opened.name}: got no config.yaml beside it, expected one in the official schema: "
            "widths and the SNR embedding's offset are not in the weights. Add --config FILE.",
        )
    tensors = opened.tensors
    own = {key: value for key, value in settings.items() if key != "receiver"}
    if recognised is not None:
        _check_role(role, opened.name, recognised)
        tensors = rename(tensors, recognised.names)
        _refuse_strangers(opened.name, tensors, recognised.family.below, ())
        own = {**recognised.config, **own, "family": recognised.family.name}
    elif not role:
        _refuse_strangers(opened.name, tensors, system.prefixes, system.ignored)
    receiver = settings.get("receiver", {})  # defaults that a configuration carries for its weights
    return _Network(
        NetworkFiles(opened.files, opened.licence, opened.own),
        tensors,
        own,
        (beside or opened.files[0].path).parent,
        receiver if isinstance(receiver, dict) else {},
    )


def _identify(opened: _Opened, settings: Config, forced: str) -> Recognised | None:
    """The family that was asked for, or that the names tell; None for official configurations."""
    shapes = _shapes(opened.tensors)
    if forced:
        return must_match(find_family(forced, "--codec"), shapes, opened.name)
    if "family" in settings:
        family = find_family(str(settings["family"]), "config, family")
        return must_match(family, shapes, opened.name)
    return None if "target" in settings else recognise(shapes)


def _unrecognised(role: str, opened: _Opened) -> CheckpointError:
    """Only codecs have configurations from elsewhere; any other network is told by its weights."""
    listed = ", ".join(list(opened.tensors)[:MAX_LISTED])
    return CheckpointError(
        "E_CKPT_FAMILY",
        f"--checkpoint {role}={opened.name}: got weights {listed}, …, expected all those of one of "
        f"{', '.join(family_names(role))}. Repeat {role}= for each file if there are several.",
    )


def _check_role(role: str, name: str, recognised: Recognised) -> None:
    if role and recognised.family.role != role:
        raise UsageError(
            "E_ROLE",
            f"--checkpoint {role}={name}: got a network of the family "
            f"{recognised.family.name!r}, which is a {recognised.family.role}, expected a {role}. "
            "Check which file is which.",
        )


def _config_beside(paths: list[Path]) -> Path | None:
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for name in ("config.yaml", f"{path.stem}.yaml"):
            if (folder / name).is_file():
                return folder / name
    return None


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: form(tensors, name)[0] for name in tensors}


def _merge(checkpoints: tuple[Checkpoint, ...]) -> Mapping[str, torch.Tensor]:
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


def _refuse_strangers(
    name: str,
    tensors: Mapping[str, torch.Tensor],
    prefixes: tuple[str, ...],
    ignored: tuple[str, ...],
) -> None:
    strangers = [
        key
        for key in tensors
        if not key.startswith(prefixes)
        and not any(fnmatch.fnmatch(key, pattern) for pattern in ignored)
    ]
    if strangers:
        raise CheckpointError(
            "E_CKPT_KEYS",
            f"{name}: got {len(strangers)} weights that no stage takes "
            f"({', '.join(strangers[:MAX_LISTED])}), expected keys below {', '.join(prefixes)}. "
            "Check that --model fits the checkpoint.",
        )
