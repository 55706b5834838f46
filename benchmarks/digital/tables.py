"""Tables: the means of a digital measurement, without the libraries that measured them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jscc.benchmarks.judge import Texts
from jscc.benchmarks.measure import mean_figures
from jscc.benchmarks.partial import Row
from jscc.benchmarks.report import markdown_table
from jscc.benchmarks.titles import TITLES, cell, metrics_of

# What each scheme is called where people read it.
SCHEMES: Mapping[str, str] = {
    "hevc-ldpc": "HEVC-intra + LDPC 2/3 + 16-QAM",
    "hevc-capacity": "HEVC-intra + ideal capacity",
}
GROUP = ("scheme", "cbr", "snr_db")


def means(rows: Sequence[Row], sent: Mapping[str, Texts]) -> list[Row]:
    """Mean figures over images and seeds; images that were lost count as grey."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return [
        {
            **dict(zip(GROUP, key, strict=True)),
            "rows": len(group),
            "decoded": statistics.fmean(row["decoded"] for row in group),
            "budget_bytes": statistics.fmean(row["budget_bytes"] for row in group),
            "received": mean_figures(group, "received", sent),
        }
        for key, group in groups.items()
    ]


def table(result: Mapping[str, Any]) -> str:
    """The means as a Markdown table."""
    metrics = metrics_of(result["means"])
    rows = [
        (
            SCHEMES[mean["scheme"]],
            mean["cbr"],
            f"{mean['snr_db']:g}",
            f"{100 * mean['decoded']:.0f}",
            *(cell(mean["received"], metric) for metric in metrics),
        )
        for mean in result["means"]
    ]
    header = ("scheme", "cbr", "SNR, dB", "arrived, %", *(TITLES[metric][0] for metric in metrics))
    return markdown_table(header, rows)
