"""Captions become the token numbers that OpenCLIP makes of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jscc.export import tokenizer
from jscc.export.tokenizer import END, START, clean, tokenize
from jscc.runtime.errors import UnavailableError

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc" / "tiny-cnn"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")
def test_tokens_match_golden():
    prompts = json.loads((GOLDEN / "prompts.json").read_text())
    expected = load_file(GOLDEN / "io.safetensors")["out.text.tokens"]
    assert np.array_equal(tokenize(prompts), expected)


def test_tokens_lie_between_start_and_end():
    tokens = tokenize(["", "a person riding a motorcycle"])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == np.int64
    assert tokens[0, :3].tolist() == [START, END, 0]
    # Numbers from the README of the vocabulary's package.
    assert tokens[1, :8].tolist() == [START, 320, 2533, 6765, 320, 10297, END, 0]


def test_long_captions_are_cut_and_still_end():
    tokens = tokenize(["a person riding a motorcycle"], length=5)
    assert tokens.tolist() == [[START, 320, 2533, 6765, END]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Two\n\tDOGS  ", "two dogs"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("cafÃ©", "café"),
        ("don’t", "don't"),
    ],
)
def test_text_is_cleaned(text, expected):
    assert clean(text) == expected


def test_lengths_without_room_are_refused():
    with pytest.raises(ValueError, match="got length 1, expected at least 2"):
        tokenize(["a"], length=1)


def test_missing_vocabulary_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    tokenizer._encoder.cache_clear()
    with pytest.raises(UnavailableError, match="got no package instant-clip-tokenizer"):
        tokenize(["a"])
