"""A bundle is what its manifest says, byte for byte, and stays so once it is open."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest

import tiny_bundle
from effort import little_effort
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import serialise_manifest


def edit(path, change):
    """Rewrite the manifest of the bundle at `path`, with a right hash."""
    manifest = path / "manifest.json"
    tree = json.loads(manifest.read_bytes())
    change(tree)
    data = json.dumps(tree).encode()
    manifest.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (path / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def replace_file(path, name, data):
    """Put other bytes into the bundle at `path`, honestly listed."""
    (path / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit(path, lambda tree: tree["files"].update({name: entry}))


def refused(path, said, code):
    with pytest.raises(BundleError, match=said) as caught:
        Bundle.open(path)
    assert caught.value.code == code


def test_what_was_written_is_what_is_read(diffusion_bundle):
    _, files = tiny_bundle.diffusion()
    bundle = Bundle.open(diffusion_bundle.path)
    assert bundle.path == diffusion_bundle.path
    assert bundle.graph("denoise") == files["graphs/denoise.onnx"]
    assert list(bundle.external("denoise")) == ["denoise.onnx.data"]
    assert (
        bytes(bundle.external("denoise")["denoise.onnx.data"]) == files["graphs/denoise.onnx.data"]
    )
    assert bundle.external("render") == {}
    assert bundle.tensor("bias").shape == (1, 4, 1, 1)
    assert bundle.summaries["denoise"].nodes == 6


def test_the_hash_of_the_manifest_is_the_identity(diffusion_bundle):
    data = (diffusion_bundle.path / "manifest.json").read_bytes()
    assert diffusion_bundle.sha256 == hashlib.sha256(data).hexdigest()
    assert data == serialise_manifest(diffusion_bundle.manifest)


def test_what_is_open_cannot_be_changed(diffusion_bundle):
    with pytest.raises(ValueError, match="read-only"):
        diffusion_bundle.tensor("bias")[0] = 1
    with pytest.raises(TypeError, match="read-only"):
        diffusion_bundle.external("denoise")["denoise.onnx.data"][0] = 1


def test_unknown_names_list_the_known(codec_bundle):
    with pytest.raises(LookupError, match=r"no stage 'render'; there are \['decode', 'encode'\]"):
        codec_bundle.graph("render")
    with pytest.raises(LookupError, match="no stage 'x'"):
        codec_bundle.external("x")
    with pytest.raises(LookupError, match=r"no tensor 'x'; there are .*selftest_image"):
        codec_bundle.tensor("x")


def test_nothing_where_a_bundle_should_be(tmp_path):
    refused(tmp_path / "none.jscc", "none.jscc: got nothing, expected a bundle", "E_BUNDLE_MISSING")
    refused(tmp_path, "manifest.json: got nothing, expected a regular file", "E_BUNDLE_MISSING")


def test_a_missing_and_an_unlisted_file(codec_bundle):
    path = codec_bundle.path
    (path / "notes.txt").write_text("x")
    refused(path, r"got also \[\"notes.txt\"\], expected listed files only", "E_BUNDLE_UNLISTED")
    (path / "notes.txt").unlink()
    (path / "cache").mkdir()
    refused(path, r"got also \[\"cache\"\]", "E_BUNDLE_UNLISTED")
    (path / "cache").rmdir()
    (path / "graphs" / "decode.onnx").unlink()
    refused(path, r"got no \[\"graphs/decode.onnx\"\], expected every", "E_BUNDLE_MISSING")
    shutil.rmtree(path / "graphs")
    refused(path, r"got no \[\"graphs/decode.onnx\", \"graphs/encode", "E_BUNDLE_MISSING")


def test_the_manifest_is_sealed(codec_bundle):
    path = codec_bundle.path
    (path / "manifest.sha256").write_text("0" * 64 + "  manifest.json\n")
    refused(path, 'manifest.json: got sha256 [0-9a-f]{64}, expected "0000', "E_HASH")
    (path / "manifest.sha256").write_bytes(b"\xff" * 200)
    refused(path, r"expected \"\\\\xff", "E_HASH")
    (path / "manifest.sha256").write_bytes(b"x" * 201)
    refused(path, "manifest.sha256: got 201 bytes, expected at most 200", "E_MANIFEST")
    (path / "manifest.sha256").unlink()
    refused(path, "manifest.sha256: got nothing", "E_BUNDLE_MISSING")


def test_the_seal_is_one_that_sha256sum_reads(codec_bundle):
    text = (codec_bundle.path / "manifest.sha256").read_text()
    assert text == f"{codec_bundle.sha256}  manifest.json\n"


def test_ports_of_graph_and_manifest_agree(codec_bundle):
    def change(tree):
        tree["stages"]["decode"]["inputs"][1]["name"] = "gain"
        tree["stages"]["decode"]["inputs"][1]["shape"] = ["batch", 2]
        tree["signal"]["csi_inputs"] = ["gain"]

    edit(codec_bundle.path, change)
    said = (
        r"stage 'decode': got inputs \[\"received\", \"snr_db\"\], expected \['gain', 'received'\]"
    )
    refused(codec_bundle.path, said, "E_BUNDLE_INCONSISTENT")


def test_static_dimensions_and_dtypes_agree(diffusion_bundle):
    path = diffusion_bundle.path
    good = tiny_bundle.diffusion()[1]["graphs/condition.onnx"]
    graph = onnx.load_from_string(good)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    replace_file(path, "graphs/condition.onnx", graph.SerializeToString())
    said = (
        r"stage 'condition', port 'reconstruction': got float32\[batch,5,h.*expected .*\[batch,3,h"
    )
    refused(path, said, "E_BUNDLE_INCONSISTENT")
    graph = onnx.load_from_string(good)
    graph.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    replace_file(path, "graphs/condition.onnx", graph.SerializeToString())
    refused(path, r"port 'hint': got float16\[.*expected float32\[", "E_BUNDLE_INCONSISTENT")
    graph = onnx.load_from_string(good)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    replace_file(path, "graphs/condition.onnx", graph.SerializeToString())
    refused(path, r"got float32\[batch,3,64,width\]", "E_BUNDLE_INCONSISTENT")


def test_symbols_may_be_spelt_otherwise_in_the_graph(diffusion_bundle):
    graph = onnx.load_from_string(tiny_bundle.diffusion()[1]["graphs/condition.onnx"])
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "s0"
    replace_file(diffusion_bundle.path, "graphs/condition.onnx", graph.SerializeToString())
    Bundle.open(diffusion_bundle.path)


def test_opsets_agree(codec_bundle):
    edit(codec_bundle.path, lambda tree: tree["stages"]["decode"].update(opset=19))
    refused(codec_bundle.path, "stage 'decode': got opset 20, expected 19", "E_BUNDLE_INCONSISTENT")


def test_tensors_are_as_declared(diffusion_bundle):
    path = diffusion_bundle.path
    replace_file(path, "tensors/bias.npy", tiny_bundle.npy(np.zeros((1, 4, 1, 2), np.float32)))
    said = r"tensors/bias.npy: got float32\[1,4,1,2\], expected float32\[1,4,1,1\]"
    refused(path, said, "E_BUNDLE_INCONSISTENT")
    replace_file(path, "tensors/bias.npy", tiny_bundle.npy(np.zeros((1, 4, 1, 1), np.int64)))
    refused(path, r"got int64\[1,4,1,1\], expected float32", "E_BUNDLE_INCONSISTENT")
    replace_file(path, "tensors/bias.npy", b"no array")
    refused(path, "tensors/bias.npy: got b'no array'", "E_NPY")


def test_data_that_no_graph_refers_to_is_refused(diffusion_bundle):
    (diffusion_bundle.path / "graphs/idle.data").write_bytes(b"x")
    replace_file(diffusion_bundle.path, "graphs/idle.data", b"x")
    said = r"got \[\"graphs/idle.data\"\], expected data that a graph refers to"
    refused(diffusion_bundle.path, said, "E_BUNDLE_INCONSISTENT")


def test_a_link_may_lead_to_the_bundle(codec_bundle, tmp_path):
    (tmp_path / "current").symlink_to(codec_bundle.path)
    assert Bundle.open(tmp_path / "current").sha256 == codec_bundle.sha256


@pytest.mark.slow
def test_a_large_bundle_is_read_once_and_quickly(tmp_path):
    """100 MB of external weights: one buffer, no second copy."""
    manifest, files = tiny_bundle.diffusion()
    size = 100_000_000
    model = onnx.load_from_string(files["graphs/denoise.onnx"])
    big = model.graph.initializer.add(name="big", dims=[size], data_type=onnx.TensorProto.UINT8)
    big.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "big.data"), ("offset", "0"), ("length", str(size))):
        big.external_data.add(key=key, value=value)
    (tmp_path / "big").write_bytes(bytes(size))
    files |= {"graphs/denoise.onnx": model.SerializeToString(), "graphs/big.data": tmp_path / "big"}
    write_bundle(tmp_path / "big.jscc", dataclasses.replace(manifest), files)
    with little_effort():
        bundle = Bundle.open(tmp_path / "big.jscc")
    assert bundle.external("denoise")["big.data"].nbytes == size
