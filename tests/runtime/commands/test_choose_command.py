"""jscc choose: engines are tried, the fastest receives afterwards, and only where it was tried."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from jscc.runtime import engine_choice
from jscc.runtime.backends import engines
from jscc.runtime.commands import choose
from jscc.runtime.engine_choice import Circumstances, Trial, best_of, find, keep
from jscc.runtime.engine_names import DEFAULT, ENGINES

HERE = Circumstances("0" * 64, "Some CPU", ("avx2",), ("jscc-edge 1", "onnxruntime 2"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, where nothing was chosen."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def heard(jscc, codec, photo, tmp_path):
    """Symbols of `photo` in a file."""
    path = tmp_path / "heard.sigmf-meta"
    assert jscc("send", codec, photo, "-o", path).status == 0
    return path


def backend_of(ran):
    assert ran.status == 0, ran.err
    return ran.json["images"][0]["record"]["backend"].split()[0]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({DEFAULT: 1.0, "openvino": 0.4, "openvino-bf16": 0.3}, "openvino-bf16"),
        ({DEFAULT: 1.0, "openvino": 0.96}, DEFAULT),  # not worth it
        ({DEFAULT: 1.0, "openvino": 0.94}, "openvino"),
        ({DEFAULT: 1.0, "openvino": None}, DEFAULT),
        ({DEFAULT: None, "openvino": 2.0}, "openvino"),
        ({"openvino": 2.0}, "openvino"),
        ({DEFAULT: 0.5, "openvino": 1.0}, DEFAULT),
        ({DEFAULT: None}, DEFAULT),
    ],
)
def test_the_fastest_is_taken_if_it_gains_enough(seconds, best):
    assert best_of([Trial(engine, each) for engine, each in seconds.items()]) == best


def test_a_choice_holds_for_its_circumstances_alone(tmp_path):
    folder = tmp_path / "choices"
    assert find(HERE, folder) is None
    path = keep("openvino", HERE, folder)
    assert find(HERE, folder) == "openvino"
    for other in (
        dataclasses.replace(HERE, processor="Another CPU"),
        dataclasses.replace(HERE, features=("avx2", "amx_bf16")),
        dataclasses.replace(HERE, versions=("jscc-edge 1", "onnxruntime 3")),
        dataclasses.replace(HERE, bundle="1" * 64),
    ):
        assert find(other, folder) is None
    assert path.parent == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    keep(DEFAULT, HERE, folder)
    assert find(HERE, folder) == DEFAULT


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "E_CHOICE_FORMAT"),
        (b"[]", "E_CHOICE_FORMAT"),
        (b'{"for": 1, "for": 2}', "E_CHOICE_FORMAT"),
        (b" " * 70000, "E_CHOICE_SIZE"),
        ({"format": 1, "engine": "os.system"}, "E_CHOICE_FORMAT"),
        ({"format": 2, "engine": "openvino"}, "E_CHOICE_FORMAT"),
        ({"format": 1, "engine": ["openvino"]}, "E_CHOICE_FORMAT"),
    ],
)
def test_what_is_no_choice_is_refused(tmp_path, content, code):
    folder = tmp_path / "choices"
    path = keep("openvino", HERE, folder)
    if isinstance(content, dict):
        content = json.dumps(content | {"for": dataclasses.asdict(HERE)}).encode()
    path.write_bytes(content)
    with pytest.raises(engine_choice.CHOICE.error) as caught:
        find(HERE, folder)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_what_was_chosen_receives(jscc, codec, heard, tmp_path):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    options = ("--size", "16x16", "--runs", 1, "--threads", 1)
    ran = jscc("choose", codec, *options, "--engine", "openvino", "--json")
    assert ran.status == 0, ran.err
    (trial,) = ran.json["trials"]
    assert trial["engine"] == ran.json["engine"] == "openvino"
    assert trial["seconds"] > 0.0
    assert trial["psnr_db"] is None or trial["psnr_db"] > 40.0
    receive = ("receive", codec, heard, "--json", "--force", "-o", tmp_path / "out.png")
    assert backend_of(jscc(*receive)) == "openvino"
    chosen = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert backend_of(jscc(*receive, "--engine", DEFAULT)) == DEFAULT
    usual = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert np.abs(chosen - usual).max() <= 1
    assert backend_of(jscc(*receive, "--provider", "cpu")) == DEFAULT
    assert "openvino" in jscc("doctor", "--bundle", codec).out.partition("self-test passed in")[2]


def test_without_a_choice_the_default_receives(jscc, codec, heard, tmp_path):
    assert backend_of(jscc("receive", codec, heard, "--json", "-o", tmp_path / "a.png")) == DEFAULT


def test_a_spoilt_choice_costs_a_word_only(jscc, codec, heard, tmp_path):
    ran = jscc("choose", codec, "--size", "16x16", "--runs", 1, "--engine", DEFAULT, "--json")
    assert ran.status == 0, ran.err
    with open(ran.json["file"], "w", encoding="utf-8") as file:
        file.write("{")
    ran = jscc("receive", codec, heard, "--json", "-o", tmp_path / "a.png")
    assert backend_of(ran) == DEFAULT
    assert "E_CHOICE_FORMAT" in ran.err
    assert "jscc choose" in ran.err


def test_engines_that_do_not_receive_say_why(jscc, codec, monkeypatch):
    """None is chosen by its stand-in's time: TensorRT without a device, bfloat16 without one."""
    old = dataclasses.replace(engines.describe_machine(), features=("avx2",))
    monkeypatch.setattr(engines, "describe_machine", lambda: old)
    options = ("--size", "16x16", "--runs", 1, "--threads", 1, "--json")
    ran = jscc("choose", codec, *options)
    assert ran.status == 0, ran.err
    found = {trial["engine"]: trial for trial in ran.json["trials"]}
    assert tuple(found) == ENGINES
    for engine in ("tensorrt", "openvino-bf16"):
        assert found[engine]["seconds"] is None
        assert "expected" in found[engine]["reason"]
    assert found[DEFAULT]["seconds"] > 0.0


def test_an_engine_that_fails_the_self_test_is_not_chosen(jscc, codec, monkeypatch):
    module = pytest.importorskip("jscc.runtime.backends.openvino")
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    right = module.OpenVinoSession.run

    def wrong(self, arrays):
        return {name: array * 0.5 for name, array in right(self, arrays).items()}

    monkeypatch.setattr(module.OpenVinoSession, "run", wrong)
    options = ("--size", "16x16", "--runs", 1, "--engine", "openvino", "--engine", DEFAULT)
    ran = jscc("choose", codec, *options, "--json")
    assert ran.status == 0, ran.err
    assert ran.json["engine"] == DEFAULT
    assert ran.json["trials"][0]["seconds"] is None
    assert "self-test" in ran.json["trials"][0]["reason"]


def test_where_none_receives_nothing_is_kept(jscc, codec, home, monkeypatch):
    refused = Trial("openvino", None, reason="got nothing, expected it installed")
    monkeypatch.setattr(choose, "try_engine", lambda *arguments: refused)
    ran = jscc("choose", codec, "--size", "16x16", "--engine", "openvino")
    assert ran.status == 69
    assert "E_CHOICE" in ran.err
    assert "got nothing" in ran.err
    assert not list(home.rglob("*.json"))
