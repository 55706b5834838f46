"""Report: what a calibration did, as Markdown with a plot."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jscc.calibration.calibrate import FORMATS, FP8, FP16, INT8, WEIGHTS, estimator_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

    from jscc.calibration.calibrate import Outcome
    from jscc.calibration.ranges import Ranges
    from jscc.calibration.trials import Cost

QUANTISED, RETURNED = "#0072B2", "#D55E00"
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "jscc",
}
_MOST_STEPS = 12
_RANKED_BY = {
    INT8: "rounding error / output power",
    FP8: "rounding error / output power",
    FP16: "largest value",
    WEIGHTS: "rounding error / weights' power",
}
_MOST_ROWS = 20  # of layers that kept their precision from the start


def markdown(outcome: Outcome, plot: str) -> str:
    """The report; `plot` is the name of the picture beside it."""
    order, collected, found = outcome.order, outcome.collected, outcome.found
    before, after = outcome.sizes
    total = sum(outcome.parameters.values())
    full = {*outcome.kept, *found.returned}
    converted = sum(n for key, n in outcome.parameters.items() if key not in full)
    title = f"# Calibration of {outcome.bundle.path.name}: {order.precision}"
    lines = [
        title,
        "",
        f"{outcome.bundle.manifest.system}, {outcome.bundle.manifest.variant}: "
        f"{before:.2f} MiB in full precision, {after:.2f} MiB now.",
        "",
        *([_measured(outcome)] if collected.receptions else []),
        f"- Tried on {outcome.tried} receptions of other images, with the same symbols and noise.",
        f"- {converted / 1e6:.3g} of {total / 1e6:.3g} million weights are converted.",
    ]
    if order.precision in FORMATS:
        smoothing = f", SmoothQuant with α = {order.smoothing:g}" if order.smoothing else ""
        bits = " in seven bits" if order.reduce_range else ""
        lines.append(
            f"- Ranges by {estimator_of(order)}{smoothing}; weights{bits} per output feature."
        )
    lines += ["", f"![Sensitivity and ranges]({plot})", "", "## Attempts", ""]
    lines += _attempts(outcome)
    lines += ["", "## Cost by SNR", "", *_by_snr(outcome.cost)]
    lines += ["", "## Layers", "", *_layers(outcome)]
    return "\n".join(lines) + "\n"


def _measured(outcome: Outcome) -> str:
    collected = outcome.collected
    snrs_db = _list(f"{snr:g}" for snr in outcome.order.grid.snrs_db)
    steps = sorted(collected.timesteps, reverse=True)
    shown = _list(f"{step:g}" for step in steps[:_MOST_STEPS])
    visited = f" and {len(steps)} time step{'s' * (len(steps) > 1)} ({shown})" if steps else ""
    runs = _list(f"{name} {count}" for name, count in collected.evaluations.items())
    return (
        f"- Measured on {collected.receptions} receptions at {snrs_db} dB{visited}; "
        f"stage runs: {runs}."
    )


def picture(outcome: Outcome) -> bytes:
    """The plot as SVG: sensitivity of the layers, and how ranges move over the grid."""
    with style.context(_STYLE):
        figure = Figure(figsize=(10, 3.6))
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw_sensitivity(left, outcome)
        _draw_grid(right, outcome)
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def _attempts(outcome: Outcome) -> Iterable[str]:
    yield "| given back | PSNR lost, dB | LPIPS gained | PSNR to full precision, dB | holds |"
    yield "| --: | --: | --: | --: | --- |"
    for trial in outcome.found.trials:
        cost = trial.cost
        verdict = "yes" if trial.holds else "no"
        yield (
            f"| {trial.returned} | {cost.psnr:.3f} | {_number(cost.lpips)} | "
            f"{cost.agreement_db:.2f} | {verdict} |"
        )


def _by_snr(cost: Cost) -> Iterable[str]:
    yield "| SNR, dB | PSNR lost, dB | LPIPS gained |"
    yield "| --: | --: | --: |"
    for snr_db, (psnr, lpips) in cost.by_snr.items():
        yield f"| {snr_db:g} | {psnr:.3f} | {_number(lpips)} |"


def _layers(outcome: Outcome) -> Iterable[str]:
    returned = outcome.found.returned
    if returned:
        yield "Given back to full precision by the search, worst first:"
        yield ""
        yield "| layer | weights | error / output power |"
        yield "| --- | --: | --: |"
        for key in returned:
            weights, error = outcome.parameters[key], outcome.sensitivity[key]
            yield f"| {'/'.join(key)} | {weights} | {error:.2e} |"
        yield ""
    reasons: dict[str, list[str]] = {}
    for key, why in outcome.kept.items():
        reasons.setdefault(why, []).append("/".join(key))
    yield "In full precision from the start:"
    yield ""
    for why, names in sorted(reasons.items()):
        shown = ", ".join(names[:_MOST_ROWS])
        more = f" and {len(names) - _MOST_ROWS} more" if len(names) > _MOST_ROWS else ""
        yield f"- {why}: {shown}{more}"


def _draw_sensitivity(axes: Axes, outcome: Outcome) -> None:
    ranks = sorted(outcome.sensitivity.items(), key=lambda item: item[1], reverse=True)
    values = [max(value, 1e-12) for _, value in ranks]
    colours = [RETURNED if key in outcome.found.returned else QUANTISED for key, _ in ranks]
    axes.bar(range(len(values)), values, color=colours, width=1.0)
    if values:
        axes.set_yscale("log")
    what = _RANKED_BY[outcome.order.precision]
    axes.set(xlabel="layer, worst first", ylabel=what)
    axes.set_title(f"{outcome.order.precision}; orange: given back")


def _draw_grid(axes: Axes, outcome: Outcome) -> None:
    """Largest magnitude in a cell over the largest of all, geometric mean of all tensors."""
    every = [r for stage in outcome.collected.ranges.values() for r in stage.values()]
    looped = [r for r in every if any(step is not None for _, step in r.cells)]
    shown = looped or every
    if not shown:
        axes.set_axis_off()
        return
    snrs = sorted({snr for r in shown for snr, _ in r.cells})
    steps = sorted(
        {step for r in shown for _, step in r.cells}, key=lambda s: -1 if s is None else s
    )
    shares = np.array([[_share(shown, (snr, step)) for step in steps] for snr in snrs])
    image = axes.imshow(shares, aspect="auto", cmap="cividis", origin="lower")
    axes.figure.colorbar(image, ax=axes)
    axes.set_yticks(range(len(snrs)), [f"{snr:g}" for snr in snrs])
    axes.set_xticks(range(len(steps)), ["–" if step is None else f"{step:g}" for step in steps])
    axes.set(xlabel="time step", ylabel="SNR, dB", title="range here / range of all cells")


def _share(shown: Sequence[Ranges], cell: tuple[float, float | None]) -> float:
    logs = [
        math.log(max(r.cells[cell], 1e-9) / max(r.largest, 1e-9)) for r in shown if cell in r.cells
    ]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _list(parts: Iterable[str]) -> str:
    return ", ".join(parts)
