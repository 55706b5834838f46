"""Peers table: a recorded comparison of engines as one Markdown table."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jscc.benchmarks.peer_engines import FORMS
from jscc.benchmarks.report import markdown_table

NOTHING = "–"


def table(result: Mapping[str, Any]) -> str:
    """A row for each engine, ours and others; of older results, one for each pairing."""
    return _engines(result) if "ours" in result else _pairs(result)


def label(name: str) -> str:
    """How a table calls the engine."""
    ours = {engine: form for form, engine in FORMS.items()}
    return f"ours {ours[name]}" if name in ours else name


def ceilings(result: Mapping[str, Any]) -> Mapping[str, float]:
    """TFLOP/s of the fastest product in each precision that was measured."""
    found: dict[str, float] = {}
    for each in result.get("ceilings", ()):
        precision = each["precision"]
        found[precision] = max(found.get(precision, 0.0), each["tflops"])
    return found


def ceilings_table(result: Mapping[str, Any]) -> str:
    """TFLOP/s of every product by engine and precision."""
    rows: dict[str, dict[str, str]] = {}
    ways: dict[str, None] = {}
    for each in result["ceilings"]:
        way = f"{each['engine']} {each['precision']}"
        ways[way] = None
        rows.setdefault(each["product"], {})[way] = f"{each['tflops']:.3g}"
    lines = [(name, *(row.get(way, NOTHING) for way in ways)) for name, row in rows.items()]
    return markdown_table(("TFLOP/s", *ways), lines)


def seconds(result: Mapping[str, Any], name: str) -> float:
    """Median time of one step of the engine, over all turns that it took."""
    turns = [turn["wall_ms"] for each in _seen(result, name) for turn in each["turns"]]
    return float(statistics.median(turns)) / 1e3


def names(result: Mapping[str, Any]) -> list[str]:
    """The engines that ran, ours first."""
    ran = [pair[side]["name"] for pair in result["pairs"] for side in ("ours", "peer")]
    return list(dict.fromkeys([*(name for name in result["ours"] if name in ran), *ran]))


def quality(result: Mapping[str, Any], name: str, figure: str) -> str:
    """A figure, in dB, of the engine's output against ours in full precision."""
    value: float | None = _seen(result, name)[0]["quality"][figure]
    return "equal" if value is None else f"{value:.0f}"


def _engines(result: Mapping[str, Any]) -> str:
    forms: Sequence[str] = result["ours"]
    ratios = {(p["ours"]["name"], p["peer"]["name"]): p for p in result["pairs"]}
    tops = ceilings(result)
    share = ("TFLOP/s, of the fastest product's",) if tops else ()
    header = (
        "engine",
        *(f"time ÷ {label(form)}" for form in forms),
        f"CPU time ÷ {label(forms[0])}",
        "s per step",
        *share,
        "peak GiB",
        f"PSNR to {label(FORMS['fp32'])}, dB",
        "SNR of its noise, dB",
    )
    rows = []
    for name in names(result):
        seen = _seen(result, name)
        pair = ratios.get((forms[0], name))
        speed = result["flops"] / seconds(result, name) / 1e12
        rows.append(
            (
                label(name),
                *(_ratio(form, name, ratios) for form in forms),
                NOTHING if pair is None else f"{pair['cpu_ratio']['median']:.2f}",
                f"{seconds(result, name):.3g}",
                *((_share(speed, tops.get(seen[0]["precision"])),) if tops else ()),
                f"{max(each['peak_rss_mib'] for each in seen) / 1024:.2f}",
                quality(result, name, "psnr_db"),
                quality(result, name, "noise_snr_db"),
            )
        )
    rows += [(label(name), why, *[NOTHING] * (len(header) - 2)) for name, why in _without(result)]
    return markdown_table(header, rows)


def _ratio(form: str, name: str, pairs: Mapping[tuple[str, str], Any]) -> str:
    if form == name:
        return "1"
    if (form, name) not in pairs:
        return NOTHING
    ratio = pairs[form, name]["wall_ratio"]
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})"


def _share(speed: float, top: float | None) -> str:
    if top is None:
        return f"{speed:.3g}"
    return f"{speed:.3g} of {top:.3g} ({100 * speed / top:.0f} %)"


def _seen(result: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    sides = (pair[side] for pair in result["pairs"] for side in ("ours", "peer"))
    return [each for each in sides if each["name"] == name]


def _without(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Engines without figures and why, each once."""
    yield from result["cannot"].items()
    ran = names(result)
    failed = {each["name"]: each["reason"] for each in result["failed"]}
    for name, reason in failed.items():
        if name not in ran:
            yield name, f"failed: {reason}"


def _pairs(result: Mapping[str, Any]) -> str:
    rows = []
    for pair in result["pairs"]:
        ours, peer, ratio = pair["ours"], pair["peer"], pair["wall_ratio"]
        psnr = pair["quality"]["psnr_db"]
        rows.append(
            (
                peer["name"],
                f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})",
                f"{pair['cpu_ratio']['median']:.2f}",
                f"{ours['wall_ms']['median'] / 1e3:.3g} / {peer['wall_ms']['median'] / 1e3:.3g}",
                f"{ours['peak_rss_mib'] / 1024:.2f} / {peer['peak_rss_mib'] / 1024:.2f}",
                "equal" if psnr is None else f"{psnr:.0f}",
            )
        )
    header = ("peer", "time ÷ ours", "CPU time ÷ ours", "s per step, ours / peer")
    return markdown_table((*header, "peak GiB, ours / peer", "PSNR to peer, dB"), rows)
