"""Record: one line of JSON that says what ran."""

import json
import math

import pytest

from jscc.runtime.record import LoopRecord, Record


def make_record(**changes):
    fields = {
        "bundle": "5a" * 32, "system": "tiny", "precision": "fp32", "backend": "onnxruntime 1",
        "providers": {"decode": "cpu"}, "seed": 1, "frame": 2, "batch": 1,
        "loops": {"denoise": LoopRecord("ddim", 4, "noise", 999, 0.0)},
        "snr_db_declared": 20.0, "snr_db_used": 14.0, "snr_clamped": True,
        "snr_db_measured": None, "snr_suspect": False, "symbols": 16, "missing": 0, "power": 1.2,
        "fallbacks": ("cuda is not here",), "tiles": {"decode": 1}, "times_ms": {"total": 3.5},
    }  # fmt: skip
    return Record(**{**fields, **changes})


def test_it_is_one_line_of_json_with_every_field():
    record = make_record()
    line = record.to_json()
    assert "\n" not in line
    tree = json.loads(line)
    assert set(tree) == set(record.__dataclass_fields__)
    assert list(tree) == sorted(tree)
    assert tree["loops"]["denoise"] == {
        "sampler": "ddim", "steps": 4, "start": "noise", "level": 999, "guidance": 0.0,
        "guide": None, "guide_every": 1, "travel": [1, 1], "settings": {}, "spacing": None,
    }  # fmt: skip
    assert tree["fallbacks"] == ["cuda is not here"]
    assert tree["snr_db_measured"] is None


def test_steps_are_those_of_all_loops():
    loop = LoopRecord("ddim", 4, "noise", 999, 0.0)
    assert make_record(loops={}).steps == 0
    assert make_record(loops={"one": loop, "two": loop}).steps == 8


def test_json_has_no_numbers_that_json_lacks():
    with pytest.raises(ValueError, match="Out of range float values"):
        make_record(power=math.nan).to_json()
