"""GenerativeJSCC: an encoder and a generator as decoder, trained together end to end.

Erdemir, Tung, Dragotti, Gündüz, "Generative Joint Source-Channel Coding for Semantic Image
Transmission", arXiv:2211.13772. Neither code nor weights of the authors are public; the reference
weights are this project's own network, see `jscc.export.models.generative`.

Any other pair of torch modules, (image, snr) → symbols and (symbols, snr) → image, is exported from
Python, where the modules already are: `jscc.export.modules.export_modules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jscc.export.system import System
from jscc.export.systems import deepjscc
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from jscc.export.source import WeightSource
    from jscc.export.system import Options, Plan

FAMILY = "generative"


def plan(source: WeightSource, options: Options) -> Plan:
    """Encode and decode, nothing else.

    Raises:
        CheckpointError: ``E_CKPT_FAMILY``, the codec is another one.
    """
    got = source.config.get("family", source.config.get("target", "nothing known"))
    if got != FAMILY:
        raise CheckpointError(
            "E_CKPT_FAMILY",
            f"generative_jscc: got a codec of {got!r}, expected the family {FAMILY!r}. Export "
            "other networks from Python with jscc.export.modules.export_modules.",
        )
    return deepjscc.plan(source, options)


SYSTEM = System(
    paper="Generative Joint Source-Channel Coding for Semantic Image Transmission, "
    "arXiv:2211.13772",
    plan=plan,
    roles={"": "generative-96"},
)
