"""Page: one file with everything, and nothing from elsewhere; looked at in a real browser too."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import recorded
from browser import CHROMIUM, Browser
from jscc.benchmarks import articles, cli, page
from jscc.benchmarks.articles import Source, same_images, together
from jscc.benchmarks.page import SECTIONS, read_source
from jscc.runtime.errors import DataError, OutputError

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
IMAGES = {"images": {"folder": "kodak", "sha256": "0" * 64}}
EVIL = "<img src=x onerror=alert(1)>|`$\\a$\"'&"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file that the command makes of results of all kinds, with hostile names in them."""
    folder = tmp_path_factory.mktemp("report")
    codec, whole = recorded.figures(22.0, 0.7), recorded.figures(21.0, 0.5)
    points = dict.fromkeys((1.0, 7.0), (whole, codec))
    quality = {**recorded.quality(("sing-96", 1 / 96, points), (EVIL, 1 / 96, points)), **IMAGES}
    digital = recorded.digital({("1/96", 1.0): (whole, 0.0), ("1/96", 7.0): (codec, 1.0)})
    latency = {**recorded.latency(), "commit": EVIL}
    latency["bundle"] = {**latency["bundle"], "name": EVIL}
    latency["latency_ms"]["stages"][EVIL] = recorded.times(5.0)
    results = {
        "latency": latency,
        "offline": recorded.offline(),
        "server": recorded.server(),
        "quality": quality,
        "digital": {**digital, **IMAGES},
    }
    paths = recorded.write(folder, **results)
    paths += [RESULTS / "peers-512x512.json", RESULTS / "guided-ffhq_10m.json"]
    paths += [RESULTS / "export-families.json", RESULTS / "receivers-reference-kodak.json"]
    paths += [RESULTS / "kernels-nvcc.json", RESULTS / "engines-sm_89.json"]
    paths.append(RESULTS / "feature-cache-held-out.json")
    output = folder / "out.html"
    assert cli.main(["report", *map(str, paths), "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def text(report):
    return report.read_text()


def test_every_kind_has_its_section(text):
    for kind, (heading, _) in SECTIONS.items():
        assert f'<section id="{kind}"><h2>{heading}</h2>' in text
        assert f'<a href="#{kind}">' in text


def test_every_result_says_where_it_is_from(text):
    assert text.count("<article>") == len(SECTIONS) + 1  # and one of quality and digital together
    assert text.count("<dt>machine</dt><dd>") == len(SECTIONS)
    assert "<dd>some processor, 2 threads</dd>" in text
    assert "<dd>onnxruntime 1.31.1, python 3.11.7</dd>" in text
    assert "<dt>seed</dt><dd>3</dd>" in text
    assert "<dt>seed</dt><dd>1 (inputs), 0 (weights)</dd>" in text
    assert "<code>0123456789abcdef+</code>" in text


def test_what_is_asked_for_is_drawn(text):
    captions = re.findall(r"<figcaption>([^<]*)", text)
    for caption in (
        "Latency by stage: 50th, 90th and 99th percentile.",
        "Throughput against batch size.",
        "Throughput against number of workers.",
        "Latency against the rate of arrivals and the bound.",
        "PSNR, dB against SNR at cbr 1/96.",
        "MS-SSIM against SNR at cbr 1/96.",
        "LPIPS against SNR at cbr 1/96.",
        "Time against LPIPS at cbr 1/96, at each SNR.",
        "LPIPS over the time of an image.",
    ):
        assert caption in captions
    assert text.count("<svg") == len(captions)
    assert "Highest rate tried that holds p99 ≤ 400 ms: 4 images/s." in text
    assert "energy: no counter" in text


def test_nothing_is_fetched_and_nothing_runs(text):
    links = re.findall(r'(?:href|src|action|data)="([^"]*)"', text)
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", text))
    for part in ("<script", "<img", "<iframe", "@import", "http:", "https:", "javascript:"):
        assert part not in text
    assert "default-src 'none'" in text


def test_every_name_is_the_only_one(text):
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names))


def test_hostile_names_are_shown_as_they_are(text):
    shown = "&lt;img src=x onerror=alert(1)&gt;|`$\\a$&quot;&#x27;&amp;"
    assert f"<code>{shown}</code>" in text  # the commit
    assert f"<h3>{shown}, deepjscc" in text


def test_results_on_the_same_images_are_compared():
    here, there = {**recorded.systems(), **IMAGES}, recorded.systems()
    sources = [Source("a", here), Source("b", there), Source("c", here)]
    assert [[each.name for each in group] for group in same_images(sources)] == [["a", "c"]]
    fading = Source("d", {**here, "channel": "rayleigh"})
    assert same_images([sources[0], fading]) == []


def test_one_name_with_other_figures_makes_two_curves():
    """Else a system measured with 4 steps and with 10 would be one curve through both."""
    points = {1.0: (recorded.figures(22.0), None), 7.0: (recorded.figures(24.0), None)}
    wide = {1.0: (recorded.figures(25.0), None)}
    other = {1.0: (recorded.figures(23.0), None)}
    one = Source("one.json", recorded.quality(("af-96", 1 / 96, points)))
    same = Source("same.json", recorded.quality(("af-96", 1 / 96, points), ("af-48", 1 / 48, wide)))
    odd = Source("odd.json", recorded.quality(("af-96", 1 / 96, other)))
    (curve,) = together([one, same])
    assert (curve.label, len(curve.points)) == ("af", 3)
    assert {curve.label for curve in together([one, odd])} == {"af (one)", "af (odd)"}


@pytest.fixture
def bare(monkeypatch):
    """Pages without plots, which take their time."""
    monkeypatch.setattr(articles, "_PLOTS", {})
    monkeypatch.setattr(articles, "_against_snr", lambda series: iter(()))


def test_every_recorded_result_of_this_project_has_its_place(bare):
    paths = sorted(RESULTS.glob("*.json"))
    made = page.page([read_source(path) for path in paths])
    assert all(f"<dd><code>{path.name}</code></dd>" in made for path in paths)
    assert "unknown" not in made


def test_the_same_results_give_the_same_page():
    sources = [Source("a.json", recorded.offline())]
    assert page.page(sources) == page.page(sources)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.json: got No such file or directory, expected a result of jscc bench"),
        ("{", "a.json: got no strict JSON, expected"),
        ('{"kind": "latency", "x": NaN}', "a.json: got no strict JSON, expected"),
        ("[" * 100_000, "a.json: got no strict JSON, expected"),
        ('{"kind": "other"}', "a.json: got kind 'other', expected one of latency, offline"),
        ('{"kind": ["a"]}', "a.json: got kind"),
        ("[]", "a.json: got kind 'list', expected one of"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_source(tmp_path / "a.json")
    assert caught.value.code == "E_RESULT"


@pytest.mark.parametrize(
    ("kind", "part"),
    [("latency", "machine"), ("latency", "latency_ms"), ("offline", "points"), ("server", "case")],
)
def test_a_result_that_lacks_something_is_named(bare, kind, part):
    whole = getattr(recorded, kind)()
    result = {name: value for name, value in whole.items() if name != part}
    with pytest.raises(DataError, match=rf"a.json: got a {kind} result without what it should"):
        page.page([Source("a.json", result)])
    with pytest.raises(DataError, match="Record it again"):
        page.page([Source("a.json", {**whole, part: 7})])


def test_an_existing_file_is_kept(tmp_path):
    (path,) = recorded.write(tmp_path, a=recorded.server())
    words = ["report", str(path), "-o", str(tmp_path / "out.html")]
    assert cli.main(words) == 0
    with pytest.raises(OutputError, match="expected a free name"):
        cli.main(words)
    assert cli.main([*words, "--force"]) == 0


# Everything that has to be seen, with the size at which it is laid out.
LAID_OUT = """
[...document.querySelectorAll("section, article, h2, h3, dl, figure, svg.plot, figcaption, table")]
  .map(each => [each.tagName, each.getBoundingClientRect()])
  .filter(([name, box]) => !(box.width > 1 && box.height > 1)).map(([name]) => name)
"""
BEYOND = """
[...document.querySelectorAll("body *:not(.scroll *):not(svg *)")]
  .filter(each => {
    const box = each.getBoundingClientRect()
    return box.right > document.documentElement.clientWidth + 0.5
  }).map(each => each.tagName)
"""
# Plots that leave their own frame: names in a legend that are cut off.
CUT_OFF = """
[...document.querySelectorAll("svg.plot")].filter(plot => {
  const ink = plot.getBBox(), frame = plot.viewBox.baseVal
  return ink.x < -1 || ink.y < -1 || ink.x + ink.width > frame.width + 1 ||
    ink.y + ink.height > frame.height + 1 || ink.width < frame.width / 2
}).map(plot => plot.getAttribute("aria-label"))
"""
COLOURS = """
["body", "article", "svg.plot", "td", "dt"].map(name => {
  const style = getComputedStyle(document.querySelector(name))
  return name == "svg.plot" ? style.fill : name == "article" ? style.backgroundColor : style.color
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_everything_is_laid_out_and_nothing_overflows(browser, report, width):
    browser.open(report, width=width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.querySelectorAll('svg.plot').length") > 10
    assert browser.value(LAID_OUT) == []
    assert browser.value(BEYOND) == []
    assert browser.value(CUT_OFF) == []
    assert browser.value("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_wide_tables_scroll_in_their_own_box(browser, report):
    browser.open(report, width=400)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.value(f"{wide}.length") > 3
    assert browser.value(f"{wide}.every(e => getComputedStyle(e).overflowX == 'auto')")


@pytest.mark.slow
def test_the_browser_complains_of_nothing_and_asks_for_nothing(browser, report):
    browser.open(report, width=400)
    browser.value("scrollTo(0, document.body.scrollHeight)")
    told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    assert [event for event in browser.events if event["method"] in told] == []
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert asked == [report.as_uri()]
    elements = "document.querySelectorAll('script, img, iframe, object, embed, form').length"
    assert browser.value(elements) == 0


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_light_and_on_dark(browser, report, scheme):
    browser.open(report, width=400, scheme=scheme)
    _, ground, *inks = browser.value(COLOURS)
    assert (luminance(ground) < 0.2) == (scheme == "dark")
    for ink in inks:
        high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4.5


@pytest.mark.slow
def test_a_picture_of_the_page_has_something_on_it(browser, report):
    browser.open(report, width=400)
    pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
    assert pixels.shape[1] == 400
    assert len(np.unique(pixels.astype(int) @ [65536, 256, 1])) > 50


@pytest.mark.slow
def test_the_search_for_faults_would_find_them(browser, tmp_path):
    path = tmp_path / "bad.html"
    svg = '<svg class="plot" viewBox="0 0 9 9" aria-label="x"><rect width="20" height="5"/></svg>'
    path.write_text(
        "<meta name=viewport content='width=device-width'>"
        f"<body><table style='height:0'></table>{svg}<p style='width:600px'>x</p>"
        "<script>console.error(1)</script><link rel=stylesheet href=x.css>"
    )
    browser.open(path, width=400)
    assert "TABLE" in browser.value(LAID_OUT)
    assert "P" in browser.value(BEYOND)
    assert browser.value(CUT_OFF) == ["x"]
    methods = [event["method"] for event in browser.events]
    assert "Runtime.consoleAPICalled" in methods
    assert methods.count("Network.requestWillBeSent") == 2
    json.dumps(browser.events)
