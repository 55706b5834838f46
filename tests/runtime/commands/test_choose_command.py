"""jscc choose: engines are tried, the fastest receives afterwards, and only where it was tried."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jscc.runtime import engine_choice
from jscc.runtime.backends import engines
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands import choose
from jscc.runtime.engine_choice import Circumstances, Trial, best_of, find, keep
from jscc.runtime.engine_names import DEFAULT, ENGINES

HERE = Circumstances("0" * 64, "Some CPU", ("avx2",), 4, False, ("jscc-edge 1", "onnxruntime 2"))


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
    ("ratios", "best"),
    [
        ({"openvino": (0.4, 0.5), "openvino-bf16": (0.3, 0.3)}, "openvino-bf16"),
        ({"openvino": (0.5, 0.6), "openvino-bf16": (0.3, 0.7)}, "openvino"),  # surer
        ({"openvino": (0.96, 0.5)}, DEFAULT),  # not worth it in every turn
        ({"openvino": (0.94, 0.93)}, "openvino"),
        ({"openvino": None}, DEFAULT),
        ({"openvino": (2.0, 1.0)}, DEFAULT),
        ({}, DEFAULT),
    ],
)
def test_the_fastest_is_taken_if_it_gains_enough_in_every_turn(ratios, best):
    others = [
        Trial(engine, None if each is None else min(each), each or ())
        for engine, each in ratios.items()
    ]
    assert best_of([Trial(DEFAULT, 1.0), *others]) == best


def test_without_the_default_the_fastest_receives():
    trials = [Trial(DEFAULT, None, reason="…"), Trial("openvino", 2.0), Trial("tensorrt", 1.0)]
    assert best_of(trials) == "tensorrt"
    assert best_of(trials[:1]) == DEFAULT


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
        dataclasses.replace(HERE, cores=2),
        dataclasses.replace(HERE, nvidia=True),
    ):
        assert find(other, folder) is None
        assert other.others(folder) == (other.bundle == HERE.bundle)
        keep(DEFAULT, other, folder)  # machines that share a home leave each other's alone
        assert find(HERE, folder) == "openvino"
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


def test_what_was_chosen_receives(jscc, codec, heard, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    monkeypatch.setattr(choose, "best_of", lambda trials: "openvino")
    options = ("--size", "16x16", "--runs", 2, "--threads", 1)
    ran = jscc("choose", codec, *options, "--engine", "openvino", "--json")
    assert ran.status == 0, ran.err
    usual, trial = ran.json["trials"]
    assert (usual["engine"], trial["engine"]) == (DEFAULT, "openvino")
    assert min(usual["seconds"], trial["seconds"]) > 0.0
    assert len(trial["ratios"]) == 2
    assert trial["psnr_db"] is None or trial["psnr_db"] > 40.0
    kept = json.loads(Path(ran.json["file"]).read_text())
    assert kept["measured"]["size"] == [16, 16]
    assert kept["measured"]["trials"] == ran.json["trials"]
    receive = ("receive", codec, heard, "--json", "--force", "-o", tmp_path / "out.png")
    ran = jscc(*receive)
    assert backend_of(ran) == "openvino"
    assert "jscc: openvino receives, as jscc choose found\n" in ran.err
    chosen = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert backend_of(jscc(*receive, "--engine", DEFAULT)) == DEFAULT
    usual = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
    assert np.abs(chosen - usual).max() <= 1
    assert backend_of(jscc(*receive, "--provider", "cpu")) == DEFAULT
    assert "openvino" in jscc("doctor", "--bundle", codec).out.partition("self-test passed in")[2]
    monkeypatch.setattr(engine_choice, "software", lambda: "jscc-edge 9")
    ran = jscc(*receive)
    assert backend_of(ran) == DEFAULT
    assert "what jscc choose found was elsewhere, or is outdated" in ran.err


def test_engines_take_turns(codec, monkeypatch):
    """A clock that runs while one engine receives, and as long as it is told."""
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    now, costs, order = [0.0], iter((4.0, 1.0, 8.0, 2.0, 2.0, 3.0)), []
    real = choose._receive

    def received(bundle, receiver, asked):
        order.append(receiver.backend.split()[0])
        return real(bundle, receiver, asked)

    def clock():
        now[0] += next(costs) if clock.running else 0.0
        clock.running = not clock.running
        return now[0]

    clock.running = False
    monkeypatch.setattr(choose, "_receive", received)
    asked = choose.Asked((16, 16), None, 1, 3)
    usual, other = choose.try_all(Bundle.open(codec), ("openvino",), asked, clock)
    assert order == [DEFAULT, "openvino", *(DEFAULT, "openvino") * 3]  # the first two warm up
    assert other.ratios == (1.0 / 4.0, 2.0 / 8.0, 3.0 / 2.0)
    assert (usual.seconds, other.seconds) == (2.0, 1.0)


@pytest.mark.parametrize("home", ["none", "closed"])
def test_nobody_needs_a_home_who_did_not_choose(jscc, codec, heard, tmp_path, monkeypatch, home):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    if home == "none":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        monkeypatch.setattr(Path, "is_file", closed)
        monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))
    assert backend_of(jscc("receive", codec, heard, "--json", "-o", tmp_path / "a.png")) == DEFAULT
    assert jscc("doctor", "--bundle", codec).status == 0
    if home == "none":
        ran = jscc("choose", codec, "--size", "16x16")
        assert ran.status == 69
        assert "home: got none for this user" in ran.err


def test_bundles_with_a_shortest_edge_are_tried(jscc, codec, tmp_path, monkeypatch):
    opened = Bundle.open(codec)
    contract = dataclasses.replace(opened.manifest.image, short_edge=8)
    manifest = dataclasses.replace(opened.manifest, image=contract)
    short = dataclasses.replace(opened, manifest=manifest)
    monkeypatch.setattr(choose.Bundle, "open", lambda path: short)
    ran = jscc("choose", codec, "--size", "4x50", "--runs", 1, "--engine", DEFAULT, "--json")
    assert ran.status == 0, ran.err
    ran = jscc("choose", codec, "--size", "99999x99999", "--runs", 1)
    assert "E_IMG_SIZE" in ran.err
    assert "Unable" not in ran.err


def test_an_engine_that_runs_no_stage_has_no_time(jscc, codec, monkeypatch):
    """TensorRT without a device, or after a crash: the CPU's time is not its own."""
    monkeypatch.setattr(choose, "check_machine", lambda engine: None)
    ran = jscc("choose", codec, "--size", "16x16", "--runs", 1, "--engine", "tensorrt", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["trials"][1]["seconds"] is None
    assert "the CPU takes TensorRT's place" in ran.json["trials"][1]["reason"]
    assert ran.json["engine"] == DEFAULT


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
    tried = tuple(trial["engine"] for trial in ran.json["trials"])
    assert tried == tuple(each for each in ENGINES if each != "openvino-bf16")
    every = [part for engine in ENGINES for part in ("--engine", engine)]
    ran = jscc("choose", codec, *options, *every)
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
    assert ran.json["trials"][1]["seconds"] is None
    assert "self-test" in ran.json["trials"][1]["reason"]


def test_where_none_receives_nothing_is_kept(jscc, codec, home, monkeypatch):
    refused = Trial("openvino", None, reason="got nothing, expected it installed")
    monkeypatch.setattr(choose, "try_all", lambda *arguments: [refused])
    ran = jscc("choose", codec, "--size", "16x16", "--engine", "openvino")
    assert ran.status == 69
    assert "E_CHOICE" in ran.err
    assert "got nothing" in ran.err
    assert not list(home.rglob("*.json"))
