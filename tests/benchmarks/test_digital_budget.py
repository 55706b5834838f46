"""Budgets of the digital baselines: the identity of the papers' set-up, and every other length."""

import math
from fractions import Fraction

import pytest

from jscc.benchmarks.digital.budget import (
    LONGEST,
    Codeword,
    coded_bytes,
    codewords,
    ideal_bytes,
    symbols_of,
)
from jscc.runtime.csi import Csi
from jscc.runtime.errors import UsageError

KODAK = (512, 768)


@pytest.mark.parametrize(
    ("cbr", "symbols", "count", "size"),
    [(48, 24_576, 16, 8192), (96, 12_288, 8, 4096), (384, 3072, 2, 1024)],
)
def test_kodak_is_whole_codewords(cbr, symbols, count, size):
    assert symbols_of(Fraction(1, cbr), KODAK) == symbols
    assert codewords(symbols) == (Codeword(4096, 6144),) * count
    assert coded_bytes(symbols) == size


@pytest.mark.parametrize("symbols", [12, 13, 100, 1535, 1536, 1537, 3071, 24_577, 99_999])
def test_codewords_fill_the_symbols_and_keep_the_rate(symbols):
    found = codewords(symbols)
    assert sum(codeword.coded for codeword in found) == 4 * symbols
    assert len(found) == math.ceil(4 * symbols / LONGEST)
    lengths = [codeword.coded for codeword in found]
    assert max(lengths) <= LONGEST
    assert max(lengths) - min(lengths) <= 4
    for codeword in found:
        assert codeword.carried == math.floor(Fraction(2, 3) * codeword.coded)


def test_capacity_of_the_papers_example():
    # 10 dB: log2(11) = 3.459 bits a symbol.
    assert ideal_bytes(24_576, Csi(10.0)) == 10_627


def test_fading_counts_as_snr():
    assert ideal_bytes(1000, Csi(13.0, 0.5j)) == ideal_bytes(1000, Csi(13.0 + 20 * math.log10(0.5)))
    assert ideal_bytes(1000, Csi(-60.0)) == 0


def test_too_few_symbols_are_refused():
    with pytest.raises(UsageError, match="got 1/384, which is 8 symbols for 32x32") as caught:
        symbols_of(Fraction(1, 384), (32, 32))
    assert caught.value.code == "E_CBR"
