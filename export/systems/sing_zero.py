"""SING-Zero: what a codec lost is drawn anew from a diffusion model, what it kept is kept.

Jiakang Chen, Selim F. Yilmaz, Di You, Pier Luigi Dragotti, Deniz Gündüz, "SING: Semantic Image
Communications using Null-Space and INN-Guided Diffusion Models", arXiv:2503.12484, algorithm 1: the
null-space guide of DDNM (Wang et al., arXiv:2212.00490) on the output of any DeepJSCC codec.

The paper asks for a linear operator without fixing one, and states neither steps nor noise. What
is not theirs is this project's choice, see `DEFAULTS` and `SAMPLER`: it was made on held-out tiles
for LPIPS at 1 and 10 dB, with the reference weights, level and eta before the prior's training had
ended. DDNM's own are 100 steps from noise, eta 0.85.

The paper prints DDPM's ancestral update from one level to the next; DDNM's code, the default here,
has DDIM's. ``--sampler ddpm`` is the printed one, at export or of any bundle when it receives, and
``--sampler ddpm --steps 1000 --start noise`` the whole of algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jscc.export.codecs import codec_of
from jscc.export.config import section
from jscc.export.priors import prior_of
from jscc.export.restoration import (
    OPTIONS,
    condition,
    contract,
    denoise,
    loop_of,
    render,
    zero_of,
)
from jscc.export.system import Plan, System
from jscc.runtime.manifest_loops import LoopStep, SamplerSpec

if TYPE_CHECKING:
    from jscc.export.source import WeightSource
    from jscc.export.system import Options

DEFAULTS = {"operator": "avgpool:4", "eta": "0.85"}
SAMPLER = SamplerSpec(name="ddnm", steps=5, start="received", start_level=0.2, guidance=0.0)


def plan(source: WeightSource, options: Options) -> Plan:
    """Codec, null-space target, guided prior and the way back to images."""
    codec = codec_of(source, section(source.config, "codec"), "codec.")
    prior = prior_of(source, section(source.config, "prior"), "prior.")
    zero = zero_of(codec, prior, options.extra, DEFAULTS)
    return Plan(
        variant=zero.variant,
        stages=(codec.encode, codec.decode, condition(zero), denoise(zero), render()),
        signal=codec.signal,
        image=contract(zero, options.short_edge),
        program=("decode", "condition", LoopStep("denoise"), "render"),
        loops={"denoise": loop_of(zero, options, SAMPLER)},
        image_output="image",
        side_inputs=tuple(port.name for port in zero.masked),
    )


SYSTEM = System(
    paper="SING: Semantic Image Communications using Null-Space and INN-Guided Diffusion Models, "
    "arXiv:2503.12484",
    plan=plan,
    roles={"codec": "af-96", "prior": "prior"},
    options=OPTIONS,
)
