"""Budget: how many bytes an image may have for a cbr, through a real code and through an ideal one.

At cbr 1/48 a Kodak image has 768 * 512 * 3 / 48 = 24,576 symbols; with 16-QAM these are 98,304
coded bits, 16 codewords of 6144, which carry 65,536 bits: 8,192 bytes.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError

CODE_RATE = Fraction(2, 3)
BITS_PER_SYMBOL = 4  # 16-QAM
LONGEST = 6144  # coded bits of the longest codeword
SHORTEST = 48  # below that 5G's code has no useful form
LEAST_SYMBOLS = SHORTEST // BITS_PER_SYMBOL


@dataclass(frozen=True)
class Codeword:
    """`carried` bits in `coded` ones."""

    carried: int
    coded: int


def symbols_of(cbr: Fraction, size: tuple[int, int]) -> int:
    """Complex symbols for an image of `size` (height, width) at `cbr`.

    Raises:
        UsageError: ``E_CBR``, too few for a codeword.
    """
    count = math.floor(cbr * 3 * size[0] * size[1])
    if count < LEAST_SYMBOLS:
        raise UsageError(
            "E_CBR",
            f"--cbr: got {cbr}, which is {count} symbols for {size[0]}x{size[1]} pixels, expected "
            f"{LEAST_SYMBOLS} or more. Take a larger cbr or larger images.",
        )
    return count


def codewords(symbols: int) -> tuple[Codeword, ...]:
    """The codewords that fill `symbols`, as few as there can be and as equal as there can be.

    Where the symbols do not make whole codewords of `LONGEST`, all are a little shorter: 5G's code
    takes any length, by filler bits that are not sent and parity bits that are left out.
    """
    count = -(-symbols * BITS_PER_SYMBOL // LONGEST)
    share, more = divmod(symbols, count)
    lengths = (BITS_PER_SYMBOL * (share + (index < more)) for index in range(count))
    return tuple(Codeword(math.floor(CODE_RATE * length), length) for length in lengths)


def coded_bytes(symbols: int) -> int:
    """Whole bytes that the codewords of `symbols` carry."""
    return sum(codeword.carried for codeword in codewords(symbols)) // 8


def ideal_bytes(symbols: int, csi: Csi) -> int:
    """Whole bytes that `symbols` carry at the capacity of the channel in state `csi`.

    That is log2(1 + SNR |h|^2) bits a symbol: an ideal code whose rate the transmitter fits to
    the state that it meets, fading included.
    """
    snr = csi.gain_power / csi.noise_power
    return math.floor(symbols * math.log2(1 + snr) / 8)
