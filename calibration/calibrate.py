"""Calibrate: a bundle in, a bundle of lower precision out, within a budget of quality.

send ─▶ airings ─▶ collect ─▶ Ranges ─▶ steps ─┬▶ sensitivity ─▶ order ─┐
▲                        │                        ▼
smooth (if asked) ────┘                        └────▶ quantise ◀── search ◀── trials
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jscc.calibration import formats
from jscc.calibration.collect import Collected, collect, send_all
from jscc.calibration.graph import drop_unused, read_graph
from jscc.calibration.half import convert_to_half, overflowing
from jscc.calibration.layers import Layer, kept, layers_of
from jscc.calibration.quantize import quantise, rounding_error, store_weights
from jscc.calibration.ranges import LEVELS
from jscc.calibration.rewrite import Place, rewrite
from jscc.calibration.search import Found, Key, search
from jscc.calibration.sensitivity import sensitivity
from jscc.calibration.smooth import smooth
from jscc.calibration.trials import Trials
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.errors import DataError, UsageError
from jscc.runtime.sides import host_sides
from jscc.runtime.transmitter import Transmitter
from jscc.runtime.write import check_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from jscc.calibration.collect import Airing, Grid, Image
    from jscc.calibration.lpips import Lpips
    from jscc.calibration.trials import Budget, Cost

INT8, FP16, FP8 = "int8", "fp16", "fp8"
FORMATS = {INT8: formats.INT8, FP8: formats.FP8}  # those that round activations
WEIGHTS = "weights-int8"  # eight bits on disk, float32 from the moment they are loaded
PRECISIONS = (INT8, FP16, FP8, WEIGHTS)
FULL = "fp32"
ESTIMATOR = "mse"  # unless another is asked for


@dataclass(frozen=True)
class Order:
    """How a bundle is to be calibrated.

    Attributes:
        place: Where the result appears.
        precision: One of `PRECISIONS`.
        grid: What is received, to measure and to try.
        budget: What may be lost.
        stages: Those to convert; None for what `convertible` names.
        estimator: One of `jscc.calibration.ranges.ESTIMATORS`, of int8.
        smoothing: The α of SmoothQuant; None leaves it out.
        reduce_range: Whether weights take seven bits, of int8.
        keep: Regular expressions of more layers that keep their precision.
        deny: Whether the layers of `jscc.calibration.layers.kept` keep it.
        threads: Of the engine.
    """

    place: Place
    precision: str
    grid: Grid
    budget: Budget
    stages: tuple[str, ...] | None = None
    estimator: str = ESTIMATOR
    smoothing: float | None = None
    reduce_range: bool = False
    keep: tuple[str, ...] = ()
    deny: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class Images:
    """Images to measure by and others to try the result on, by name."""

    measured: Mapping[str, Image]
    tried: Mapping[str, Image]


@dataclass(frozen=True)
class Outcome:
    """What a calibration did.

    Attributes:
        bundle: The result.
        order: What was asked.
        collected: What was measured.
        kept: By stage and layer, why it kept its precision from the start.
        sensitivity: Of the other layers.
        found: Those of them that were given back, and what each attempt cost.
        sizes: MiB of the bundle before and after.
        tried: Receptions of one attempt.
        smoothed: Products that were balanced.
        parameters: Numbers in the weight of each layer.
    """

    bundle: Bundle
    order: Order
    collected: Collected
    kept: Mapping[Key, str]
    sensitivity: Mapping[Key, float]
    found: Found
    sizes: tuple[float, float]
    tried: int
    smoothed: int = 0
    parameters: Mapping[Key, int] = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """Of the result."""
        return self.found.cost


def convertible(bundle: Bundle) -> tuple[str, ...]:
    """The receiver's stages but those that hold gradients: guides, and what a descent runs."""
    manifest = bundle.manifest
    gradients = {guide for loop in manifest.loops.values() for guide in loop.guides.values()}
    gradients |= {stage for descent in manifest.descents.values() for stage in descent.stages}
    return tuple(name for name in manifest.receiver_stages if name not in gradients)


def calibrate(
    source: Bundle,
    images: Images,
    order: Order,
    *,
    lpips: Lpips | None,
    describe: Mapping[str, object],
    progress: Callable[[str], None],
) -> Outcome:
    """Write `source` in ``order.precision``.

    Args:
        source: In full precision.
        images: To measure and to try.
        order: How.
        lpips: The metric, if its weights are there; a budget of it needs them.
        describe: What the manifest says of the images.
        progress: Told of each reception.

    Raises:
        UsageError: ``E_CALIBRATE``, the bundle is not in full precision, or has no such stage; or
            see `check_order`.
        DataError: ``E_BUDGET``, the budget does not hold however little is converted.
        OutputError: ``E_EXISTS``.
        JsccError: What receiving raises: no failure is passed over.
    """
    check_destination(order.place.path, overwrite=order.place.overwrite)
    check_order(order)
    stages = _checked(source, order)
    transmitter = Transmitter(source, backend=OnnxRuntimeBackend(threads=order.threads))
    airings = send_all(transmitter, images.measured, order.grid)
    trial_airings = send_all(transmitter, images.tried, order.grid)
    del transmitter
    with tempfile.TemporaryDirectory(
        prefix=f".{order.place.path.name}.calibrate.", dir=order.place.path.resolve().parent
    ) as scratch:
        work = _Work(source, order, stages, airings, trial_airings, Path(scratch), progress)
        trials = Trials(
            source,
            trial_airings,
            order.grid,
            lpips=lpips,
            threads=order.threads,
            progress=progress,
        )
        return work.run(trials, describe)


def record_of(
    order: Order,
    collected: Collected,
    kept_layers: Mapping[Key, str],
    found: Found,
    receptions: int,
    describe: Mapping[str, object],
) -> dict[str, object]:
    """What the manifest says of the calibration."""
    cost = found.cost
    return {
        **describe,
        "made_by": f"jscc-edge {metadata.version('jscc-edge')}",
        "precision": order.precision,
        "estimator": estimator_of(order) if order.precision in FORMATS else None,
        "smoothing": order.smoothing,
        "reduce_range": order.reduce_range,
        "channel": order.grid.channel,
        "snrs_db": list(order.grid.snrs_db),
        "seed": order.grid.seed,
        "timesteps": sorted(collected.timesteps),
        "measured_receptions": collected.receptions,
        "evaluations": dict(collected.evaluations),
        "tried_receptions": receptions,
        "budget": {
            name: value
            for name, value in dataclasses.asdict(order.budget).items()
            if value is not None
        },
        "cost": {"psnr": cost.psnr, "lpips": cost.lpips, "agreement_db": cost.agreement_db},
        "kept": {f"{stage}/{name}": why for (stage, name), why in kept_layers.items()},
        "returned": [f"{stage}/{name}" for stage, name in found.returned],
    }


def form_of(order: Order) -> formats.Format:
    """The numbers of a precision that rounds activations."""
    return formats.REDUCED_INT8 if order.reduce_range else FORMATS[order.precision]


def estimator_of(order: Order) -> str:
    """What picks where activations clip: nothing, of floats, whose steps grow with the values."""
    return order.estimator if order.precision == INT8 else "minmax"


def _mib(bundle: Bundle) -> float:
    return sum(entry.size for entry in bundle.manifest.files.values()) / 2**20


def _checked(source: Bundle, order: Order) -> tuple[str, ...]:
    """The stages to convert."""
    if source.manifest.precision != FULL:
        raise UsageError(
            "E_CALIBRATE",
            f"bundle: got precision {source.manifest.precision!r}, expected {FULL!r}. "
            "Calibrate the bundle that was exported in full precision.",
        )
    host = host_sides(source.manifest)
    if host:
        raise UsageError(
            "E_CALIBRATE",
            f"bundle: got one whose receiver is given {', '.join(sorted(host))} by its host, "
            "expected one that needs the symbols alone. Export it without.",
        )
    there = source.manifest.receiver_stages
    stages = order.stages if order.stages is not None else convertible(source)
    unknown = [name for name in stages if name not in there]
    if unknown or not stages:
        raise UsageError(
            "E_CALIBRATE",
            f"--stages: got {unknown[0] if unknown else ''!r}, expected some of "
            f"{', '.join(there)}. Correct it.",
        )
    return stages


def check_order(order: Order) -> None:
    """Refuse what no bundle can be calibrated by.

    Raises:
        UsageError: ``E_CALIBRATE``.
    """
    if order.budget.psnr is None and order.budget.lpips is None and order.budget.agreement is None:
        raise UsageError(
            "E_CALIBRATE", "--budget: got none, expected psnr=, lpips= or agreement=. Give one."
        )
    if order.smoothing is not None and order.precision not in FORMATS:
        raise UsageError(
            "E_CALIBRATE",
            f"--smooth: got it with precision {order.precision}, expected {' or '.join(FORMATS)}: "
            "nothing else rounds activations. Leave it out.",
        )
    if order.reduce_range and order.precision != INT8:
        raise UsageError(
            "E_CALIBRATE",
            f"--reduce-range: got it with precision {order.precision}, expected {INT8}: nothing "
            "else multiplies integers. Leave it out.",
        )


class _Work:
    """One calibration."""

    def __init__(
        self,
        source: Bundle,
        order: Order,
        stages: Sequence[str],
        airings: Sequence[Airing],
        trial_airings: Sequence[Airing],
        scratch: Path,
        progress: Callable[[str], None],
    ) -> None:
        self._source = source
        self._order = order
        self._stages = stages
        self._airings = airings
        self._trial_airings = trial_airings
        self._scratch = scratch
        self._progress = progress
        self._smoothed = 0

    def run(self, trials: Trials, describe: Mapping[str, object]) -> Outcome:
        source, order = self._source, self._order
        base = source if order.smoothing is None else self._smooth(order.smoothing)
        collected = self._collect(base, self._stages)
        kept_layers, chosen, parameters = self._choose(base)
        ranks = self._rank(base, collected, chosen)
        if not any(chosen.values()):
            raise UsageError(
                "E_CALIBRATE",
                f"stages: got {', '.join(self._stages)} without a layer to convert, expected some. "
                "Name other stages, or keep fewer layers.",
            )
        worst_first = sorted(ranks, key=lambda key: ranks[key], reverse=True)

        def cost_of(returned: frozenset[Key]) -> Cost:
            draft = Place(self._scratch / "trial.jscc", overwrite=True)
            models = self._models(base, collected, chosen, returned)
            bundle = rewrite(
                source,
                models,
                draft,
                precision=order.precision,
                calibration=None,
                threads=order.threads,
            )
            return trials.cost(bundle)

        found = search(worst_first, cost_of, order.budget)
        nothing = found is not None and len(found.returned) == len(worst_first)
        if found is None or (nothing and order.precision != FP16):
            raise DataError(
                "E_BUDGET",
                f"--budget: got a budget that no layer's conversion meets, of {len(worst_first)} "
                "tried. Allow more, or calibrate other stages.",
            )
        models = self._models(base, collected, chosen, frozenset(found.returned))
        earlier = source.manifest.calibration or {}
        record = {
            **earlier,
            **record_of(order, collected, kept_layers, found, trials.receptions, describe),
        }
        bundle = rewrite(
            source,
            models,
            order.place,
            precision=order.precision,
            calibration=record,
            threads=order.threads,
        )
        sizes = (_mib(source), _mib(bundle))
        return Outcome(
            bundle,
            order,
            collected,
            kept_layers,
            ranks,
            found,
            sizes,
            trials.receptions,
            self._smoothed,
            parameters,
        )

    def _collect(self, bundle: Bundle, stages: Sequence[str]) -> Collected:
        if self._order.precision == WEIGHTS:  # their rounding depends on nothing that is received
            return Collected()
        collected = collect(
            bundle,
            stages,
            self._airings,
            self._order.grid,
            everything=self._order.precision == FP16,
            threads=self._order.threads,
            progress=self._progress,
        )
        for stage in stages:
            if stage not in collected.evaluations and layers_of(read_graph(bundle, stage)):
                raise UsageError(
                    "E_CALIBRATE",
                    f"--stages: got {stage!r}, which no reception ran, expected stages that run. "
                    "Leave it out, or receive at other SNRs.",
                )
        return collected

    def _smooth(self, alpha: float) -> Bundle:
        """The source with its products balanced, still in full precision."""
        collected = self._collect(self._source, self._stages)
        _, chosen, _ = self._choose(self._source)
        models = {}
        for stage in self._stages:
            model = read_graph(self._source, stage)
            wanted = [layer for layer in layers_of(model) if layer.name in chosen[stage]]
            if wanted:
                ranges = collected.ranges[stage]
                self._smoothed += smooth(model, wanted, ranges, alpha)
                drop_unused(model)
                models[stage] = model
        place = Place(self._scratch / "smoothed.jscc")
        return rewrite(self._source, models, place, precision=FULL, calibration=None)

    def _choose(
        self, bundle: Bundle
    ) -> tuple[dict[Key, str], dict[str, tuple[str, ...]], dict[Key, int]]:
        """Layers that keep their precision and why; those that lose it by stage; their sizes."""
        order = self._order
        reasons: dict[Key, str] = {}
        chosen = {}
        parameters: dict[Key, int] = {}
        for stage in self._stages:
            model = read_graph(bundle, stage)
            layers = layers_of(model)
            held = kept(
                layers,
                model.graph.outputs,
                order.keep,
                usual=order.deny and order.precision in FORMATS,
            )
            reasons |= {(stage, name): why for name, why in held.items()}
            chosen[stage] = tuple(layer.name for layer in layers if layer.name not in held)
            parameters |= {(stage, layer.name): layer.parameters for layer in layers}
        return reasons, chosen, parameters

    def _rank(
        self, base: Bundle, collected: Collected, chosen: Mapping[str, Sequence[str]]
    ) -> dict[Key, float]:
        """How sensitive each layer is, by the first image at every SNR."""
        order = self._order
        if order.precision == WEIGHTS:
            return {
                (stage, layer.name): rounding_error(layer)
                for stage in self._stages
                for layer in layers_of(read_graph(base, stage))
                if layer.name in chosen[stage]
            }
        if order.precision == FP16:
            return {
                (stage, layer.name): collected.ranges[stage][str(layer.output.name)].largest
                for stage in self._stages
                for layer in layers_of(read_graph(base, stage))
                if layer.name in chosen[stage]
            }
        first = self._airings[0].name
        return sensitivity(
            base,
            chosen,
            {stage: self._steps(collected, stage) for stage in self._stages},
            [airing for airing in self._airings if airing.name == first],
            order.grid,
            form_of(order),
            threads=order.threads,
            progress=self._progress,
        )

    def _steps(self, collected: Collected, stage: str) -> Callable[[str], float]:
        ranges = collected.ranges.get(stage, {})
        known: dict[str, float] = {}
        share = LEVELS / form_of(self._order).largest

        def step_of(name: str) -> float:
            if name not in known:
                step = ranges[name].scale(estimator_of(self._order)) * share
                known[name] = max(step, float(np.finfo(np.float32).tiny))
            return known[name]

        return step_of

    def _models(
        self,
        base: Bundle,
        collected: Collected,
        chosen: Mapping[str, Sequence[str]],
        returned: frozenset[Key],
    ) -> dict[str, ir.Model]:
        """The converted graphs, `returned` layers left alone."""
        models = {}
        for stage in self._stages:
            model = read_graph(base, stage)
            layers: dict[str, Layer] = {layer.name: layer for layer in layers_of(model)}
            wanted = [layers[name] for name in chosen[stage] if (stage, name) not in returned]
            if self._order.precision == FP16:
                exact = [layer for layer in layers.values() if layer not in wanted]
                convert_to_half(model, overflowing(collected.ranges.get(stage, {})), exact)
            elif wanted and self._order.precision == WEIGHTS:
                store_weights(model, wanted)
            elif wanted:
                form = form_of(self._order)
                quantise(model, wanted, self._steps(collected, stage), form)
            elif base is self._source:
                continue
            drop_unused(model)
            models[stage] = model
        return models
