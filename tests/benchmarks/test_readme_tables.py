"""README tables: made from result files only, and refused where those are missing or foreign."""

import json

import pytest

import recorded
from jscc.benchmarks.readme_tables import draw, fill
from jscc.runtime.errors import DataError, UsageError

PLACE = "before\n<!-- table: one.json -->\nold\n<!-- end of table -->\nafter\n"


def record(folder, kind="peers", **machine):
    spread = {"median": 2.0, "min": 1.9, "max": 2.2}
    engine = {"name": "torch-eager", "wall_ms": spread, "peak_rss_mib": 2048.0}
    result = {
        "kind": kind,
        "machine": {"cpu": "some processor", "threads": 2, **machine},
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
        "commit": "0123456789abcdef+",
        "pairs": [
            {
                "ours": engine,
                "peer": engine,
                "wall_ratio": spread,
                "cpu_ratio": spread,
                "quality": {"psnr_db": 120.4},
            }
        ],
    }
    (folder / "one.json").write_text(json.dumps(result))


def test_a_table_replaces_what_stood_between_its_markers(tmp_path):
    record(tmp_path)
    text = fill(PLACE, tmp_path)
    assert text.startswith("before\n<!-- table: one.json -->\n| peer |")
    assert "| torch-eager | 2.00 (1.90–2.20) |" in text
    assert "some processor, 2 threads" in text
    assert "commit 0123456789+" in text
    assert "old" not in text
    assert text.endswith("<!-- end of table -->\nafter\n")


def test_filling_twice_changes_nothing(tmp_path):
    record(tmp_path)
    once = fill(PLACE, tmp_path)
    assert fill(once, tmp_path) == once


def test_two_tables_keep_apart(tmp_path):
    record(tmp_path)
    assert fill(PLACE * 2, tmp_path) == fill(PLACE, tmp_path) * 2


def test_the_engine_is_named(tmp_path):
    record(tmp_path)
    path = tmp_path / "one.json"
    result = json.loads(path.read_text())
    result |= {"engine": "openvino-bf16", "versions": {**result["versions"], "openvino": "9.8.7"}}
    path.write_text(json.dumps(result))
    assert "and OpenVINO 9.8.7 in bf16, at commit" in fill(PLACE, tmp_path)


def test_text_without_markers_is_left_alone(tmp_path):
    assert fill("no table here\n", tmp_path) == "no table here\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"one\.json: got no such file"):
        fill(PLACE, tmp_path)


def test_a_foreign_kind_is_named(tmp_path):
    record(tmp_path, kind="../evil")
    with pytest.raises(DataError, match=r"one\.json: got kind '\.\./evil'"):
        fill(PLACE, tmp_path)


def test_a_table_of_a_jetson_says_its_power_mode(tmp_path):
    board = {"model": "A Jetson", "l4t": "36.4.4", "power_mode": "25W", "clocks_pinned": True}
    record(tmp_path, jetson=board)
    words = "2 threads, A Jetson, Jetson Linux 36.4.4, power mode 25W, clocks pinned, with Python"
    assert words in fill(PLACE, tmp_path)


SYSTEMS = (
    "<!-- table: systems --snr 1,7 --label 'sing=SING, ours' a.json b.json -->\n"
    "old\n<!-- end of table -->\n"
)


def test_several_results_make_one_table(tmp_path):
    recorded.write(tmp_path, a=recorded.systems(), b=recorded.baseline())
    text = fill(SYSTEMS, tmp_path)
    assert "| SING, ours | 1/96 | 2.50 | 1.50 | 21.00 / 0.5000 | 23.00 / 0.4000 |" in text
    assert "| HEVC + LDPC | 1/96 | – | – | lost | 25.00 / 0.4500 |" in text
    assert "old" not in text
    assert text.count("Measured on some processor") == 1  # both files say the same
    assert fill(text, tmp_path) == text


def test_a_missing_file_of_several_is_named(tmp_path):
    recorded.write(tmp_path, a=recorded.systems())
    with pytest.raises(DataError, match=r"b\.json: got no such file"):
        fill(SYSTEMS, tmp_path)


def test_stages_are_those_of_receivers(tmp_path):
    record(tmp_path)
    result = json.loads((tmp_path / "one.json").read_text())
    times = {"decode": 500.0, "total": 2000.0}
    result |= {"contestants": [{"name": "int8", "steps": 1, "stages_ms": times}]}
    (tmp_path / "one.json").write_text(json.dumps(result))
    text = fill("<!-- table: stages one.json -->\n<!-- end of table -->", tmp_path)
    assert "| int8 | 1 | 0.5 (25%) | 2 (100%) |" in text
    assert "some processor, 2 threads" in text
    assert fill(text, tmp_path) == text


def test_options_of_a_table_are_checked(tmp_path):
    recorded.write(tmp_path, a=recorded.systems())
    place = "<!-- table: systems --color a.json -->\n<!-- end of table -->"
    with pytest.raises(UsageError, match="--color"):
        fill(place, tmp_path)


def test_figures_are_drawn_where_the_text_names_them(tmp_path):
    recorded.write(tmp_path, a=recorded.systems(), b=recorded.baseline())
    text = (
        "<!-- figure: snr.svg --kind snr --metric psnr_db a.json b.json -->\n![x](snr.svg)\n"
        "<!-- figure: plane.png --kind plane a.json -->\n"
    )
    assert draw(text, tmp_path, images=None, bundles=None) == ["snr.svg", "plane.png"]
    first = (tmp_path / "snr.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
    draw(text, tmp_path, images=None, bundles=None)
    assert (tmp_path / "snr.svg").read_bytes() == first


def test_rows_of_pictures_stay_without_the_images(tmp_path, capsys):
    text = "<!-- figure: rows.png --kind grid a.json -->"
    assert draw(text, tmp_path, images=None, bundles=None) == []
    assert "rows.png stays" in capsys.readouterr().err


def test_a_figure_without_its_result_is_refused(tmp_path):
    text = "<!-- figure: snr.svg --kind snr a.json -->"
    with pytest.raises(DataError, match=r"a\.json: got No such file"):
        draw(text, tmp_path, images=None, bundles=None)
