"""LDPC: 5G's channel code at rate 2/3 and 16-QAM, through Sionna's physical layer on PyTorch.

Codewords of up to (4096, 6144) with 5G's rate matching and interleaver, 16-QAM by Gray's mapping,
exact bit probabilities from the demapper, 20 iterations of belief propagation (sum-product).
Jakob Hoydis et al., "Sionna: An Open-Source Library for Next-Generation Physical Layer Research",
arXiv 2203.11854; the code is that of 3GPP TS 38.212, section 5.3.2.

NOTE: for the host; no other folder may import Sionna.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder
from sionna.phy.mapping import Demapper, Mapper

from jscc.benchmarks.digital.budget import BITS_PER_SYMBOL, Codeword
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError

Symbols = npt.NDArray[np.complex64]
Bits = npt.NDArray[np.uint8]

ITERATIONS = 20
_SCRAMBLE = 0x5C4A3B1E  # seed of the bits that both ends add


class Modem:
    """Bytes to symbols, and whether they arrive.

    Bits are scrambled, so that padding does not favour some symbols: the mean power is 1.

    Args:
        codewords: What one message consists of.
    """

    def __init__(self, codewords: tuple[Codeword, ...]) -> None:
        self._codewords = codewords
        self._carried = sum(codeword.carried for codeword in codewords)

    def send(self, message: bytes) -> Symbols:
        """The symbols of `message`, padded with zeros.

        Raises:
            UsageError: ``E_MESSAGE``, it is longer than the codewords carry.
        """
        parts = []
        for codeword, bits in zip(self._codewords, self._split(message), strict=True):
            encoder, _ = _code(codeword)
            coded = encoder(torch.from_numpy(bits.astype(np.float32))[None])
            parts.append(_mapper()(coded)[0].numpy())
        return np.concatenate(parts).astype(np.complex64)

    def arrives(self, message: bytes, received: Symbols, csi: Csi) -> bool:
        """Whether every codeword of `message` decodes from `received`.

        One that does not loses the message. A real receiver finds that out by a checksum, whose
        few bits are not charged.
        """
        noise_power = torch.tensor(csi.noise_power / csi.gain_power, dtype=torch.float32)
        equalised = (received / complex(csi.gain)).astype(np.complex64)
        begin = 0
        for codeword, bits in zip(self._codewords, self._split(message), strict=True):
            end = begin + codeword.coded // BITS_PER_SYMBOL
            part = torch.from_numpy(equalised[begin:end])[None]
            begin = end
            _, decoder = _code(codeword)
            decided = decoder(_demapper()(part, noise_power))[0].numpy()
            if not np.array_equal(decided, bits):
                return False
        return True

    def _split(self, message: bytes) -> list[Bits]:
        """The scrambled bits of each codeword."""
        bits = np.unpackbits(np.frombuffer(message, np.uint8))
        if len(bits) > self._carried:
            raise UsageError(
                "E_MESSAGE",
                f"message: got {len(message)} bytes, expected at most {self._carried // 8}. "
                "Send what fits into the codewords.",
            )
        padded = np.pad(bits, (0, self._carried - len(bits)))
        scrambled = padded ^ _scrambling(self._carried)
        ends = np.cumsum([codeword.carried for codeword in self._codewords])
        return np.split(scrambled, ends[:-1])


@cache
def _code(codeword: Codeword) -> tuple[LDPC5GEncoder, LDPC5GDecoder]:
    encoder = LDPC5GEncoder(
        codeword.carried, codeword.coded, num_bits_per_symbol=BITS_PER_SYMBOL, device="cpu"
    )
    decoder = LDPC5GDecoder(encoder, num_iter=ITERATIONS, return_infobits=True, hard_out=True)
    return encoder, decoder


@cache
def _mapper() -> Mapper:
    return Mapper("qam", BITS_PER_SYMBOL, device="cpu")


@cache
def _demapper() -> Demapper:
    return Demapper("app", "qam", BITS_PER_SYMBOL, device="cpu")


@cache
def _scrambling(count: int) -> Bits:
    return np.random.default_rng(_SCRAMBLE).integers(0, 2, count, np.uint8)
