"""Philox normal, the specification: standard normals that are the same bits on every machine.

Number ``i`` of a block ``(seed, frame, step)`` depends on nothing else:

    w = word i % 4 of Philox4x64-10(counter=(1 + i // 4, step, 0, 0), key=(seed, frame))
    p = ((w >> 12) + 0.5) * 2**-52                    exact, symmetric about 1/2, never 0 or 1
    z = the normal quantile of p by AS241 PPND16, in float64, rounded to float32

NOTE: only + - * / sqrt and bit operations, each rounded once to float64 and in the order written
here, so that any IEEE 754 machine agrees. No ``np.log`` (its vector code differs between CPUs), no
fused multiply-add, no reordering: an implementation in another language has to switch those off.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (Philox4x64-10).
Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics
37(3), 1988 (PPND16).
"""

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]

_CHUNK = 1 << 15  # numbers at a time: intermediates stay in the cache

# PPND16's rational functions: numerators and denominators, highest power first.
_CENTRE = (
    (
        2.5090809287301226727e3,
        3.3430575583588128105e4,
        6.7265770927008700853e4,
        4.5921953931549871457e4,
        1.3731693765509461125e4,
        1.9715909503065514427e3,
        1.3314166789178437745e2,
        3.3871328727963666080e0,
    ),
    (
        5.2264952788528545610e3,
        2.8729085735721942674e4,
        3.9307895800092710610e4,
        2.1213794301586595867e4,
        5.3941960214247511077e3,
        6.8718700749205790830e2,
        4.2313330701600911252e1,
        1.0,
    ),
)
_TAIL = (
    (
        7.74545014278341407640e-4,
        2.27238449892691845833e-2,
        2.41780725177450611770e-1,
        1.27045825245236838258e0,
        3.64784832476320460504e0,
        5.76949722146069140550e0,
        4.63033784615654529590e0,
        1.42343711074968357734e0,
    ),
    (
        1.05075007164441684324e-9,
        5.47593808499534494600e-4,
        1.51986665636164571966e-2,
        1.48103976427480074590e-1,
        6.89767334985100004550e-1,
        1.67638483018380384940e0,
        2.05319162663775882187e0,
        1.0,
    ),
)
_FAR_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        1.24266094738807843860e-3,
        2.65321895265761230930e-2,
        2.96560571828504891230e-1,
        1.78482653991729133580e0,
        5.46378491116411436990e0,
        6.65790464350110377720e0,
    ),
    (
        2.04426310338993978564e-15,
        1.42151175831644588870e-7,
        1.84631831751005468180e-5,
        7.86869131145613259100e-4,
        1.48753612908506148525e-2,
        1.36929880922735805310e-1,
        5.99832206555887937690e-1,
        1.0,
    ),
)

_LN2_HIGH = float.fromhex("0x1.62e42fefa38p-1")  # 42 bits: its product with an exponent is exact
_LN2_LOW = float.fromhex("0x1.ef35793c7673p-45")
_SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
_LOG_TERMS = 12  # of the atanh series; the first one left out is below 1e-19


def philox_normal(seed: int, frame: int, step: int, count: int) -> npt.NDArray[np.float32]:
    """The first `count` standard normals of one block.

    Args:
        seed: 0 to 2**64 - 1.
        frame: 0 to 2**64 - 1.
        step: 0 to 2**64 - 1.
        count: How many numbers.

    Returns:
        float32[count], within ±8.3.

    Raises:
        ValueError: A key is not an unsigned 64-bit number.
    """
    for name, value in (("seed", seed), ("frame", frame), ("step", step)):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"philox_normal: got {name}={value}, expected 0 to 2**64 - 1.")
    words = philox_words(seed, frame, step, count)
    normals = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        normals[part] = normal_quantile(uniform(words[part]))
    return normals


def philox_words(seed: int, frame: int, step: int, count: int) -> Words:
    """The first `count` words of Philox4x64-10 with counter ``(1…, step, 0, 0)``."""
    counter = np.array([0, step, 0, 0], np.uint64)  # NumPy adds one before each block of four
    key = np.array([seed, frame], np.uint64)
    words: Words = np.random.Philox(counter=counter, key=key).random_raw(count)
    return words


def uniform(words: Words) -> Doubles:
    """Numbers in (0, 1), 2**-52 apart and symmetric about 1/2: exact, no rounding."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal_quantile(p: Doubles) -> Doubles:
    """The normal quantile of `p` in (0, 1); AS241, routine PPND16."""
    q = p - 0.5
    centre = 0.180625 - q * q
    z = q * _ratio(_CENTRE, centre)
    outside = np.abs(q) > 0.425
    if outside.any():
        beyond = q[outside]
        r = np.sqrt(minus_log(np.minimum(p[outside], 1.0 - p[outside])))
        tail = np.where(r <= 5.0, _ratio(_TAIL, r - 1.6), _ratio(_FAR_TAIL, r - 5.0))
        z[outside] = np.copysign(tail, beyond)
    return z


def minus_log(x: Doubles) -> Doubles:
    """``-log(x)`` of positive normal numbers below 1/4, within one unit in the last place.

    ``x = m * 2**e`` with m in [sqrt(1/2), sqrt(2)); ``log m = 2 atanh(s)``, s = (m - 1) / (m + 1).
    """
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    exponents = (exponent - low).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _LOG_TERMS + 1))
    for term in range(_LOG_TERMS - 1, 0, -1):
        series = series * square + 1.0 / (2 * term + 1)
    log_mantissa = 2.0 * s + 2.0 * s * (square * series)
    return -(exponents * _LN2_HIGH + (exponents * _LN2_LOW + log_mantissa))


def _ratio(polynomials: tuple[tuple[float, ...], tuple[float, ...]], r: Doubles) -> Doubles:
    """Quotient of two polynomials in `r`, each by Horner's rule."""
    numerator, denominator = (_horner(coefficients, r) for coefficients in polynomials)
    return numerator / denominator


def _horner(coefficients: tuple[float, ...], r: Doubles) -> Doubles:
    value = np.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= r
        value += coefficient
    return value
