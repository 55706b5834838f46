"""Page: recorded results as one HTML file that needs nothing else, neither a network nor scripts.

The same results give the same bytes.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from jscc.benchmarks.articles import Plot, Source, article, comparison, same_images
from jscc.benchmarks.markup import Html, element, inline_svg, join
from jscc.benchmarks.page_style import STYLESHEET
from jscc.benchmarks.plots import COLOURS
from jscc.runtime.errors import DataError
from jscc.runtime.output_files import check_destination, write_file
from jscc.runtime.terminal import notice

# Kinds of results in the order of the page: heading, and what is behind the figures.
SECTIONS: Mapping[str, tuple[str, str]] = {
    "latency": (
        "Latency (SingleStream)",
        "One image after another, from symbols in memory to an image in memory.",
    ),
    "offline": (
        "Throughput (Offline)",
        "All images are there at once; they are received in batches by processes side by side.",
    ),
    "server": (
        "Latency at random arrivals (Server)",
        "Images arrive as a Poisson process and wait in one queue; latency counts the waiting.",
    ),
    "quality": (
        "Quality",
        "Received images against those that were sent, for each SNR; means over the images.",
    ),
    "digital": (
        "Digital baselines",
        "The same images by an image codec and a channel code at the same number of symbols.",
    ),
    "receivers": (
        "Receivers in turns",
        "Whole receivers on the same symbols, one after the other in each turn of one run.",
    ),
    "peers": ("Peers", "One denoise step in turns with other engines, in one run."),
    "guided": ("Guided steps", "Steps with a gradient through the network against the plain one."),
    "feature-cache": (
        "Feature cache",
        "Inner features kept between steps, against fewer steps that are all whole.",
    ),
    "kernels": (
        "Kernels",
        "What a compiler makes of the kernels; none of this was run on a device.",
    ),
    "engines": (
        "Engines",
        "Graphs that TensorRT for RTX built ahead of time; none of them was run on a device.",
    ),
    "export": ("Exports", "What it takes to export published networks at their real size."),
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench report``."""
    parser.add_argument("result", nargs="+", type=Path, help="results of jscc bench")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.html")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> int:
    """``jscc bench report``: read the results, write the page."""
    check_destination(args.output, force=args.force)
    sources = [read_source(path) for path in args.result]
    write_file(args.output, page(sources).encode(), force=args.force)
    notice(f"jscc bench report: wrote {args.output}")
    return 0


def read_source(path: Path) -> Source:
    """A result of any kind that the page shows.

    Raises:
        DataError: ``E_RESULT``, there is none, or it is something else.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no strict JSON"
        raise DataError(
            "E_RESULT", f"{path.name}: got {reason}, expected a result of jscc bench. Record it."
        ) from error
    kind = result.get("kind") if isinstance(result, dict) else type(result).__name__
    if not isinstance(kind, str) or kind not in SECTIONS:
        raise DataError(
            "E_RESULT",
            f"{path.name}: got kind {kind!r}, expected one of {', '.join(SECTIONS)}. "
            "Name results of jscc bench.",
        )
    return Source(path.name, result)


def page(sources: Sequence[Source]) -> str:
    """The whole file.

    Raises:
        DataError: ``E_RESULT``, a result lacks what its kind has.
    """
    gallery = _Gallery()
    kinds = {kind: [s for s in sources if s.result["kind"] == kind] for kind in SECTIONS}
    groups = same_images([*kinds["quality"], *kinds["digital"]])
    sections = []
    for kind, own in kinds.items():
        if own:
            shared = groups if kind == ("quality" if kinds["quality"] else "digital") else []
            sections.append(_section(kind, own, shared, gallery))
    shown = [kind for kind, own in kinds.items() if own]
    links = [element("li", element("a", SECTIONS[kind][0], href=f"#{kind}")) for kind in shown]
    count = f"{len(sources)} recorded result{'s' if len(sources) != 1 else ''}"
    body = element(
        "body",
        element(
            "header",
            element("h1", "jscc-edge: measurements"),
            element("p", f"{count}; each says where it was measured.", class_="soft"),
            element("nav", element("ul", *links), aria_label="sections"),
        ),
        element("main", *sections),
        element("footer", element("p", "Made by jscc bench report from the files named above.")),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(), body, lang='en')}\n"


def _head() -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", "jscc-edge: measurements"),
        element("link", rel="icon", href="data:,"),
        element("style", Html(STYLESHEET)),
    )


def _section(
    kind: str, sources: Sequence[Source], groups: Sequence[Sequence[Source]], gallery: "_Gallery"
) -> Html:
    heading, what = SECTIONS[kind]
    parts = [element("h2", heading), element("p", what, class_="soft")]
    for group in groups:
        with _explained(*group):
            parts.append(comparison(group, gallery.place))
    for source in sources:
        with _explained(source):
            parts.append(article(source, gallery.place))
    return element("section", join(parts), id=kind)


@contextmanager
def _explained(*sources: Source) -> Iterator[None]:
    """Say of a result that lacks something which one it is."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        names = ", ".join(source.name for source in sources)
        kind = sources[0].result["kind"]
        raise DataError(
            "E_RESULT",
            f"{names}: got a {kind} result without what it should hold "
            f"({type(error).__name__}: {error}), expected one of jscc bench. Record it again.",
        ) from error


class _Gallery:
    """Numbers the plots of a page."""

    def __init__(self) -> None:
        self._count = 0

    def place(self, plot: Plot) -> Html:
        """The plot as a figure."""
        self._count += 1
        svg = inline_svg(plot.svg, self._count, plot.caption, COLOURS)
        return element("figure", svg, element("figcaption", plot.caption))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
