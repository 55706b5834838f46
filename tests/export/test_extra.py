"""Options of one system alone: read, typed, and refused before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import tiny_checkpoint
from jscc.export.cli import main
from jscc.export.extra import choice, number, parse_extra, whole
from jscc.runtime.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = {"eta": "0 to 1", "steps": "1 to 9"}


def test_pairs_become_a_mapping() -> None:
    extra = parse_extra(["eta=0.5", "steps=3"], KNOWN)
    assert extra == {"eta": "0.5", "steps": "3"}
    assert number(extra, "eta", 0.1, 0.0, 1.0) == 0.5
    assert whole(extra, "steps", 1, 1, 9) == 3
    assert parse_extra([], {}) == {}


def test_what_is_left_out_has_its_default() -> None:
    assert number({}, "eta", 0.1, 0.0, 1.0) == 0.1
    assert whole({}, "steps", 4, 1, 9) == 4
    assert choice({}, "kind", ("first", "second")) == "first"
    assert choice({"kind": "second"}, "kind", ("first", "second")) == "second"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["eta"], "--option: got 'eta', expected NAME=VALUE"),
        (["=1"], "--option: got '=1', expected NAME=VALUE"),
        (["eta=1", "eta=2"], "--option: got 'eta' twice"),
        (["zeta=1"], r"got 'zeta', expected one of this system's \(eta: 0 to 1; steps: 1 to 9\)"),
    ],
)
def test_pairs_that_make_no_sense(texts: list[str], shown: str) -> None:
    with pytest.raises(UsageError, match=shown) as caught:
        parse_extra(texts, KNOWN)
    assert caught.value.code == "E_OPTION"


@pytest.mark.parametrize("text", ["", "x", "nan", "-0.1", "1.1"])
def test_numbers_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match=f"--option eta: got '{text}', expected a number from 0"):
        number({"eta": text}, "eta", 0.5, 0.0, 1.0)


@pytest.mark.parametrize("text", ["", "0", "10", "2.0", "+2", "٣"])
def test_whole_numbers_out_of_range(text: str) -> None:
    with pytest.raises(UsageError, match=r"--option steps: got '.*', expected a whole number from"):
        whole({"steps": text}, "steps", 1, 1, 9)


def test_words_that_are_not_offered() -> None:
    with pytest.raises(UsageError, match="--option kind: got 'third', expected one of first, sec"):
        choice({"kind": "third"}, "kind", ("first", "second"))


# Those of the null-space systems, on the command line.


def export(folder: Path, *more: str) -> int:
    codec = tiny_checkpoint.write_codec(folder / "codec")
    prior = tiny_checkpoint.write_prior(folder / "prior")
    command = ["--model", "sing_zero", "--checkpoint", f"codec={codec}"]
    command += ["--checkpoint", f"prior={prior}"]
    return main([*command, *more, "-o", str(folder / "zero.jscc")])


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ("operator=blur", "--option operator: got 'blur', expected identity, or parts"),
        ("eta=2", "--option eta: got '2', expected a number from 0 to 1"),
        ("compat=ddnm", "--option compat: got 'ddnm', expected one of none, ddnm-simplified"),
        ("travel=2", "--option travel: got '2', expected L,R"),
        ("tile=huge", "--option tile: got 'huge', expected a whole number"),
        ("clip=maybe", "--option clip: got 'maybe', expected one of no, yes"),
        ("strength=2", "--option: got 'strength', expected one of this system's (operator: "),
    ],
)
def test_options_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, shown: str
) -> None:
    assert export(tmp_path, "--option", option) == 2
    assert shown in capsys.readouterr().err


def test_a_form_that_does_not_go_with_the_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--option", "operator=identity", "--option", "compat=ddnm-svd")
    assert export(tmp_path, *options) == 2
    assert "--option compat ddnm-svd: got Operator(" in capsys.readouterr().err
