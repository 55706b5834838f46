"""Shared images: results of different images, made comparable by those that all of them have."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jscc.benchmarks.digital.tables import GROUP as DIGITAL
from jscc.benchmarks.measure import GROUP as QUALITY
from jscc.benchmarks.measure import SIDES
from jscc.runtime.errors import UsageError

# What tells the means of one kind of result apart; early results lack some of it.
GROUPS = {"quality": QUALITY, "digital": DIGITAL}

Result = Mapping[str, Any]


def images_of_all(results: Sequence[Result]) -> frozenset[str]:
    """Names of the images that every result has.

    Raises:
        UsageError: ``E_SERIES``, there is none.
    """
    shared = frozenset.intersection(*(frozenset(result["names"]) for result in results))
    if not shared:
        raise UsageError(
            "E_SERIES",
            "--common: got results that share no image, expected some. Leave the option out, or "
            "measure the same images.",
        )
    return shared


def restricted(results: Sequence[Result]) -> list[Result]:
    """`results` with their means taken again over the images that all of them have.

    What was computed of a whole set of images is left out where a part of them remains.

    Raises:
        UsageError: As in `images_of_all`.
    """
    images = images_of_all(results)
    return [
        result
        if images == set(result["names"])
        else {
            **result,
            "names": sorted(images),
            "means": [_mean(result, mean, images) for mean in result["means"]],
        }
        for result in results
    ]


def _mean(result: Result, mean: Mapping[str, Any], images: frozenset[str]) -> dict[str, Any]:
    group = GROUPS[result["kind"]]
    rows = [
        row
        for row in result["rows"]
        if row["image"] in images and all(row.get(name) == mean.get(name) for name in group)
    ]
    again = {**mean, "rows": len(rows)}
    if isinstance(mean["cbr"], float):  # padding moves that of single images
        again["cbr"] = statistics.fmean(row["cbr"] for row in rows)
    for side in SIDES:
        if mean.get(side) is not None:
            again[side] = {
                metric: _figure([row[side].get(metric) for row in rows]) for metric in mean[side]
            }
    if "decoded" in mean:
        again["decoded"] = statistics.fmean(row["decoded"] for row in rows)
    if "seconds" in mean:
        again["seconds"] = statistics.fmean(row["times_ms"]["total"] for row in rows) / 1e3
    return again


def _figure(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
