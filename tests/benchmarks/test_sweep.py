"""Sweep: options to settings, settings to what each bundle understands, rows to their order."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import pytest

import tiny_bundle
from jscc.benchmarks.sweep import (
    Sweep,
    Variant,
    add_settings,
    check_use,
    describe_settings,
    fitted,
    fraction,
    items,
    rates_of,
    settings_from,
)
from jscc.runtime.choices import Choices
from jscc.runtime.errors import UsageError
from jscc.runtime.terminal import Parser


def settings(*words) -> tuple[Choices, ...]:
    parser = Parser()
    add_settings(parser)
    return settings_from(parser.parse_args(words))


def guided():
    """The manifest of a loop with a knob and a guide."""
    manifest, _ = tiny_bundle.diffusion()
    loop = dataclasses.replace(
        manifest.loops["denoise"], settings={"zeta": 1.0}, guides={"cheap": "guided_cheap"}
    )
    return dataclasses.replace(manifest, loops={"denoise": loop})


def test_nothing_said_is_one_setting():
    assert settings() == (Choices(),)


def test_lists_make_every_combination():
    found = settings(
        *("--steps", "2,4", "--sampler", "ddim", "--set", "zeta=0,-0.5", "--set", "eta=1"),
        *("--guide", "cheap", "--travel", "3,2", "--guide-every", "2"),
    )
    assert [(each.steps, each.settings) for each in found] == [
        (2, {"zeta": 0, "eta": 1}),
        (2, {"zeta": -0.5, "eta": 1}),
        (4, {"zeta": 0, "eta": 1}),
        (4, {"zeta": -0.5, "eta": 1}),
    ]
    assert {(each.sampler, each.guide, each.guide_every, each.travel) for each in found} == {
        ("ddim", "cheap", 2, (3, 2))
    }


def test_spacings_are_an_axis():
    found = settings("--steps", "2", "--spacing", "trailing,karras")
    assert [each.spacing for each in found] == ["trailing", "karras"]


def test_a_codec_takes_nothing():
    codec, _ = tiny_bundle.codec()
    (choices,) = settings(
        "--spacing",
        "karras",
        "--steps",
        "4",
        "--guide",
        "cheap",
        "--set",
        "zeta=1",
        "--start",
        "noise",
    )
    assert fitted(choices, codec) == Choices()


def test_knobs_and_guides_go_where_they_are_known():
    plain, _ = tiny_bundle.diffusion()
    (choices,) = settings("--steps", "4", "--guide", "cheap", "--set", "zeta=2", "--guidance", "3")
    assert fitted(choices, guided()) == choices
    # The tiny diffusion bundle has a tensor that pulls, so a weight has something to weigh.
    assert fitted(choices, plain) == Choices(steps=4, guidance=3.0)
    check_use([choices], "", [plain, guided()])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "eta=1"), "--set: got 'eta', expected one of zeta, the knobs"),
        (("--guide", "dear"), "--guide: got 'dear', expected one of cheap, none"),
    ],
)
def test_what_no_bundle_knows_is_refused(words, message):
    with pytest.raises(UsageError, match=message):
        check_use(settings(*words), "", [guided()])


@pytest.mark.parametrize(
    ("text", "rates"),
    [("", (None,)), ("all", (2, 4)), ("4", (4,)), ("4,2", (2, 4)), ("8", (None,))],
)
def test_rates_go_to_bundles_that_have_them(text, rates):
    codec, _ = tiny_bundle.codec()
    signal = dataclasses.replace(codec.signal, rates=(2, 4))
    choosy = dataclasses.replace(codec, signal=signal)
    assert rates_of(text, choosy) == rates
    assert rates_of(text, codec) == (None,)
    if text == "8":
        with pytest.raises(UsageError, match="--rate: got 8, expected one of 2, 4, the rates"):
            check_use([Choices()], text, [codec, choosy])
    else:
        check_use([Choices()], text, [codec, choosy])


def test_settings_are_described_by_what_was_chosen():
    assert describe_settings(settings("--steps", "4", "--set", "zeta=2")) == [
        {"steps": 4, "settings": {"zeta": 2.0}}
    ]


def test_cases_come_in_the_order_of_the_result():
    sweep = Sweep(
        (
            Variant(Path("a"), (Choices(), Choices(steps=2)), (None, 4)),
            Variant(Path("b"), (Choices(),), (None,)),
        ),
        (Path("x.png"), Path("y.png")),
        (1.0, 7.0),
        "awgn",
        2,
    )
    order = sweep.order()
    keys = [case.key for *_, cases in sweep.cases() for case in cases]
    assert [order[key] for key in keys] == list(range(len(keys)))
    assert len(set(keys)) == 2 * 2 * 2 * (2 * 2) + 2 * 2 * 2
    assert keys[:3] == [
        (0, 0, None, "x.png", 1.0, 0),
        (0, 1, None, "x.png", 1.0, 0),
        (0, 0, None, "x.png", 1.0, 1),
    ]


@pytest.mark.parametrize(("text", "value"), [("1/96", Fraction(1, 96)), ("0.25", Fraction(1, 4))])
def test_ratios_are_read(text, value):
    assert items("--cbr", text, fraction) == [value]


@pytest.mark.parametrize("text", ["1/0", "0", "-1/4", "x", "101"])
def test_other_ratios_are_refused(text):
    with pytest.raises(UsageError, match=f"--cbr: got '{text}', expected items between commas"):
        items("--cbr", text, fraction)
