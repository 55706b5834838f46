"""Fields: what a value in a manifest may be, as types that `jscc.runtime.declared` checks."""

import re
import unicodedata
from typing import Annotated

from jscc.runtime.declared import Check
from jscc.runtime.ports import DTYPES, Dim, Port
from jscc.runtime.trust import is_flat_name

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_DIM = re.compile(r"[a-z][a-z0-9_]{0,31}(/[1-9][0-9]{0,3})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction, surrogate, line separators


def _is_text(text: str) -> bool:
    return len(text) <= 500 and not any(unicodedata.category(sign) in _HIDDEN for sign in text)


def _is_dim(dim: Dim) -> bool:
    return _DIM.fullmatch(dim) is not None if isinstance(dim, str) else 1 <= dim < 1 << 31


def _is_port(port: Port) -> bool:
    named = _NAME.fullmatch(port.name) is not None and port.dtype in DTYPES
    return named and len(port.shape) <= 8 and all(_is_dim(dim) for dim in port.shape)


def within(low: float, high: float) -> Check:
    """Numbers from `low` to `high`."""
    return Check(lambda value: low <= value <= high, f"{low} to {high}")


Name = Annotated[str, Check(lambda text: _NAME.fullmatch(text) is not None, "a name like 'snr_db'")]
Text = Annotated[str, Check(_is_text, "at most 500 printable characters")]
Sha256 = Annotated[
    str, Check(lambda text: _SHA256.fullmatch(text) is not None, "64 lower-case hex digits")
]
FileName = Annotated[
    str,
    Check(
        is_flat_name,
        "a plain file name, or one in graphs/ (.onnx, .data) or tensors/ (.npy)",
        "E_BUNDLE_PATH",
    ),
]
Ports = Annotated[
    tuple[
        Annotated[
            Port,
            Check(
                _is_port,
                f"a lower-case name, a dtype of {', '.join(DTYPES)}, and 0 to 8 dimensions",
            ),
        ],
        ...,
    ],
    Check(
        lambda ports: len({port.name for port in ports}) == len(ports) > 0,
        "one port or more, each name once",
    ),
]
Span = Annotated[tuple[float, float], Check(lambda span: span[0] <= span[1], "[low, high]")]
