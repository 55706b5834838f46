"""SING-INN: an invertible network says, at every step, what the drawn image should have been.

Jiakang Chen, Selim F. Yilmaz, Di You, Pier Luigi Dragotti, Deniz Gündüz, "SING: Semantic Image
Communications using Null-Space and INN-Guided Diffusion Models", arXiv:2503.12484, algorithm 2;
the network of You et al., "INDIGO+", conditioned by the SNR. Published INDIGO+ checkpoints, which
are conditioned by a vector that another network estimates, are taken too, with a fixed vector.

The paper leaves open the operator A, the number of steps and zeta for each SNR: the defaults here
are this project's own, see `jscc.export.inn_guide`.
"""

from jscc.export.inn_guide import GUIDE_OPTIONS, plan_of
from jscc.export.source import WeightSource
from jscc.export.system import Options, Plan, System


def plan(source: WeightSource, options: Options) -> Plan:
    """SING-Zero's stages, and guided ones beside ``denoise``."""
    return plan_of(source, options, "inn")


SYSTEM = System(
    paper="SING: Semantic Image Communications using Null-Space and INN-Guided Diffusion Models, "
    "arXiv:2503.12484",
    plan=plan,
    roles={"codec": "af-96", "prior": "prior", "inn": "inn-96"},
    options=GUIDE_OPTIONS,
)
