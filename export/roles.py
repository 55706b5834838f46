"""Roles: a system may be made of several networks, each with a checkpoint of its own.

``sing_inn``, for one, takes a ``codec``, a ``prior`` and an ``inn``. On the command line a
checkpoint is given its role (``--checkpoint prior=ffhq_10m.pt``) or finds it by its weights.
Where a system has one network only, that network's role has no name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jscc.runtime.errors import UsageError

REFERENCE = "reference:"
REFERENCE_LICENCE = "Apache-2.0"
WEIGHTS = "model.safetensors"  # in a folder of REFERENCES
REFERENCES = Path(__file__).parent / "reference"
TINY_SUFFIX = "-tiny"  # after the name of a latent diffusion model: its own tiny autoencoder
ARCHITECTURE = "architecture:"
ARCHITECTURES = Path(__file__).parent / "architectures"

_ROLE = re.compile(r"([a-z][a-z_]*)=(.+)", re.DOTALL)
_RANK = re.compile(r"^rank:", re.MULTILINE)


def split_role(text: str, roles: Mapping[str, str], option: str) -> tuple[str | None, str]:
    """``ROLE=VALUE`` to role and value; the role is None where `text` names none.

    A system with one unnamed role takes any value as it is, ``=`` included.

    Raises:
        UsageError: ``E_ROLE``, the system has no such role.
    """
    if "" in roles:
        return "", text
    found = _ROLE.fullmatch(text)
    if found is None or (found[1] not in roles and Path(text).exists()):
        return None, text
    if found[1] not in roles:
        raise UsageError(
            "E_ROLE",
            f"{option}: got the role {found[1]!r}, expected one of {', '.join(roles)}. "
            "Write ROLE=VALUE.",
        )
    return found[1], found[2]


def by_role(
    texts: Sequence[str], roles: Mapping[str, str], option: str
) -> dict[str | None, tuple[str, ...]]:
    """The values of a repeated option by role; those that name none are under None."""
    sorted_out: dict[str | None, tuple[str, ...]] = {}
    for text in texts:
        role, value = split_role(text, roles, option)
        sorted_out[role] = (*sorted_out.get(role, ()), value)
    return sorted_out


def reference_folder(name: str, option: str = "--checkpoint") -> Path:
    """The folder of this project's own weights called `name`, for an option of the caller.

    Raises:
        UsageError: ``E_REFERENCE``, there are none of that name.
    """
    at_hand = sorted(path.parent.name for path in REFERENCES.glob("*/config.yaml"))
    if name not in at_hand:
        raise UsageError(
            "E_REFERENCE",
            f"{option} {REFERENCE}NAME: got {name!r}, expected one of "
            f"{', '.join(at_hand) or 'none: no reference weights lie here'}. Pick one, or give a "
            "checkpoint of your own.",
        )
    return REFERENCES / name


def lora_folder(name: str) -> Path:
    """The folder of this project's own LoRA called `name`; the configuration of one has a rank.

    Raises:
        UsageError: ``E_REFERENCE``, there is none of that name.
    """
    configs = {path.parent.name: path for path in REFERENCES.glob("*/config.yaml")}
    loras = sorted(
        each
        for each, path in configs.items()
        if _RANK.search(path.read_text(encoding="utf-8", errors="replace"))
    )
    if name not in loras:
        raise UsageError(
            "E_REFERENCE",
            f"--lora {REFERENCE}NAME: got {name!r}{', which is no LoRA' * (name in configs)}, "
            f"expected one of {', '.join(loras) or 'none: no LoRA of that kind lies here'}. "
            "Pick one, or give a file of your own.",
        )
    return REFERENCES / name


def own_tiny(checkpoints: Sequence[str], reference: str | None) -> str | None:
    """``reference:NAME`` of the tiny autoencoder of the reference weights that are asked for.

    Args:
        checkpoints: What was named as the checkpoint of a system of one network.
        reference: The reference weights that are taken where nothing was.

    Returns:
        None where other weights are asked for, or those have none.
    """
    names = [each.removeprefix(REFERENCE) for each in checkpoints if each.startswith(REFERENCE)]
    if not checkpoints and reference:
        names = [reference]
    if len(names) != max(1, len(checkpoints)):
        return None
    own = f"{names[0]}{TINY_SUFFIX}"
    return f"{REFERENCE}{own}" if (REFERENCES / own / "config.yaml").is_file() else None


def own_lora(text: str, checkpoint: str) -> bool:
    """Whether a LoRA of the reference weights was made for a checkpoint.

    Args:
        text: ``reference:NAME[:WEIGHT]``.
        checkpoint: What was named as the checkpoint, or is taken where nothing was.
    """
    name = text.removeprefix(REFERENCE).partition(":")[0]
    base = checkpoint.removeprefix(REFERENCE)
    return checkpoint.startswith(REFERENCE) and name.startswith(f"{base}-")


def architecture_names() -> tuple[str, ...]:
    """The published networks whose configurations this project carries."""
    return tuple(sorted(path.stem for path in ARCHITECTURES.glob("*.yaml")))


def config_path(text: str) -> Path:
    """The file that `text` means: its path, or ``architecture:NAME``.

    Raises:
        UsageError: ``E_ARCHITECTURE``, there is none of that name.
    """
    if not text.startswith(ARCHITECTURE):
        return Path(text)
    name = text.removeprefix(ARCHITECTURE)
    if name not in architecture_names():
        raise UsageError(
            "E_ARCHITECTURE",
            f"--config {ARCHITECTURE}NAME: got {name!r}, expected one of "
            f"{', '.join(architecture_names())}. Pick one, or give a config.yaml.",
        )
    return ARCHITECTURES / f"{name}.yaml"
