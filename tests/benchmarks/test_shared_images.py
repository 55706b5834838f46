"""Shared images: means of several results over the images that all of them have."""

import argparse
import copy
from pathlib import Path

import pytest

import jscc
from jscc.benchmarks import cli
from jscc.benchmarks.series import add_selection, read_result, select
from jscc.benchmarks.shared_images import restricted
from jscc.benchmarks.systems import add_arguments as systems_arguments
from jscc.benchmarks.systems import systems_table
from jscc.runtime.errors import UsageError

RESULTS = Path(jscc.__file__).resolve().parents[2] / "benchmarks" / "results"
ALL, EIGHT = RESULTS / "codecs-kodak.json", RESULTS / "sing_zero-kodak-8.json"
DIGITAL = RESULTS / "digital-kodak.json"


def of(result, name, snr_db):
    """The means of bundle `name` at one SNR."""
    index = [bundle["name"] for bundle in result["bundles"]].index(name)
    (found,) = (
        mean for mean in result["means"] if mean["bundle"] == index and mean["snr_db"] == snr_db
    )
    return found


def test_the_same_codec_on_the_same_images_has_the_same_figures_in_two_results():
    """Twenty-four images once, eight of them once more: the codec inside SING-Zero is deepjscc."""
    whole, part = restricted([read_result(ALL), read_result(EIGHT)])
    assert whole["names"] == part["names"] == [f"kodim{number:02}.webp" for number in range(1, 9)]
    for snr_db in (1.0, 10.0):
        plain, inside = of(whole, "deepjscc-96", snr_db), of(part, "sing_zero-96", snr_db)
        assert plain["rows"] == inside["rows"] == 8
        assert plain["received"]["psnr_db"] == pytest.approx(inside["codec"]["psnr_db"], abs=1e-3)
        assert plain["received"]["lpips"] == pytest.approx(inside["codec"]["lpips"], abs=1e-4)
    assert of(part, "sing_zero-96", 1.0) == of(read_result(EIGHT), "sing_zero-96", 1.0)


def test_figures_of_a_whole_set_are_left_out_of_its_part():
    digital, _ = restricted([read_result(DIGITAL), read_result(EIGHT)])
    mean = next(mean for mean in digital["means"] if mean["snr_db"] == 9.0)
    assert mean["received"]["fd_alexnet"] is None
    arrived = [
        row["decoded"]
        for row in digital["rows"]
        if row["snr_db"] == 9.0
        and (row["cbr"], row["scheme"]) == (mean["cbr"], mean["scheme"])
        and row["image"] <= "kodim08.webp"
    ]
    assert len(arrived) == 8
    assert mean["decoded"] == sum(arrived) / 8


def test_results_of_the_same_images_stay_as_they_are():
    (again,) = restricted([read_result(EIGHT)])
    assert again == read_result(EIGHT)


def test_a_set_that_is_whole_keeps_its_figures():
    whole, _ = restricted([read_result(DIGITAL), read_result(ALL)])
    assert whole == read_result(DIGITAL)


def test_results_that_say_less_of_their_settings_are_read():
    early, part = restricted([read_result(RESULTS / "kodak-10-steps.json"), read_result(EIGHT)])
    assert {mean["rows"] for mean in early["means"]} == {8}
    assert len(part["names"]) == 8


def test_the_cbr_is_that_of_the_images():
    first, second = read_result(EIGHT), copy.deepcopy(read_result(EIGHT))
    for row in second["rows"]:
        row["cbr"] = 0.02 if row["image"] == "kodim01.webp" else 0.01
    second["names"].append("kodim09.webp")
    _, again = restricted([first, second])
    expected = (0.02 + 7 * 0.01) / 8
    assert [mean["cbr"] for mean in again["means"]] == pytest.approx([expected] * 2)


def test_pictures_have_no_means(tmp_path):
    words = ["plot", str(ALL), "--kind", "grid", "--common", "-o", str(tmp_path / "a.png")]
    with pytest.raises(UsageError, match=r"--common: got it with --kind grid"):
        cli.main(words)


def test_a_table_of_what_all_results_have():
    parser = argparse.ArgumentParser()
    systems_arguments(parser)
    words = ["--snr", "1", "--cbr", "1/96", "--common", str(ALL), str(EIGHT)]
    table = systems_table(parser.parse_args(words))
    assert "| deepjscc | 1/96 | 0.67 |" in table
    assert "| 22.21 / 0.6092 |" in table
    assert "Means over the 8 images that all of these results have." in table
    parsed = parser.parse_args([word for word in words if word != "--common"])
    assert "Means over" not in systems_table(parsed)


def test_results_without_a_common_image_are_refused():
    parser = argparse.ArgumentParser()
    add_selection(parser)
    args = parser.parse_args(["unread.json", "--common"])
    first = read_result(EIGHT)
    other = {**copy.deepcopy(first), "names": ["elsewhere.png"]}
    with pytest.raises(UsageError, match=r"share no image"):
        select([first, other], args)
