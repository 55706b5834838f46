"""jscc bench receivers: contestants take turns on the same symbols, quality beside speed."""

import argparse
import copy
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import tiny_bundle
import tiny_checkpoint
import tiny_convolutions
from alexnet_weights import random_weights
from jscc.__main__ import main
from jscc.benchmarks import contestants, receivers_memory
from jscc.benchmarks.contestants import Contestant, Loader, parse_contestant
from jscc.benchmarks.receivers_table import stages_table
from jscc.calibration.lpips import LPIPS_FILES
from jscc.runtime.backends import onnxruntime, openvino
from jscc.runtime.bundle import Bundle, write_bundle


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    return tiny_convolutions.write_looped(tmp_path_factory.mktemp("looped") / "loop.jscc")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in tiny_convolutions.photos(2, 168, 192).items():
        Image.fromarray(pixels).save(folder / name)
    return folder


def measured(tmp_path, *arguments):
    path = tmp_path / "result.json"
    command = ["bench", "receivers", *map(str, arguments), "--threads", "1", "--json", str(path)]
    assert main(command) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_contestant_is_a_bundle_and_its_settings():
    found = parse_contestant("out/a.jscc,engine=torch,steps=100,turns=1,label=official")
    assert (found.path.name, found.engine, found.steps, found.turns) == ("a.jscc", "torch", 100, 1)
    assert str(found) == "official"
    assert str(parse_contestant("out/a.jscc,steps=4,sampler=ddim")) == "a, ddim, 4 steps"
    assert parse_contestant("a.jscc") == Contestant(found.path.__class__("a.jscc"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.jscc,size=4", "got 'size=4'"),
        ("a.jscc,steps", "got 'steps'"),
        ("a.jscc,steps=1,steps=2", "got 'steps=2'"),
        ("a.jscc,engine=cuda", "got engine 'cuda'"),
    ],
)
def test_other_settings_are_refused(text, shown):
    with pytest.raises(argparse.ArgumentTypeError, match=shown):
        parse_contestant(text)


def test_all_take_turns_on_the_same_symbols(looped, images, tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    contestants = (f"{looped.path},steps=3", f"{looped.path},steps=3,label=same")
    contestants += (f"{looped.path},steps=1,turns=1",)
    more = ("--images", images, "--turns", 3, "--lpips-weights", weights, "--snr", 5)
    result = measured(tmp_path, *contestants, *more)
    capsys.readouterr()
    first, same, short = result["contestants"]
    assert [each["turns"] for each in result["contestants"]] == [3, 3, 1]
    assert [each["steps"] for each in result["contestants"]] == [3, 3, 1]
    assert same["psnr_to_first_db"] is None  # equal to the last bit, so infinite
    assert short["psnr_to_first_db"] > 5
    assert same["psnr_db"] == first["psnr_db"]
    assert same["lpips"] == first["lpips"] > 0
    assert 0 < same["ms_ssim"] == first["ms_ssim"] < 1
    assert [each["pairs"] for each in result["contestants"]] == [3, 3, 1]
    assert [each["quality_images"] for each in result["contestants"]] == [1, 1, 1]
    assert set(first["stages_ms"]) >= {"decode", "denoise", "total"}
    assert result["snr_db"] == 5


def test_ratios_are_those_of_the_times(looped, tmp_path, capsys):
    pair = (looped.path, f"{looped.path},steps=2")
    result = measured(tmp_path, *pair, "--size", "32x40", "--turns", 3)
    assert "times as fast" in capsys.readouterr().out
    base, other = result["contestants"]
    assert base["faster"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    fastest = base["wall_s"]["max"] / other["wall_s"]["min"]
    slowest = base["wall_s"]["min"] / other["wall_s"]["max"]
    assert slowest <= other["faster"]["min"] <= other["faster"]["max"] <= fastest
    assert other["pairs"] == 3
    assert other["psnr_db"] is None
    assert result["size"] == [32, 40]


def test_peak_memory_is_that_of_a_process_of_its_own(looped, tmp_path, capsys):
    pair = (f"{looped.path},steps=3,label=three", f"{looped.path},steps=1,label=one")
    result = measured(tmp_path, *pair, "--size", "32x40", "--turns", 1, "--memory")
    shown = capsys.readouterr().out
    three, one = result["contestants"]
    # One measurement serves both: steps take no memory.
    assert three["peak_mib"] == one["peak_mib"]
    # Python, numpy and an engine take more than this, and this process has more than that.
    assert 20 < one["peak_mib"] < result["peak_rss_mib"]
    assert f" {one['peak_mib'] / 1024:.2f} |" in shown


def test_memory_that_cannot_be_measured_is_said(looped, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(receivers_memory.sys, "executable", "false")
    path = tmp_path / "result.json"
    command = ["bench", "receivers", str(looped.path), "--memory", "--json", str(path)]
    assert main(command) == 69
    told = capsys.readouterr().err
    assert "memory of loop: got status 1 (nothing on stderr), expected 0." in told
    assert not path.exists()


def test_memory_that_takes_too_long_is_said(looped, tmp_path, monkeypatch, capsys):
    never = tmp_path / "python"
    never.write_text("#!/bin/sh\nexec sleep 3600\n")
    never.chmod(0o755)
    monkeypatch.setattr(receivers_memory.sys, "executable", str(never))
    monkeypatch.setattr(receivers_memory, "LIMIT_S", 0.01)
    path = tmp_path / "result.json"
    command = ["bench", "receivers", str(looped.path), "--memory", "--json", str(path)]
    assert main(command) == 69
    told = capsys.readouterr().err
    assert "memory of loop: got no end within 0.01 s, expected one." in told
    assert not path.exists()


def test_the_stages_table_says_where_the_time_goes():
    times = {"decode": 250.0, "denoise": 1500.0, "total": 2000.0}
    contestants = [
        {"name": "whole", "steps": 4, "stages_ms": times},
        {"name": "codec", "steps": 0, "stages_ms": {"decode": 250.0, "total": 250.0}},
    ]
    lines = stages_table({"contestants": contestants}).splitlines()
    assert lines[0] == "| receiver | steps | decode, s | denoise, s | total, s |"
    assert lines[2:] == [
        "| whole | 4 | 0.25 (12%) | 1.5 (75%) | 2 (100%) |",
        "| codec | 0 | 0.25 (100%) | – | 0.25 (100%) |",
    ]


def test_one_that_comes_first_may_take_fewer_turns(looped, tmp_path, capsys):
    pair = (f"{looped.path},steps=3,turns=1", f"{looped.path},steps=1")
    result = measured(tmp_path, *pair, "--size", "32x40", "--turns", 3)
    capsys.readouterr()
    assert [each["pairs"] for each in result["contestants"]] == [1, 1]
    assert [each["turns"] for each in result["contestants"]] == [1, 3]


def test_other_symbols_are_refused(looped, tmp_path, capsys):
    manifest, files = tiny_bundle.codec()
    signal = replace(manifest.signal, snr_db_default=3.0)
    other = tmp_path / "other.jscc"
    write_bundle(other, replace(manifest, signal=signal, selftest=None), files)
    assert main(["bench", "receivers", str(looped.path), str(other)]) == 2
    assert "with other symbols than the first" in capsys.readouterr().err


def test_a_result_that_is_there_is_kept(looped, tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text("{}", encoding="utf-8")
    command = ["bench", "receivers", str(looped.path), "--json", str(path)]
    assert main(command) == 73
    capsys.readouterr()
    assert path.read_text(encoding="utf-8") == "{}"


def test_two_of_one_name_are_refused(looped, capsys):
    assert main(["bench", "receivers", str(looped.path), str(looped.path)]) == 2
    assert "got 'loop' twice, expected different ones" in capsys.readouterr().err


def test_one_at_a_time_gives_the_same_pictures(looped, images, tmp_path, capsys):
    pair = (f"{looped.path},steps=2,label=a", f"{looped.path},steps=1,label=b")
    more = ("--images", images, "--turns", 2)
    together = measured(tmp_path, *pair, *more)
    (tmp_path / "result.json").unlink()
    alone = measured(tmp_path, *pair, *more, "--one-at-a-time")
    capsys.readouterr()
    keys = ("name", "steps", "turns", "pairs", "psnr_db", "psnr_to_first_db", "bundle")
    for one, other in zip(together["contestants"], alone["contestants"], strict=True):
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
        assert other["load_s"] > 0


def test_what_is_dropped_is_loaded_again_and_receives_once_before(looped):
    """So that a turn never pays for what the first reception of a process pays for."""
    first, second = (replace(parse_contestant(str(looped.path)), label=each) for each in "ab")
    other = replace(first, engine="openvino")
    received = []

    def load(*, together):
        return Loader(
            looped.manifest.signal,
            lambda: pytest.fail("no engine here takes weights"),
            1,
            lambda receiver, contestant: received.append(contestant.label or "openvino"),
            together,
        )

    for together, expected in ((True, ["a", "o"]), (False, ["a", "o", "a"])):
        received.clear()
        loader = load(together=together)
        for each in (first, second, replace(other, label="o"), first):
            loader.get(each)
        assert received == expected


def test_one_at_a_time_holds_on_to_one(looped, tmp_path, monkeypatch, capsys):
    """When one is loaded, those before it are gone."""
    made = []

    class Watched(contestants.Receiver):
        def __init__(self, *args, **kwargs):
            assert [each for each in made if each() is not None] == []
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(contestants, "Receiver", Watched)
    pair = (f"{looped.path},steps=1", f"{looped.path},engine=openvino,steps=1")
    measured(tmp_path, *pair, "--size", "32x40", "--turns", 2, "--one-at-a-time")
    capsys.readouterr()
    assert len(made) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["torch", pytest.param("torch-compile", marks=pytest.mark.exhaustive)]
)
def test_the_modules_in_pytorch_receive_the_same_picture(engine, tmp_path, capsys, request):
    """All stages and every step of the loop, from the weights that the bundle was exported from."""
    from jscc.export.cli import main as export

    config = copy.deepcopy(tiny_checkpoint.LDM)
    for part in ("control_stage_config", "unet_config"):
        params = config["params"][part]["params"]
        params.update(channel_mult=[1], attention_resolutions=[])
    checkpoint = str(tiny_checkpoint.write_control_ldm(tmp_path / "ldm", config))
    path = tmp_path / "ldm.jscc"
    assert (
        export(
            ["--model", "diffjscc", "--checkpoint", checkpoint, "--size", "64x64", "-o", str(path)]
        )
        == 0
    )
    folder = tmp_path / "images"
    folder.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).resize((64, 64)).save(folder / "a.png")
    pair = [f"{path},engine={name},steps=3" for name in (engine, "onnxruntime")]
    more = ("--images", folder, "--turns", 1)
    result = measured(tmp_path, *pair, *more, "--checkpoint", checkpoint)
    capsys.readouterr()
    modules, ours = result["contestants"]
    assert modules["engine"].startswith("torch ")
    assert modules["engine"].endswith(" compiled") == (engine == "torch-compile")
    assert [modules["steps"], ours["steps"]] == [3, 3]
    assert ours["psnr_to_first_db"] is None or ours["psnr_to_first_db"] > 50
    other = str(tiny_checkpoint.write_control_ldm(tmp_path / "other", config))
    command = ["bench", "receivers", *pair, *map(str, more), "--checkpoint", other]
    assert main(command) == 2
    assert "ldm.jscc: got the weights 'model.ckpt' (" in capsys.readouterr().err
    request.getfixturevalue("tensorrt_takes")(Bundle.open(path), shapes="64x64")


@pytest.mark.parametrize(
    ("handed_over", "told"),
    [
        ({"denoise"}, " (in part)"),
        ({"condition", "decode", "denoise", "render"}, " (openvino not used)"),
    ],
)
def test_an_engine_that_hands_stages_over_is_told(
    looped, tmp_path, monkeypatch, capsys, handed_over, told
):
    def load(self, stage, *graph):
        if stage not in handed_over:
            return real(self, stage, *graph)
        session = onnxruntime.OnnxRuntimeBackend(threads=1).load(stage, *graph)
        session.fallbacks, session.provider = (f"stage {stage!r}: x",), "onnxruntime 1 on cpu"
        return session

    real = openvino.OpenVinoBackend.load
    monkeypatch.setattr(openvino.OpenVinoBackend, "load", load)
    pair = (f"{looped.path},steps=1", f"{looped.path},engine=openvino,steps=1")
    result = measured(tmp_path, *pair, "--size", "32x40", "--turns", 1)
    first, other = result["contestants"]
    assert (first["unused"], other["unused"]) == (False, told != " (in part)")
    assert other["providers"]["denoise"] == "onnxruntime 1 on cpu"
    assert set(other["fallbacks"]) == {f"stage {stage!r}: x" for stage in handed_over}
    shown = capsys.readouterr().out
    assert f"{first['engine']} |" in shown
    assert f"{other['engine']}{told} |" in shown


def test_an_engine_whose_self_test_fails_is_told(shared_bundles, tmp_path, monkeypatch, capsys):
    class Wrong:
        """Another session, whose outputs are all zero."""

        def __init__(self, session):
            self.session = session

        def __getattr__(self, name):
            return getattr(self.session, name)

        def run(self, arrays):
            return {name: 0 * array for name, array in self.session.run(arrays).items()}

    real = openvino.OpenVinoBackend.load
    load = lambda *given: Wrong(real(*given))  # noqa: E731
    monkeypatch.setattr(openvino.OpenVinoBackend, "load", load)
    path = shared_bundles["codec"].path
    pair = (path, f"{path},engine=openvino")
    _, other = measured(tmp_path, *pair, "--size", "32x40", "--turns", 1)["contestants"]
    assert other["unused"]
    assert other["engine"].startswith("onnxruntime ")
    assert f"{other['engine']} (openvino not used) |" in capsys.readouterr().out


def test_time_and_quality_are_drawn(looped, images, tmp_path, capsys):
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in LPIPS_FILES:
        save_file(random_weights(), weights / file)
    pair = (f"{looped.path},steps=2", f"{looped.path},steps=1")
    measured(tmp_path, *pair, "--images", images, "--turns", 1, "--lpips-weights", weights)
    plot = tmp_path / "plot.svg"
    command = ["bench", "plot", str(tmp_path / "result.json"), "--kind", "time", "-o", str(plot)]
    assert main(command) == 0
    assert b"<svg" in plot.read_bytes()
    (tmp_path / "other.json").write_text('{"kind": "quality"}', encoding="utf-8")
    command[2] = str(tmp_path / "other.json")
    assert main(command) == 65
    assert "other.json: got another kind of file" in capsys.readouterr().err
