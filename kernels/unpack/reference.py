"""Unpack, the specification: received symbols to the planes that networks read.

    planes = [Re(y / h) …, Im(y / h) …],   y = 0 where a symbol never arrived

in float32. The division is Smith's, written out so that every machine agrees: with u the larger
and v the smaller part of h,

    r = v / u,   q = 1 / (u + v r)
    y / h = ((Re y + Im y r) q, (Im y - Re y r) q)       where Re h is the larger part or as large
            ((Re y r + Im y) q, (Im y r - Re y) q)       else

each operation rounded once. Power stays as it is: symbols have unit mean power when they are sent.

Robert L. Smith, "Algorithm 116: Complex Division", Communications of the ACM 5(8), 1962.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Symbols = npt.NDArray[np.complex64]
Mask = npt.NDArray[np.bool_]


def unpack(symbols: Symbols, gain: complex | None = None, erased: Mask | None = None) -> Floats:
    """Symbols to planes, real parts first and imaginary parts behind them.

    Args:
        symbols: complex64[planes / 2, ...].
        gain: Complex factor h that they are divided by; None leaves it in.
        erased: True where a symbol never arrived, of the same shape.

    Returns:
        float32[planes, ...]; not finite where a quotient is none, as with a gain near zero.
    """
    arrived = symbols if erased is None else np.where(erased, np.complex64(0), symbols)
    real, imaginary = arrived.real, arrived.imag
    if gain is not None:
        with np.errstate(all="ignore"):
            real, imaginary = _divide(real, imaginary, np.complex64(gain))
    return np.concatenate([real, imaginary])


def _divide(real: Floats, imaginary: Floats, gain: np.complex64) -> tuple[Floats, Floats]:
    turned = bool(np.abs(gain.real) < np.abs(gain.imag))
    large, small = (gain.imag, gain.real) if turned else (gain.real, gain.imag)
    ratio = np.divide(small, large, dtype=np.float32)
    scale = np.divide(np.float32(1), large + small * ratio, dtype=np.float32)
    if turned:
        return (real * ratio + imaginary) * scale, (imaginary * ratio - real) * scale
    return (real + imaginary * ratio) * scale, (imaginary - real * ratio) * scale
