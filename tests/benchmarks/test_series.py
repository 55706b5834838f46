"""Series: result files become curves, with names that people give them."""

import argparse
import json
from fractions import Fraction

import pytest

import recorded
from jscc.benchmarks.series import CODEC, DIGITAL, SYSTEM, add_selection, read_result, select
from jscc.benchmarks.series import series_of as series
from jscc.runtime.errors import DataError, UsageError


def chosen(*words):
    parser = argparse.ArgumentParser()
    add_selection(parser)
    args = parser.parse_args(["unread.json", *words])
    return select([recorded.systems(), recorded.baseline()], args)


def test_bundles_of_several_cbrs_make_one_series():
    found = {each.label: each for each in series([recorded.systems(), recorded.baseline()])}
    assert list(found) == ["af", "sing", "sing, codec alone", "HEVC + LDPC"]
    assert [each.kind for each in found.values()] == [SYSTEM, SYSTEM, CODEC, DIGITAL]
    assert [len(each.points) for each in found.values()] == [2, 4, 4, 4]


def test_a_codec_that_is_there_as_a_system_appears_once():
    result = recorded.systems()
    result["means"] = [mean for mean in result["means"] if mean["bundle"] < 2]
    assert [each.label for each in series([result])] == ["af", "sing"]


def test_a_cut_at_a_cbr_forgives_padding():
    (sing,) = (each for each in series([recorded.systems()]) if each.label == "sing")
    there = sing.at(cbr=Fraction(1, 96))
    assert sorted(point.snr_db for point in there.points) == [1.0, 7.0]
    assert {point.figures["psnr_db"] for point in there.points} == {21.0, 23.0}
    assert [point.cbr for point in sing.at(snr_db=7.0, cbr=Fraction(1, 48)).points] == [1 / 48]


def test_numbers_that_are_no_cbr_stay_in_the_name():
    result = recorded.quality(("net-7", 1 / 96, {1.0: (recorded.figures(20.0), None)}))
    assert [each.label for each in series([result])] == ["net-7"]


def test_several_rates_of_a_bundle_are_one_series():
    points = {1.0: (recorded.figures(24.0), None)}
    result = recorded.quality(("swin-48", 1 / 48, points))
    other = {**result["means"][0], "rate": 8, "cbr": 1 / 96}
    result["means"].append(other)
    (found,) = series([result])
    assert (found.label, [point.cbr for point in found.points]) == ("swin", [1 / 48, 1 / 96])


def test_several_settings_of_a_bundle_are_told_apart():
    points = {1.0: (recorded.figures(20.0), recorded.figures(19.0))}
    result = recorded.quality(("a", 1 / 96, points))
    other = {**result["means"][0], "setting": 1, "steps": 2, "ran": "ddim, 2 steps"}
    result["means"].append(other)
    labels = [each.label for each in series([result])]
    assert labels == ["a, ddim, 4 steps", "a, ddim, 2 steps", "a, codec alone"]


def test_settings_that_differ_in_a_knob_are_told_apart():
    points = {1.0: (recorded.figures(20.0), recorded.figures(19.0))}
    result = recorded.quality(("a", 1 / 96, points))
    result["means"].append({**result["means"][0], "setting": 1})
    result["bundles"][0]["settings"] = [{"settings": {"eta": 0.5}}, {"settings": {"eta": 1.0}}]
    labels = [each.label for each in series([result])]
    assert labels == ["a, ddim, 4 steps, eta 0.5", "a, ddim, 4 steps, eta 1", "a, codec alone"]


def test_a_weight_that_follows_the_snr_is_one_series():
    points = {snr_db: (recorded.figures(20.0), recorded.figures(19.0)) for snr_db in (1.0, 7.0)}
    result = recorded.quality(("a", 1 / 96, points))
    for mean, weight in zip(result["means"], (3, 1), strict=True):
        mean["ran"] = f"ddnm, 5 steps, inn × {weight}"
    assert [each.label for each in series([result])] == ["a", "a, codec alone"]
    result["means"] += [{**mean, "setting": 1, "ran": "ddnm, 9 steps"} for mean in result["means"]]
    labels = {each.label: len(each.points) for each in series([result])}
    assert labels == {"a, ddnm, 5 steps, inn × 3": 2, "a, ddnm, 9 steps": 2, "a, codec alone": 4}


def test_points_carry_what_they_cost():
    found = {each.label: each.points[0] for each in series([recorded.systems()])}
    assert (found["sing"].parameters, found["sing"].seconds) == (2_500_000, 1.5)
    assert (found["sing, codec alone"].parameters, found["sing, codec alone"].seconds) == (
        None,
    ) * 2


def test_results_of_format_1_without_these_still_read():
    result = recorded.systems()
    for mean in result["means"]:
        for name in ("setting", "rate", "seconds", "threads"):
            del mean[name]
    for bundle in result["bundles"]:
        del bundle["parameters"]
    assert len(series([result])) == 3


def test_series_are_renamed_and_left_out():
    found = chosen("--label", "sing=SING, 10 steps", "--leave-out", "sing, codec alone")
    assert [each.label for each in found] == ["af", "SING, 10 steps", "HEVC + LDPC"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--leave-out", "nobody"), "series: got 'nobody', expected one of 'af', 'sing'"),
        (("--label", "nobody=x"), "series: got 'nobody', expected one of"),
        (("--label", "af"), "--label: got 'af', expected NAME=TEXT"),
    ],
)
def test_unknown_series_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        chosen(*words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "r.json: got no JSON"),
        ("[]", "r.json: got kind 'list'"),
        (json.dumps({"kind": "latency"}), "got kind 'latency', expected quality or digital"),
    ],
)
def test_files_that_are_no_result_are_refused(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_result(tmp_path / "r.json")
    assert caught.value.code == "E_RESULT"
    with pytest.raises(DataError, match="none.json: got No such file"):
        read_result(tmp_path / "none.json")
