"""Markup: whatever a text holds, it is shown as it is."""

import html.parser
import re
import xml.etree.ElementTree as ET

import pytest

import recorded
from jscc.benchmarks.markup import Html, element, escape, inline_svg, join, scrolled_table
from jscc.benchmarks.plots import COLOURS
from jscc.benchmarks.report import markdown_table
from jscc.benchmarks.scenario_plots import plot_stages

EVIL = """<script>alert('1')</script> & "x" <!-- --> ]]> \\ | `a` $\\frac$"""


class Reader(html.parser.HTMLParser):
    """Elements and cells as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_text_is_escaped_and_markup_is_not():
    assert element("p", EVIL, element("b", "x"), title=EVIL).count("<") == 4
    found = Reader(element("p", EVIL, title=EVIL))
    assert found.tags == ["p"]
    assert found.attributes == [("title", EVIL)]
    assert join(["<", Html("<")]) == "&lt;<"
    assert escape("a\x00b\x1bc\ud800") == "a�b�c�"


def test_attributes_have_their_html_names():
    made = element("a", "x", class_="y", aria_label="z")
    assert made == '<a class="y" aria-label="z">x</a>'
    assert element("meta", name="viewport") == '<meta name="viewport">'


@pytest.mark.parametrize(
    "text", [EVIL.replace("`", "'"), "a|b", "a\\|b", "\\", "||", "", "end\\\\"]
)
def test_cells_come_back_as_they_were(text):
    markdown = markdown_table(("what", "ms"), [(text, "1"), ("b", text)])
    found = Reader(scrolled_table(markdown, "x")).cells
    assert found == ["what", "ms", text.strip(), "1", "b", text.strip()]


def test_code_in_a_table_is_code():
    made = scrolled_table(markdown_table(("a",), [("`<b>` and `c`",)]), "x")
    assert "<code>&lt;b&gt;</code> and <code>c</code>" in made


def test_a_plot_is_well_formed_and_has_the_colours_of_its_page():
    made = inline_svg(plot_stages(recorded.latency()), 7, "a <plot>", COLOURS)
    tree = ET.fromstring(made.replace("xlink:href", "href"))
    assert tree.get("aria-label") == "a <plot>"
    assert "var(--c0)" in made
    assert "currentColor" in made
    left = set(re.findall(r"#[0-9a-f]{6}", made))
    assert left == set()
    for part in ("<style", "<metadata", "<!--", "<?xml", "http:"):
        assert part not in made


def test_no_two_plots_of_a_page_share_a_name():
    svg = plot_stages(recorded.latency())
    names = [set(re.findall(r' id="([^"]+)"', inline_svg(svg, n, "x", COLOURS))) for n in (1, 2)]
    assert names[0]
    assert not names[0] & names[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', inline_svg(svg, 1, "x", COLOURS)))
    assert used == names[0]
