"""jscc inspect: says what the manifest says, and opens nothing that fails to verify."""

import json

import pytest


def test_the_json_is_the_manifest_and_what_follows_from_it(jscc, link_bundle):
    ran = jscc("inspect", link_bundle.path, "--json")
    assert ran.status == 0
    assert ran.err == ""
    assert ran.json["bundle"] == link_bundle.sha256
    assert ran.json["manifest"] == json.loads((link_bundle.path / "manifest.json").read_text())
    assert ran.json["cbr"] == pytest.approx(2 / (3 * 4 * 4))
    listed = [p for p in link_bundle.path.rglob("*") if p.is_file() and "manifest" not in p.name]
    assert ran.json["size"] == sum(path.stat().st_size for path in listed)


def test_the_text_names_every_stage_port_and_default(jscc, link_bundle):
    ran = jscc("inspect", link_bundle.path)
    assert ran.status == 0
    assert ran.err == ""
    for words in (
        *("decode -> condition -> denoise -> render", "Apache-2.0", "1/24", "0 to 14 dB"),
        *("ddim, 4 steps", "received (hint, level 0.6)", "scaled_linear, 1000 timesteps"),
        *("float32[batch,4,height/4,width/4]", "side inputs  context", link_bundle.sha256),
    ):
        assert words in ran.out
    stages = ran.out[ran.out.index("\nStages") :]
    order = [stages.index(f"\n{name} ") for name in ("encode", "decode", "condition", "denoise")]
    assert order == sorted(order)


def test_the_text_of_a_codec_has_parity_and_selftest(jscc, codec):
    ran = jscc("inspect", codec)
    assert "1.0e-07" in ran.out
    assert "120.0 dB" in ran.out
    assert "yes, 40 dB or more" in ran.out
    assert "Loop" not in ran.out


def test_a_damaged_bundle_is_not_described(jscc, codec_bundle):
    path = codec_bundle.path / "graphs" / "decode.onnx"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    ran = jscc("inspect", codec_bundle.path)
    assert (ran.status, ran.out) == (65, "")
    assert ran.err.startswith("jscc inspect: graphs/decode.onnx: got sha256 ")
    assert ran.err.endswith("[E_HASH]\n")


def test_a_missing_bundle(jscc, tmp_path):
    ran = jscc("inspect", tmp_path / "nope.jscc")
    assert ran.status == 65
    assert ran.err.count("\n") == 1
    assert "[E_BUNDLE_MISSING]" in ran.err
