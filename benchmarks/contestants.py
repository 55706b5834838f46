"""Contestants: the receivers that take turns, what they are called, and how they are loaded."""

from __future__ import annotations

import argparse
import gc
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jscc.benchmarks.cases import describe_bundle
from jscc.benchmarks.diffusers_schedulers import spacing_for
from jscc.runtime import engine_names
from jscc.runtime.backends import engines
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import positive
from jscc.runtime.errors import UsageError
from jscc.runtime.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jscc.calibration.metrics import Image
    from jscc.export.gather import Request
    from jscc.runtime.csi import Csi
    from jscc.runtime.manifest import Signal
    from jscc.runtime.ports import Array

TORCH, COMPILED, DIFFUSERS = "torch", "torch-compile", "diffusers"
_ENGINES = (*engine_names.ENGINES, TORCH, COMPILED, DIFFUSERS)
_KEYS = ("engine", "steps", "sampler", "spacing", "turns", "label")


@dataclass(frozen=True)
class Contestant:
    """A bundle and how it is run.

    Attributes:
        path: The bundle.
        engine: One of `jscc.runtime.engine_names.ENGINES`, ``torch``,
            ``torch-compile``, or ``diffusers``.
        steps: Of loops; None for the bundle's.
        sampler: None for the bundle's.
        spacing: Of the noise levels; None for the sampler's own.
        turns: Most turns that it takes; None for all.
        label: What it is called in tables.
    """

    path: Path
    engine: str = engine_names.DEFAULT
    steps: int | None = None
    sampler: str | None = None
    spacing: str | None = None
    turns: int | None = None
    label: str = ""

    def __str__(self) -> str:
        if self.label:
            return self.label
        parts = [self.path.stem]
        parts += [] if self.engine == engine_names.DEFAULT else [self.engine]
        parts += [] if self.sampler is None else [self.sampler]
        parts += [] if self.spacing is None else [self.spacing]
        parts += [] if self.steps is None else [f"{self.steps} steps"]
        return ", ".join(parts)


class Told(Protocol):
    """What is read of a record, see `jscc.runtime.record.Record`."""

    @property
    def backend(self) -> str:
        """Engine library and version."""

    @property
    def steps(self) -> int:
        """Evaluations of the loop's network."""

    @property
    def times_ms(self) -> Mapping[str, float]:
        """Wall time by stage."""

    @property
    def providers(self) -> Mapping[str, str]:
        """What each stage runs on, by stage."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked for and not done."""


class AnyReceiver(Protocol):
    """What takes turns: `jscc.runtime.receiver.Receiver`, or one that stands beside it."""

    def receive(
        self,
        symbols: np.ndarray[Any, np.dtype[np.complex64]],
        csi: Csi,
        *,
        seed: int,
        frame: int,
        sampler: str | None,
        steps: int | None,
        spacing: str | None,
        size: tuple[int, int] | None,
        side: Mapping[str, Array] | None,
    ) -> tuple[Image, Told]:
        """Receive one image."""


def parse_contestant(text: str) -> Contestant:
    """``BUNDLE[,engine=NAME][,steps=N][,sampler=NAME][,spacing=NAME][,turns=N][,label=TEXT]``.

    Raises:
        argparse.ArgumentTypeError: Something else.
    """
    path, *settings = text.split(",")
    given: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if key not in _KEYS or not sign or not value or key in given:
            raise argparse.ArgumentTypeError(
                f"got {setting!r}, expected one of {', '.join(_KEYS)} with =, each once"
            )
        given[key] = positive(value) if key in ("steps", "turns") else value
    if given.get("engine", engine_names.DEFAULT) not in _ENGINES:
        known = ", ".join(_ENGINES)
        raise argparse.ArgumentTypeError(f"got engine {given['engine']!r}, expected {known}")
    return Contestant(Path(path), **given)


def check_contestants(contestants: Sequence[Contestant]) -> None:
    """Refuse contestants that nobody could tell apart, or that an engine cannot run.

    Raises:
        UsageError: ``E_USAGE``, two have one name; ``E_SAMPLER``, ``E_SPACING``, see
            `jscc.benchmarks.diffusers_schedulers.spacing_for`.
    """
    for each in contestants:
        if each.engine == DIFFUSERS and each.sampler is not None:
            spacing_for(each.sampler, each.spacing)
    names = [str(each) for each in contestants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            "E_USAGE", f"contestants: got {twice[0]!r} twice, expected different ones. Drop one."
        )


@dataclass(frozen=True)
class Loaded:
    """A receiver that is ready.

    Attributes:
        receiver: The one.
        load_s: Seconds until it was, with its self-test if it has one.
        described: Of its bundle, for results.
        named: The engine as records tell it where it ran; empty for peers, which run or fail.
    """

    receiver: AnyReceiver
    load_s: float
    described: dict[str, object]
    named: str


@dataclass
class Loader:
    """Receivers, loaded when they are asked for; those that differ in settings only share one.

    Attributes:
        signal: What all their bundles have on the air.
        request: Makes the weights of the engines that take those that bundles were exported from.
        threads: Of the processor, for each.
        warm_up: Called once with each that was loaded.
        together: Whether all stay in memory, or only the last.
    """

    signal: Signal
    request: Callable[[], Request]
    threads: int
    warm_up: Callable[[AnyReceiver, Contestant], None]
    together: bool = True
    _known: dict[tuple[Path, str], Loaded] = field(default_factory=dict, init=False)

    def get(self, contestant: Contestant) -> Loaded:
        """The receiver of `contestant`.

        Raises:
            UsageError: ``E_USAGE``, its bundle has other symbols than the others, or weights that
                its engine was not told of.
            JsccError: What loading raises.
        """
        key = (contestant.path, contestant.engine)
        if key not in self._known:
            if not self.together:
                self._known.clear()
                gc.collect()
            bundle = Bundle.open(contestant.path)
            if bundle.manifest.signal != self.signal:
                raise UsageError(
                    "E_USAGE",
                    f"contestants: got {contestant.path.name!r} with other symbols than the first, "
                    "expected bundles of one codec. Compare those in runs of their own.",
                )
            begun = time.perf_counter()
            receiver, named = self._load(contestant, bundle)
            load_s = time.perf_counter() - begun
            self._known[key] = Loaded(receiver, load_s, describe_bundle(bundle), named)
            self.warm_up(receiver, contestant)
        return self._known[key]

    def _load(self, contestant: Contestant, bundle: Bundle) -> tuple[AnyReceiver, str]:
        engine = contestant.engine
        if engine in engine_names.ENGINES:
            ours = engines.make_backend(engine, threads=self.threads)
            return Receiver(bundle, backend=ours), ours.name
        if engine == DIFFUSERS:
            from jscc.benchmarks.diffusers_receiver import DiffusersReceiver

            return DiffusersReceiver(bundle, self.request(), self.threads), ""
        from jscc.benchmarks.torch_backend import TorchBackend

        backend = TorchBackend.of_bundle(bundle, self.request(), self.threads)
        if engine == COMPILED:
            backend = backend.compiling()
        return Receiver(bundle, backend=backend), backend.name
