"""CommIN: SING-INN's predecessor, with one invertible network per SNR and no condition.

Jiakang Chen, Di You, Deniz Gündüz, Pier Luigi Dragotti, "CommIN: Semantic Image Communications as
an Inverse Problem with INN-Guided Diffusion Models", arXiv:2310.01130. The network whose SNR is
nearest to that of the received symbols is chosen inside the graph; everything else, and what is
left open, is as in `jscc.export.systems.sing_inn`, the null-space step included.

The networks come in one checkpoint with ``snrs_db`` in its configuration, or as published, one a
file: ``--checkpoint inn=a.pth --checkpoint inn=b.pth --option snrs_db=1,7``.
"""

import math

from jscc.export.config import section
from jscc.export.inn_guide import GUIDE_OPTIONS, plan_of
from jscc.export.source import WeightSource
from jscc.export.system import Options, Plan, System
from jscc.runtime.errors import UsageError


def plan(source: WeightSource, options: Options) -> Plan:
    """SING-Zero's stages, and guided ones beside ``denoise``.

    Raises:
        UsageError: ``E_OPTION``, ``snrs_db`` is no list of different numbers.
    """
    config = section(source.config, "inn")
    if "snrs_db" in options.extra:
        config = {**config, "snrs_db": _snrs_db(options.extra["snrs_db"])}
    return plan_of(source, options, "commin", config)


def _snrs_db(text: str) -> list[float]:
    try:
        snrs_db = [float(part) for part in text.split(",")]
    except ValueError:
        snrs_db = []
    if not (snrs_db and len(set(snrs_db)) == len(snrs_db) and all(map(math.isfinite, snrs_db))):
        raise UsageError(
            "E_OPTION",
            f"--option snrs_db: got {text!r}, expected different numbers, the SNR in dB of each "
            "file given as inn, such as 1,7,13. Correct it.",
        )
    return snrs_db


SYSTEM = System(
    paper="CommIN: Semantic Image Communications as an Inverse Problem with INN-Guided Diffusion "
    "Models, arXiv:2310.01130",
    plan=plan,
    roles={"codec": "af-96", "prior": "prior", "inn": "commin-96"},
    options={
        **GUIDE_OPTIONS,
        "snrs_db": "SNR in dB that each file given as inn was trained at, in their order: 1,7,13",
    },
    banks={"inn": "inn"},
)
