"""README tables: made from result files only, and refused where those are missing or foreign."""

import json

import pytest

from jscc.benchmarks.readme_tables import fill
from jscc.runtime.errors import DataError

PLACE = "before\n<!-- table: one.json -->\nold\n<!-- end of table -->\nafter\n"


def record(folder, kind="peers"):
    spread = {"median": 2.0, "min": 1.9, "max": 2.2}
    engine = {"name": "torch-eager", "wall_ms": spread, "peak_rss_mib": 2048.0}
    result = {
        "kind": kind,
        "machine": {"cpu": "some processor", "threads": 2},
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


def test_text_without_markers_is_left_alone(tmp_path):
    assert fill("no table here\n", tmp_path) == "no table here\n"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"one\.json: got no such file"):
        fill(PLACE, tmp_path)


def test_a_foreign_kind_is_named(tmp_path):
    record(tmp_path, kind="../evil")
    with pytest.raises(DataError, match=r"one\.json: got kind '\.\./evil'"):
        fill(PLACE, tmp_path)
