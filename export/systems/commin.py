"""CommIN: SING-INN's predecessor, with one invertible network per SNR and no condition.

Jiakang Chen, Di You, Deniz Gündüz, Pier Luigi Dragotti, "CommIN: Semantic Image Communications as
an Inverse Problem with INN-Guided Diffusion Models", arXiv:2310.01130. The network whose SNR is
nearest to that of the received symbols is chosen inside the graph; everything else, and what is
left open, is as in `jscc.export.systems.sing_inn`, the null-space step included.
"""

from jscc.export.inn_guide import GUIDE_OPTIONS, plan_of
from jscc.export.source import WeightSource
from jscc.export.system import Options, Plan, System


def plan(source: WeightSource, options: Options) -> Plan:
    """SING-Zero's stages, and guided ones beside ``denoise``."""
    return plan_of(source, options, "commin")


SYSTEM = System(
    paper="CommIN: Semantic Image Communications as an Inverse Problem with INN-Guided Diffusion "
    "Models, arXiv:2310.01130",
    plan=plan,
    roles={"codec": "af-96", "prior": "prior", "inn": "commin-96"},
    options=GUIDE_OPTIONS,
)
