"""Schemes: the digital ways to send an image, and what becomes of it at one SNR.

``hevc-ldpc`` is what a radio would do: HEVC-intra to the bytes that 5G's LDPC code of rate 2/3 and
16-QAM leave of the symbols, whatever the channel. Where a codeword fails, the image is lost and the
receiver shows plain grey. ``hevc-capacity`` is a bound: HEVC-intra to the bytes that an ideal code
would carry over the channel in just this state. Where not even the smallest picture fits, that
image is lost as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from jscc.benchmarks.digital.budget import coded_bytes, codewords, ideal_bytes, symbols_of
from jscc.benchmarks.digital.hevc import Coded, Still, restore
from jscc.benchmarks.digital.ldpc import Modem
from jscc.benchmarks.judge import Instruments, Judge, Texts, Wanted
from jscc.benchmarks.measure import FEATURES
from jscc.benchmarks.partial import Row
from jscc.benchmarks.titles import Figures
from jscc.benchmarks.workers import Work
from jscc.calibration.air import meet_channel
from jscc.calibration.images import read_image
from jscc.calibration.metrics import Image
from jscc.runtime.channel import pass_through
from jscc.runtime.csi import Csi

KEY = ("scheme", "cbr", "image", "snr_db", "seed")
GREY = 128

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        schemes: Names of `SCHEMES`.
        cbrs: Complex symbols per source sample.
        images: Image files.
        snrs_db: Channel SNRs.
        channel: Name of the channel.
        seeds: How many transmissions of each image at each SNR.
    """

    schemes: tuple[str, ...]
    cbrs: tuple[Fraction, ...]
    images: tuple[Path, ...]
    snrs_db: tuple[float, ...]
    channel: str
    seeds: int

    def keys(self) -> Iterator[Key]:
        """Every row, in the order of the result."""
        for scheme in self.schemes:
            for cbr in self.cbrs:
                for file in self.images:
                    yield from self._of(scheme, cbr, file)

    def of_image(self, file: Path) -> Iterator[Key]:
        """The rows of one image."""
        for scheme in self.schemes:
            for cbr in self.cbrs:
                yield from self._of(scheme, cbr, file)

    def _of(self, scheme: str, cbr: Fraction, file: Path) -> Iterator[Key]:
        for snr_db in self.snrs_db:
            for seed in range(self.seeds):
                yield scheme, str(cbr), file.name, snr_db, seed


@dataclass(frozen=True)
class Job:
    """Rows of one image."""

    image: Path
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class Recipe:
    """What a process needs to measure."""

    plan: Plan
    wanted: Wanted

    def open(self) -> Work:
        """Load the metrics."""
        instruments = Instruments(self.wanted)

        def rows(job: Job) -> Iterator[Row]:
            sender = Sender(read_image(job.image), self.plan.channel)
            figures = _Figures(sender, instruments)
            for key in job.keys:
                yield _row(key, sender, figures)

        return rows

    def jobs(self, done: set[Key]) -> list[Job]:
        """What is left to do: an image each, because encoding is kept for the image."""
        jobs = [
            Job(file, tuple(key for key in self.plan.of_image(file) if key not in done))
            for file in self.plan.images
        ]
        return [job for job in jobs if job.keys]


@dataclass(frozen=True)
class Sent:
    """What became of one transmission.

    Attributes:
        budget: Bytes that the channel was given room for.
        coded: The image's bytes; None where nothing fits.
        decoded: Whether they arrived, every one of them.
    """

    budget: int
    coded: Coded | None
    decoded: bool

    @property
    def arrived(self) -> Coded | None:
        """The bytes, if they arrived."""
        return self.coded if self.decoded else None


class Sender:
    """One image, sent over and over.

    Args:
        image: uint8[height, width, 3], RGB.
        channel: Name of the channel.
    """

    def __init__(self, image: Image, channel: str) -> None:
        self.image = image
        self._still = Still(image)
        self._channel = channel
        self._chosen: dict[int, Coded | None] = {}

    def symbols(self, cbr: Fraction) -> int:
        """Symbols on the air."""
        return symbols_of(cbr, (self.image.shape[0], self.image.shape[1]))

    def send(self, scheme: str, cbr: Fraction, name: str, snr_db: float, seed: int) -> Sent:
        """Send the image once."""
        csi, rng = meet_channel(self._channel, name, snr_db, seed)
        symbols = self.symbols(cbr)
        ideal = scheme == "hevc-capacity"
        budget = ideal_bytes(symbols, csi) if ideal else coded_bytes(symbols)
        if budget not in self._chosen:
            self._chosen[budget] = self._still.within(budget)
        coded = self._chosen[budget]
        if coded is None or ideal:
            return Sent(budget, coded, decoded=coded is not None)
        return Sent(budget, coded, decoded=_arrives(coded, symbols, csi, rng))

    def show(self, coded: Coded | None) -> Image:
        """What the receiver shows: plain grey where nothing arrived."""
        return np.full_like(self.image, GREY) if coded is None else restore(coded)


def _arrives(coded: Coded, symbols: int, csi: Csi, rng: np.random.Generator) -> bool:
    modem = _modem(symbols)
    received = pass_through(modem.send(coded.data), csi, rng=rng)
    return modem.arrives(coded.data, received, csi)


@cache
def _modem(symbols: int) -> Modem:
    return Modem(codewords(symbols))


class _Figures:
    """Figures of one image's pictures; every picture is judged once."""

    def __init__(self, sender: Sender, instruments: Instruments) -> None:
        self._sender = sender
        self._judge = Judge(sender.image, instruments)
        self._known: dict[Coded | None, tuple[Figures, Texts]] = {}

    def of(self, coded: Coded | None) -> tuple[Figures, Texts]:
        if coded not in self._known:
            shown = self._sender.show(coded)
            self._known[coded] = self._judge(shown), self._judge.features(shown)
        return self._known[coded]


def _row(key: Key, sender: Sender, figures: _Figures) -> Row:
    scheme, cbr, name, snr_db, seed = key
    sent = sender.send(scheme, Fraction(cbr), name, snr_db, seed)
    received, features = figures.of(sent.arrived)
    coded = sent.coded
    return {
        **dict(zip(KEY, key, strict=True)),
        "symbols": sender.symbols(Fraction(cbr)),
        "budget_bytes": sent.budget,
        "bytes": None if coded is None else len(coded.data),
        "qp": None if coded is None else coded.qp,
        "scale": None if coded is None else coded.scale,
        "decoded": sent.decoded,
        "received": received,
        FEATURES: {"received": features},
    }
