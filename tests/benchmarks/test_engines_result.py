"""The recorded result of engines: what `jscc build` said of each stage, refused graphs included."""

import json
from pathlib import Path

import pytest

import tiny_bundle
from fake_tensorrt import FakeTensorRt, install, make_device
from jscc.__main__ import main
from jscc.benchmarks import engines
from jscc.benchmarks.readme_tables import render
from jscc.benchmarks.report import write_result
from jscc.runtime.errors import UsageError
from jscc.runtime.tensorrt.library import load_library


@pytest.fixture
def built(monkeypatch, tmp_path, capsys, shared_bundles):
    """What the command says of a bundle; its library is a stand-in."""

    def call(name, *refused, shapes="16x24"):
        cuda = make_device()
        library = FakeTensorRt(cuda, "1.7.1.116", rtx=True)
        library.refused = refused
        install(monkeypatch, library, cuda)
        capsys.readouterr()
        options = ("--ahead", "sm_89", "--shapes", shapes, "-o", str(tmp_path / "engines"))
        main(["build", str(shared_bundles[name].path), *options, "--json"])
        return json.loads(capsys.readouterr().out)

    yield call
    load_library.cache_clear()


def other(document, **changes):
    """The same of another bundle."""
    changed = {name: changes.pop(name) for name in ("size", "cpu_s") if name in changes}
    rows = [{**row, **changed} for row in document["engines"]]
    return {**document, **changes, "engines": rows}


def test_every_stage_of_every_precision_has_its_cells(built, tmp_path):
    codec, diffusion = built("codec"), built("diffusion", shapes="64x64")
    codec = other(codec, size=3 << 20, cpu_s=1.25)
    half = other(codec, precision="fp16", size=3 << 19, cpu_s=2.0)
    result = engines.result_of(
        [codec, other(diffusion, size=1 << 20, cpu_s=0.5), half], "sm_89", ""
    )
    assert engines.table(result).splitlines() == [
        "| for sm_89 | at | fp32, MiB | fp32, CPU s | fp16, MiB | fp16, CPU s |",
        "| --- | --: | --: | --: | --: | --: |",
        "| `tiny`, decode | 16×24 | 3.0 | 1.2 | 1.5 | 2.0 |",
        "| `tiny`, encode | 16×24 | 3.0 | 1.2 | 1.5 | 2.0 |",
        "| `tiny`, condition | 64×64 | 1.0 | 0.5 | – | – |",
        "| `tiny`, decode | 64×64 | 1.0 | 0.5 | – | – |",
        "| `tiny`, denoise | 32×32 | 1.0 | 0.5 | – | – |",
        "| `tiny`, render | 32×32 | 1.0 | 0.5 | – | – |",
    ]
    path = tmp_path / "out.json"
    write_result(path, "engines", result)
    assert " and TensorRT for RTX 1.7.1.116, at commit " in render(path)
    assert "engines" not in json.loads(path.read_text())["rows"][0]


def test_a_graph_that_is_refused_is_named_in_its_cell(built):
    result = engines.result_of([built("codec", "Sigmoid")], "sm_89", "16x24")
    decode, encode = engines.table(result).splitlines()[2:]
    assert decode == "| `tiny`, decode | 16×24 | E_GRAPH_LOAD | – |"
    assert encode.startswith("| `tiny`, encode | 16×24 | 0.0 | ")


def test_ranges_and_fixed_sizes_are_shown(built):
    result = engines.result_of([built("codec", shapes="16x16-32x64")], "sm_89", "")
    assert "| `tiny`, decode | 16–32×16–64 |" in engines.table(result)
    for row in result["rows"]:
        row["profiles"] = []
    assert "| `tiny`, decode | its one size |" in engines.table(result)
    for row in result["rows"]:
        row["profiles"] = [{"batch": [1, 1, 4]}]
    assert "| `tiny`, decode | batch 1–4 |" in engines.table(result)


def test_bundles_that_would_share_a_cell_are_refused(built):
    document = built("codec")
    with pytest.raises(UsageError, match="bundles: got tiny in fp32 more than once, expected one"):
        engines.result_of([document, document], "sm_89", "16x24")


def test_a_build_that_says_nothing_is_one_line(tmp_path, capsys):
    arguments = ("bench", "engines", str(tmp_path / "none.jscc"), "--shapes", "16x24")
    assert main([*arguments, "--ahead", "sm_89", "--json", str(tmp_path / "out.json")]) == 69
    told = capsys.readouterr().err
    assert told.startswith("jscc bench: none.jscc: got 'jscc build: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
    assert main([*arguments, "--ahead", "sm_86,sm_89"]) == 2
    assert "--ahead: got 'sm_86,sm_89', expected one kind" in capsys.readouterr().err


def test_the_real_library_builds_a_bundle(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    bundle, out = tiny_bundle.write_codec(tmp_path / "codec.jscc"), tmp_path / "out.json"
    arguments = ("bench", "engines", str(bundle.path), "--ahead", "sm_89", "--shapes", "16x24")
    assert main([*arguments, "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {row["stage"] for row in result["rows"]} == {"decode", "encode"}
    assert all(row["error"] is None and row["size"] > 1000 for row in result["rows"])
    assert all(row["cpu_s"] > 0 for row in result["rows"])


def test_the_recorded_result_has_every_system_and_no_refused_graph():
    """As the README says."""
    from jscc.export.system import names

    recorded = Path(engines.__file__).resolve().parent / "results" / "engines-sm_89.json"
    rows = json.loads(recorded.read_text(encoding="utf-8"))["rows"]
    assert {row["system"] for row in rows if row["precision"] == "fp32"} == set(names())
    assert {row["precision"] for row in rows if row["system"] == "diffjscc"} == {
        "fp32", "fp16", "int8",
    }  # fmt: skip
    assert [row["stage"] for row in rows if row["error"] is not None] == []
