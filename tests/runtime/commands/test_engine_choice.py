"""The option --engine: what receives, and what is said where that is not possible."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from jscc.runtime.backends import openvino as module
from jscc.runtime.backends.openvino import OpenVinoSession

pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture
def heard(jscc, codec, photo, tmp_path):
    """Symbols of `photo` in a file."""
    path = tmp_path / "heard.sigmf-meta"
    assert jscc("send", codec, photo, "-o", path).status == 0
    return path


@pytest.mark.parametrize(("engine", "level"), [("openvino", 1), ("openvino-bf16", 8)])
def test_it_receives_what_the_default_does(jscc, codec, heard, tmp_path, engine, level):
    images = []
    for name in ("onnxruntime", engine):
        out = tmp_path / f"{name}.png"
        ran = jscc("receive", codec, heard, "-o", out, "--engine", name, "--json")
        assert ran.status == 0, ran.err
        images.append(np.asarray(Image.open(out)).astype(int))
    assert np.abs(images[0] - images[1]).max() <= level
    (row,) = ran.json["images"]
    words = row["record"]["backend"].split()
    assert words[0] == "openvino"
    assert words[2] == ("bf16" if engine.endswith("bf16") else "f32")


def test_simulate_and_doctor_take_it(jscc, codec, photo):
    ran = jscc("simulate", codec, photo, "--snr", 7, "--engine", "openvino", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["images"][0]["record"]["backend"].startswith("openvino ")
    ran = jscc("doctor", "--bundle", codec, "--engine", "openvino", "--json")
    assert ran.status == 0
    states = {check["name"]: check["state"] for check in ran.json["checks"]}
    assert states["openvino"] == states["bundle"] == "ok"


def test_bench_takes_it(jscc, codec, tmp_path):
    out = tmp_path / "latency.json"
    options = ("--size", "16x16", "--runs", 1, "--warmup", 1, "--threads", 1, "--json", out)
    ran = jscc("bench", codec, *options, "--engine", "openvino")
    assert ran.status == 0, ran.err
    document = json.loads(out.read_text())
    assert document["case"]["engine"] == "openvino"
    assert document["record"]["backend"].startswith("openvino ")


def test_what_fails_the_self_test_is_said_and_left(jscc, codec, heard, tmp_path, monkeypatch):
    right = OpenVinoSession.run

    def wrong(self, arrays):
        return {name: array[..., ::-1].copy() for name, array in right(self, arrays).items()}

    monkeypatch.setattr(OpenVinoSession, "run", wrong)
    out = tmp_path / "out.png"
    ran = jscc("receive", codec, heard, "-o", out, "--engine", "openvino", "--json")
    assert ran.status == 0
    assert "self-test on openvino" in ran.err
    assert ran.json["images"][0]["record"]["backend"].startswith("onnxruntime ")


def test_a_bundle_without_a_self_test_stays_with_the_default(jscc, link_bundle, photo, context):
    ran = jscc(
        *("simulate", link_bundle.path, photo, "--snr", 7, "--engine", "openvino", "--json"),
        *("--context", context),
    )
    assert ran.status == 0, ran.err
    assert "has no self-test to hold openvino to" in ran.err
    assert ran.json["images"][0]["record"]["backend"].startswith("onnxruntime ")


def test_a_missing_package_is_one_line_with_the_command(jscc, codec, heard, tmp_path, monkeypatch):
    module._library.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    ran = jscc("receive", codec, heard, "-o", tmp_path / "out.png", "--engine", "openvino")
    monkeypatch.undo()
    module._library.cache_clear()
    assert ran.status == 69
    assert ran.err == (
        "jscc receive: module 'openvino': got nothing, expected it installed. "
        "Run: pip install 'jscc-edge[openvino]' [E_MODULE]\n"
    )


def test_providers_are_those_of_the_default(jscc, codec, heard, tmp_path):
    options = ("--engine", "openvino", "--provider", "cuda")
    ran = jscc("receive", codec, heard, "-o", tmp_path / "out.png", *options)
    assert ran.status == 2
    assert "providers: got cuda for openvino, expected cpu" in ran.err


def test_a_transmitter_has_no_choice(jscc, codec, photo, tmp_path):
    ran = jscc("send", codec, photo, "-o", tmp_path / "s.npy", "--engine", "openvino")
    assert ran.status == 2
