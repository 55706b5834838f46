"""Receivers table: what took turns, and where the time of each went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jscc.benchmarks.report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE = "total"  # among the stages' times
_UNKNOWN = "–"


def table(document: Mapping[str, Any]) -> str:
    """The table of a measurement, without columns that would be empty."""
    rows = [
        (
            "receiver",
            "engine",
            "steps",
            "times as fast",
            "by CPU time",
            "s per image",
            "MiB on disk",
            "peak GiB",
            "PSNR to the first, dB",
            "PSNR, dB",
            "MS-SSIM",
            "LPIPS",
        )
    ]
    for each in document["contestants"]:
        faster = each["faster"]
        rows.append(
            (
                each["name"],
                each["engine"] + _share(each),
                str(each["steps"]),
                f"{faster['median']:.3g} ({faster['min']:.3g}–{faster['max']:.3g})",
                f"{each['faster_cpu']['median']:.3g}",
                f"{each['wall_s']['median']:.3g}",
                f"{each['bundle']['size_mib']:.0f}",
                _shown(None if each.get("peak_mib") is None else each["peak_mib"] / 1024, ".2f"),
                _shown(each["psnr_to_first_db"], ".1f"),
                _shown(each["psnr_db"], ".2f"),
                _shown(each.get("ms_ssim"), ".4f"),
                _shown(each["lpips"], ".4f"),
            )
        )
    columns = [column for column in zip(*rows, strict=True) if set(column[1:]) != {_UNKNOWN}]
    header, *lines = zip(*columns, strict=True)
    return markdown_table(header, lines)


def _share(contestant: Mapping[str, Any]) -> str:
    """How much of it its engine did, where that is not all."""
    if not contestant.get("fallbacks"):
        return ""
    return f" ({contestant['asked']} not used)" if contestant.get("unused") else " (in part)"


def stages_table(document: Mapping[str, Any]) -> str:
    """Where the time of each receiver goes: seconds of each stage, and its share."""
    contestants = document["contestants"]
    stages = list(dict.fromkeys(name for each in contestants for name in each["stages_ms"]))
    stages.sort(key=lambda name: name == _WHOLE)
    rows = []
    for each in contestants:
        times = each["stages_ms"]
        cells = [
            f"{times[name] / 1e3:.3g} ({times[name] / times[_WHOLE]:.0%})" if name in times else "–"
            for name in stages
        ]
        rows.append((each["name"], str(each["steps"]), *cells))
    return markdown_table(("receiver", "steps", *(f"{name}, s" for name in stages)), rows)


def _shown(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)
