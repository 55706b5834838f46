"""Admission: what arrives is checked, equalised and turned into the planes that networks read.

Nothing is padded, reordered or converted in silence: symbols that do not meet the signal contract
are refused with a reason.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from jscc.kernels.unpack.reference import unpack
from jscc.runtime.csi import Csi
from jscc.runtime.errors import CsiError, SymbolsError
from jscc.runtime.manifest import Signal
from jscc.runtime.ports import describe

Symbols = npt.NDArray[np.complex64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_SUSPECT_DB = 3.0  # gap between declared and measured SNR that is worth a word,
_SUSPECT_SIGMAS = 6.0  # when chance does not explain it


@dataclass(frozen=True)
class Admitted:
    """One image's symbols, ready for the networks.

    Attributes:
        symbols: complex64[planes / 2, rows, columns], zero where one never arrived.
        divisor: What equalisation divides them by; None where it leaves them as they are.
        csi: As declared.
        snr_db: As the networks are told it.
        power: Mean power of the symbols as received.
        snr_db_measured: What `power` speaks for; None where there is no noise to be seen.
        suspect: Whether the two SNRs contradict each other.
        missing: Symbols that never arrived.
    """

    symbols: Symbols
    divisor: complex | None
    csi: Csi
    snr_db: float
    power: float
    snr_db_measured: float | None
    suspect: bool
    missing: int

    @cached_property
    def planes(self) -> Floats:
        """float32[planes, rows, columns], equalised: real parts, imaginary parts behind."""
        return unpack(self.symbols, self.divisor)

    @property
    def clamped(self) -> bool:
        """Whether the declared SNR was outside the trained range."""
        return self.snr_db != self.csi.snr_db

    @property
    def equalised_snr_db(self) -> float:
        """SNR after equalisation."""
        return self.csi.snr_db + 10.0 * math.log10(self.csi.gain_power)


def shape_symbols(
    symbols: Symbols, shape: tuple[int, int, int], *, flat: bool, where: str
) -> Symbols:
    """Check dtype and count of `symbols` and give them their `shape`.

    Args:
        symbols: One image's.
        shape: (planes / 2, rows, columns) of the image that was sent.
        flat: Whether a flat array is accepted.
        where: Names them in messages.

    Raises:
        SymbolsError: ``E_SYM_DTYPE``, not a native complex64 array; ``E_SYM_COUNT``, another
            count or shape.
    """
    check_dtype(symbols, where)
    count = math.prod(shape)
    if flat and symbols.shape == (count,):
        return symbols.reshape(shape)
    if symbols.shape != shape:
        wanted = f"complex64[{','.join(map(str, shape))}]" + (f" or [{count}]" if flat else "")
        raise SymbolsError(
            "E_SYM_COUNT",
            f"{where}: got {describe(symbols)}, {symbols.size} in all, expected {wanted}, {count} "
            "in all. Give the size of the image that was sent, or receive the symbols again.",
        )
    return symbols


def planes_received(
    shape: tuple[int, ...], grid: tuple[int, int], signal: Signal, *, where: str
) -> int:
    """How many planes the symbols of one image make.

    Args:
        shape: Of the symbols: [planes / 2, rows, columns], or [count].
        grid: Rows and columns of the image that was sent.
        signal: The bundle's contract.
        where: Names the symbols in messages.

    Raises:
        SymbolsError: ``E_SYM_COUNT``, the transmitter may choose among several rates and this is
            none of them.
    """
    if not signal.rates:
        return signal.planes  # `shape_symbols` sees what does not fit
    positions = math.prod(grid)
    whole = len(shape) == 3 or (len(shape) == 1 and shape[0] % positions == 0)
    planes = 2 * (shape[0] if len(shape) == 3 else shape[0] // positions) if whole else 0
    if planes not in signal.rates:
        rates = ", ".join(str(rate // 2 * positions) for rate in signal.rates)
        raise SymbolsError(
            "E_SYM_COUNT",
            f"{where}: got complex64[{','.join(map(str, shape))}], expected {rates} symbols: "
            f"{', '.join(map(str, signal.rates))} planes of {grid[0]}x{grid[1]} positions. "
            "Give the size of the image that was sent, or receive the symbols again.",
        )
    return planes


def check_dtype(symbols: Symbols, where: str) -> None:
    """Hold `symbols` to native complex64.

    Raises:
        SymbolsError: ``E_SYM_DTYPE``.
    """
    got = describe(symbols)
    if not got.startswith("complex64["):
        raise SymbolsError(
            "E_SYM_DTYPE",
            f"{where}: got {got}, expected complex64 in this machine's byte order. Convert them.",
        )


def admit(
    symbols: Symbols,
    erased: Mask | None,
    csi: Csi,
    signal: Signal,
    *,
    strict_snr: bool,
    where: str,
) -> Admitted:
    """Check one image's symbols and SNR and equalise.

    Args:
        symbols: complex64[planes / 2, rows, columns].
        erased: True where a symbol never arrived, of the same shape; such symbols count as zero.
        csi: What is known of the channel.
        signal: The bundle's contract.
        strict_snr: Refuse an SNR outside the trained range instead of clamping it.
        where: Names them in messages.

    Raises:
        SymbolsError: ``E_SYM_NONFINITE`` or ``E_SYM_POWER``.
        CsiError: ``E_CSI_RANGE``, an SNR out of range under `strict_snr`; ``E_CSI``, a gain so
            small that equalisation overflows.
    """
    snr_db = _clamp(csi, signal, strict_snr=strict_snr, where=where)
    arrived = symbols if erased is None else np.where(erased, np.complex64(0), symbols)
    missing = 0 if erased is None else int(np.count_nonzero(erased))
    _check_finite(arrived, where)
    count = arrived.size - missing
    power = _mean_power(arrived, count)
    _check_power(arrived, power, csi, snr_db, signal, where)
    measured, suspect = _measure(power, count, csi)
    divided = signal.equalisation == "zero_forcing" and csi.gain != 1.0
    admitted = Admitted(
        symbols=arrived,
        divisor=csi.gain if divided else None,
        csi=csi,
        snr_db=snr_db,
        power=power,
        snr_db_measured=measured,
        suspect=suspect,
        missing=missing,
    )
    _check_quotients(admitted, where)
    return admitted


def _clamp(csi: Csi, signal: Signal, *, strict_snr: bool, where: str) -> float:
    low, high = signal.snr_db_range
    if strict_snr and not low <= csi.snr_db <= high:
        raise CsiError(
            "E_CSI_RANGE",
            f"{where}: got an SNR of {csi.snr_db:g} dB, expected {low:g} to {high:g} dB, the range "
            "of the training. Allow the nearest SNR to be used, or use another bundle.",
        )
    return min(max(csi.snr_db, low), high)


def _check_finite(symbols: Symbols, where: str) -> None:
    wrong = ~np.isfinite(symbols.ravel())
    if wrong.any():
        raise SymbolsError(
            "E_SYM_NONFINITE",
            f"{where}: got {int(np.count_nonzero(wrong))} symbols that are not finite, the first "
            f"at {int(np.argmax(wrong))}, expected finite ones. Receive them again.",
        )


def _mean_power(symbols: Symbols, count: int) -> float:
    """Over the `count` symbols that arrived; the others are zero."""
    real, imaginary = symbols.real.astype(np.float64), symbols.imag.astype(np.float64)
    total = float(np.sum(real * real) + np.sum(imaginary * imaginary))
    return total / count if count else 0.0


def _check_power(
    symbols: Symbols, power: float, csi: Csi, snr_db: float, signal: Signal, where: str
) -> None:
    """Hold the power, relative to what this channel should deliver, to the contract."""
    low, high = signal.power_range
    expected = csi.gain_power + Csi(snr_db).noise_power
    if not low <= power / expected <= high:
        raise SymbolsError(
            "E_SYM_POWER",
            f"{where}: got a mean power of {power:.3g}, expected {low * expected:.3g} to "
            f"{high * expected:.3g} for this gain and SNR. Scale the symbols so that the sender's "
            "have unit mean power, and check their byte order.",
        )
    if symbols.size > 1 and bool((symbols == symbols.flat[0]).all()):
        raise SymbolsError(
            "E_SYM_POWER",
            f"{where}: got {symbols.size} times the symbol {symbols.flat[0]:.3g}, expected "
            "symbols that differ. The radio delivers no signal.",
        )


def _measure(power: float, count: int, csi: Csi) -> tuple[float | None, bool]:
    """SNR by power, given unit power sent; and whether it contradicts the declared one."""
    signal, noise = csi.gain_power, csi.noise_power
    excess = power - signal
    measured = None if excess <= 0.0 else -10.0 * math.log10(excess)
    spread = math.sqrt((2.0 * signal * noise + noise * noise) / count)
    apart = measured is None or abs(measured - csi.snr_db) > _SUSPECT_DB
    return measured, apart and abs(excess - noise) > _SUSPECT_SIGMAS * spread


def _check_quotients(admitted: Admitted, where: str) -> None:
    """Hold the gain to what finite symbols can be divided by."""
    if admitted.divisor is not None and not np.isfinite(admitted.planes).all():
        raise CsiError(
            "E_CSI",
            f"{where}: got a gain of {admitted.csi.gain:.3g}, expected one that the symbols can be "
            "divided by. Estimate the gain again.",
        )
