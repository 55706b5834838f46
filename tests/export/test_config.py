"""The official config.yaml reads as OmegaConf reads it, and nothing but plain data is read."""

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jscc.export.config import read_config, section
from jscc.runtime.errors import CheckpointError

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "diffjscc"


def read(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    return read_config(tmp_path)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden vectors at {GOLDEN}")
def test_the_official_schema():
    config = read_config(GOLDEN / "tiny-cnn" / "config.yaml")
    assert config["params"]["learning_rate"] == 1e-4
    unet = section(config, "params.unet_config.params")
    assert (unet["model_channels"], unet["channel_mult"]) == (32, [1, 2, 2, 2])
    assert unet["use_spatial_transformer"] is True
    swin = section(read_config(GOLDEN / "tiny-swin"), "params")
    assert (swin["mlp_ratio"], swin["qk_scale"]) == (4.0, None)


# Nine nines of nines: 387 million values in 300 bytes.
MULTIPLYING = (
    "a: &a ["
    + ", ".join("1" * 9)
    + "]\n"
    + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-4", 1e-4), ("1E5", 1e5), ("-1.5e+3", -1500.0), ("4.", 4.0), (".5", 0.5), ("+1", 1)),
        *(("7", 7), ("-3", -3), ("1_000", 1000), (".inf", math.inf), ("-.inf", -math.inf)),
        *(("True", True), ("false", False), ("no", False), ("null", None), ("~", None), ("", None)),
        *(("1e", "1e"), ("e5", "e5"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01")),
        *(("'1e-4'", "1e-4"), ("a b", "a b"), ("[1, 2.5]", [1, 2.5]), ("{a: 1}", {"a": 1})),
        *(("=", "="), ("<<", "<<"), ("0x10", "0x10"), ("012", "012")),
    ],
)
def test_scalars(tmp_path, text, value):
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("a: 1\na: 2\n", r"the key 'a' twice, line 2"),
        ("b: *x\n", "found undefined alias 'x', line 1"),
        ("a: &x\n  b: *x\n", "aliases or nesting that grow beyond it"),
        (MULTIPLYING, "got aliases or nesting that grow beyond it, expected at most 20000"),
        ("a: !!python/object/apply:os.system ['true']\n", "an explicit tag, line 1"),
        ("a: !!binary aGk=\n", "an explicit tag"),
        ("1: 2\n", "a key that is no text, line 1"),
        ("[a]: 2\n", "a key that is no text"),
        ("- a\n", "got a list, expected keys and values"),
        ("", "got a NoneType"),
        ("a: [1\n", "line 2"),
        ("a: b: c\n", "mapping values are not allowed here, line 1"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("a: " + "[" * 5000, r"RecursionError"),
        ("a: \x01\n", "ReaderError"),
        ("a: " + "9" * 5000, "ValueError"),
        ("#" * (1 << 18), "got 262144 bytes, expected at most 131072"),
    ],
)
def test_what_is_not_plain_data(tmp_path, text, got):
    with pytest.raises(CheckpointError, match=got) as caught:
        read(tmp_path, text)
    assert caught.value.code == "E_CONFIG"
    assert "config.yaml" in str(caught.value)


def test_alias_that_a_dumper_wrote(tmp_path):
    """As yaml.safe_dump writes two networks that share a list."""
    assert read(tmp_path, "a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="got no such file") as caught:
        read_config(tmp_path)
    assert caught.value.code == "E_CKPT_NOT_FOUND"


def test_section_says_what_is_there():
    config = {"params": {"unet_config": {"params": {"a": 1}}, "value": 5}, "target": "x"}
    assert section(config, "params.unet_config.params") == {"a": 1}
    for path, got in (
        ("params.other", "got unet_config, value in params, expected 'other'"),
        ("other", "got params, target in the top level, expected 'other'"),
        ("params.value.deeper", "got a value in params.value, expected 'deeper'"),
        ("params.value", "got 5, expected keys and values"),
    ):
        with pytest.raises(CheckpointError, match=got) as caught:
            section(config, path)
        assert caught.value.code == "E_CONFIG"


@given(st.text(alphabet="ab:-[]{}&*!,'\"#|>\n 1e.?%@=<~", max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_gives_a_config_or_an_error(tmp_path, text):
    with contextlib.suppress(CheckpointError):
        assert isinstance(read(tmp_path, text), dict)
