"""Recognising: which published network a checkpoint holds, told by its names and shapes.

One `Family` is one architecture with all its widths. Nothing of the file is read: names and
shapes decide. What these cannot tell (the order of an attention's heads, the range of SNRs that a
network was trained on, …) has a default in the family's module; ``config.yaml`` beside the
checkpoint, or ``--config``, says otherwise.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jscc.export.models import (
    adm_config,
    af,
    bourtsoulatze,
    commin,
    ddim_unet,
    deepjscc_cnn,
    generative,
    inn,
    lpips,
    pdjscc,
    stylegan2,
    swin,
    swinjscc,
)
from jscc.runtime.errors import CheckpointError, UsageError

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

MAX_LISTED = 10
WRAPPERS = re.compile(r"(^|\.)(?:module|_orig_mod)\.")  # of DataParallel and torch.compile
SHELLS = ("model.", "net.")  # put before every name by trainers
# What training leaves in a checkpoint: losses, metrics, the networks that judged, counters.
PASSENGERS = re.compile(
    r"(^|\.)(\w*lpips\w*|\w*metrics?\w*|\w*loss\w*|[dD]iscriminator\w*|total_ops|total_params)(\.|$)"
)


def same(name: str) -> str | None:
    """A checkpoint's names are the module's."""
    return name


@dataclass(frozen=True)
class Family:
    """One architecture, all its widths.

    Attributes:
        name: The word of ``--codec`` and of ``family:`` in a configuration.
        role: What such a network is for: ``codec``, ``prior``, ``inn``, ``generator`` or ``lpips``.
        config_of: Parameters of the module that has these (canonical) names and shapes; None if
            they are no network of this family.
        canonical: A checkpoint's name → the module's; None leaves the tensor out. Passengers
            (losses, metrics, discriminators) and wrappers' prefixes are gone before.
        below: Every canonical name starts with one of these; other weights are an error.
    """

    name: str
    role: str
    config_of: Callable[[Shapes], Config | None]
    canonical: Callable[[str], str | None] = same
    below: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint was found to hold.

    Attributes:
        family: Its architecture.
        config: ``family`` and the parameters of its module.
        names: Name in the checkpoint → name in the module, of all weights that are used.
    """

    family: Family
    config: Config
    names: Mapping[str, str]


HALVES = ("encoder.", "decoder.")

FAMILIES: tuple[Family, ...] = (
    Family("adm", "prior", adm_config.config_of, below=adm_config.BELOW),
    Family("ddim", "prior", ddim_unet.config_of, below=ddim_unet.BELOW),
    Family("af", "codec", af.config_of, af.canonical, below=HALVES),
    Family("pdjscc", "codec", pdjscc.config_of, pdjscc.canonical, below=HALVES),
    Family("bourtsoulatze", "codec", bourtsoulatze.config_of, below=HALVES),
    Family("generative", "codec", generative.config_of, below=HALVES),
    Family("swinjscc", "codec", swinjscc.config_of, below=HALVES),
    Family(
        "diffjscc_cnn",
        "codec",
        deepjscc_cnn.config_of,
        deepjscc_cnn.canonical,
        below=("E.", "G."),
    ),
    Family("diffjscc_swin", "codec", swin.config_of, below=HALVES),
    Family("stylegan2", "generator", stylegan2.config_of),
    Family("lpips", "lpips", lpips.config_of, lpips.canonical),
    Family("inn", "inn", inn.config_of, inn.canonical, below=("lifts.", "snr.")),
    Family("commin", "inn", commin.config_of, below=("nets.",)),
)


def family_names(role: str = "") -> tuple[str, ...]:
    """The families' names, of all roles or of one."""
    return tuple(each.name for each in FAMILIES if role in ("", each.role))


def find_family(name: str, where: str) -> Family:
    """The family called `name`.

    Raises:
        UsageError: ``E_FAMILY``, there is none of that name.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UsageError(
        "E_FAMILY",
        f"{where}: got {name!r}, expected one of {', '.join(family_names())}. Pick one, or leave "
        "it out: the weights' names tell.",
    )


def recognise(shapes: Shapes) -> Recognised | None:
    """The network that has these names and shapes, if it is of a known family."""
    for family in FAMILIES:
        found = match(family, shapes)
        if found is not None:
            return found
    return None


def match(family: Family, shapes: Shapes) -> Recognised | None:
    """`shapes` read as a network of `family`, or None where they are not."""
    names = {}
    for name, short in _bare(shapes).items():
        canonical = family.canonical(short)
        if canonical is not None:
            names[name] = canonical
    config = family.config_of({new: shapes[name] for name, new in names.items()})
    return None if config is None else Recognised(family, {"family": family.name, **config}, names)


def must_match(family: Family, shapes: Shapes, where: str) -> Recognised:
    """`shapes` read as a network of `family`.

    Raises:
        CheckpointError: ``E_CKPT_FAMILY``, they are not one.
    """
    found = match(family, shapes)
    if found is not None:
        return found
    listed = ", ".join(list(shapes)[:MAX_LISTED])
    raise CheckpointError(
        "E_CKPT_FAMILY",
        f"{where}: got weights {listed}, …, expected those of a network of the family "
        f"{family.name!r}. Name another family, or none.",
    )


def _bare(shapes: Shapes) -> dict[str, str]:
    """Checkpoint name → name without wrappers and shells, of everything that is no passenger."""
    names = {name: WRAPPERS.sub(r"\1", name) for name in shapes}
    names = {name: short for name, short in names.items() if not PASSENGERS.search(short)}
    shell = next((each for each in SHELLS if all(s.startswith(each) for s in names.values())), "")
    return {name: short.removeprefix(shell) for name, short in names.items()}
