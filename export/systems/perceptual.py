"""Perceptual: learned joint source-channel coding against a discriminator and LPIPS.

Jun Wang, Sixian Wang, Jincheng Dai, Zhongwei Si, Dekun Zhou, Kai Niu, "Perceptual Learned
Source-Channel Coding for High-Fidelity Image Semantic Transmission", arXiv:2205.13120.

Encoder and generator are one codec; the discriminator and the losses were for training only and
are left out. ADJSCC checkpoints of the same authors have the same networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jscc.export.system import System
from jscc.export.systems import deepjscc
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from jscc.export.source import WeightSource
    from jscc.export.system import Options, Plan

FAMILY = "pdjscc"


def plan(source: WeightSource, options: Options) -> Plan:
    """Encode and decode (the generator), nothing else.

    Raises:
        CheckpointError: ``E_CKPT_FAMILY``, the codec is another one.
    """
    got = source.config.get("family", source.config.get("target", "nothing known"))
    if got != FAMILY:
        raise CheckpointError(
            "E_CKPT_FAMILY",
            f"perceptual: got a codec of {got!r}, expected the family {FAMILY!r}. "
            "Export others with --model deepjscc.",
        )
    return deepjscc.plan(source, options)


SYSTEM = System(
    paper="Perceptual Learned Source-Channel Coding for High-Fidelity Image Semantic "
    "Transmission, arXiv:2205.13120",
    plan=plan,
    roles={"": "pdjscc-48"},
)
