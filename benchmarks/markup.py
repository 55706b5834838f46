"""Markup: HTML whose every text is escaped, because what is no `Html` yet becomes it that way."""

import html
import re
from collections.abc import Sequence

# Colours of the plots that follow the page's own; all others stay.
_PAPER = {"#ffffff": "none", "#000000": "currentColor", "#dddddd": "var(--grid)"}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_VOID = ("col", "link", "meta")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> Html:
    """`text` as markup that shows it."""
    if isinstance(text, Html):
        return text
    shown = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)
    return Html(html.escape(shown, quote=True))


def join(parts: Sequence[str]) -> Html:
    """Parts one after another."""
    return Html("".join(escape(part) for part in parts))


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """An element; ``class_`` and ``aria_label`` are written as HTML has them."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{join(children)}</{name}>")


def scrolled_table(markdown: str, label: str) -> Html:
    """A table in a box of its own that scrolls.

    Args:
        markdown: As `jscc.benchmarks.report.markdown_table` makes it.
        label: What it shows, for those who do not see it.
    """
    lines = [_cells(line) for line in markdown.strip().splitlines()]
    head, body = lines[0], lines[2:]
    heads = [element("th", cell, scope="col") for cell in head]
    rows = [
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in body
    ]
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def _cells(line: str) -> list[Html]:
    """The cells of one line of Markdown, with code in backticks."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    cells = [cell for cell in re.findall(r"(?:\\.|[^\\|])+|\|", inner) if cell != "|"]
    return [_code(_unescaped(cell.strip())) for cell in cells]


def _unescaped(cell: str) -> str:
    return re.sub(r"\\([\\|])", r"\1", cell)


def _code(cell: str) -> Html:
    parts = re.split(r"`([^`]+)`", cell)
    return join([element("code", p) if index % 2 else p for index, p in enumerate(parts)])


def inline_svg(svg: bytes, number: int, label: str, palette: Sequence[str]) -> Html:
    """A plot of matplotlib's as part of a page, in the page's own colours.

    Args:
        svg: The file.
        number: Of the plot on its page, so that no two have a name in common.
        label: What it shows, for those who do not see it.
        palette: Colours that become ``--c0``, ``--c1`` and so on.
    """
    text = svg.decode()
    found = re.search(r'<svg [^>]*viewBox="0 0 ([0-9.]+) ([0-9.]+)"[^>]*>', text)
    assert found is not None  # matplotlib writes it
    body = text[found.end() : text.rindex("</svg>")]
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL
    )
    body = re.sub(r"\s*\n\s*", "\n", body)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(
        r' id="([^"]+)"', lambda hit: f' id="p{number}-{hit[1]}"' if hit[1] in used else "", body
    )
    body = re.sub(r'(href="|url\()#', rf"\1#p{number}-", body)
    colours = {**_PAPER, **{name.lower(): f"var(--c{i})" for i, name in enumerate(palette)}}
    body = re.sub(
        r'style="[^"]*"',
        lambda hit: _COLOUR.sub(lambda colour: colours.get(colour[0], colour[0]), hit[0]),
        body,
    )
    width, height = (float(size) * 4 / 3 for size in found.groups())  # points to pixels
    return Html(
        f'<svg class="plot" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {found[1]} {found[2]}" width="{width:.0f}" height="{height:.0f}" '
        f'fill="currentColor" stroke-linejoin="round">{body}</svg>'
    )
