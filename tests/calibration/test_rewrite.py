"""Rewrite: only what was replaced changes, and the new bundle proves itself."""

import dataclasses

import numpy as np
import pytest
from onnx import numpy_helper

import tiny_convolutions
from jscc.calibration.graph import array_of, read_graph
from jscc.calibration.rewrite import Place, rewrite
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import OutputError
from jscc.runtime.receiver import Receiver

WEIGHTS = "graphs/denoise.onnx.data"


def changed(bundle, stage, name, factor=0.5):
    """The graph of `stage` with one constant multiplied."""
    model = read_graph(bundle, stage)
    value = model.graph.initializers[name]
    kind = type(model.graph.initializers[f"{name.rpartition('.')[0]}.bias"].const_value)
    array = np.array(array_of(value)) * np.float32(factor)
    value.const_value = kind(numpy_helper.from_array(array, name))
    return model


def rewritten(looped, path, models, *, precision="int8", calibration=None, **place):
    return rewrite(
        looped, models, Place(path, **place), precision=precision, calibration=calibration
    )


@pytest.fixture
def weaker(looped, tmp_path):
    """The bundle with half the weights in `denoise`'s last layer."""
    models = {"denoise": changed(looped, "denoise", "exit.weight")}
    record = {"measured_receptions": 4}
    return rewritten(looped, tmp_path / "weaker.jscc", models, calibration=record)


def test_other_files_stay_byte_for_byte(looped, weaker):
    before, after = set(looped.manifest.files), set(weaker.manifest.files)
    assert before - after == {WEIGHTS}  # they lie inside the new graph
    assert after <= before
    differing = {name for name in after if bytes(weaker.file(name)) != bytes(looped.file(name))}
    assert differing == {"graphs/denoise.onnx", "tensors/selftest_image.npy"}


def test_the_manifest_tells_of_it(looped, weaker):
    manifest = Bundle.open(weaker.path).manifest
    assert manifest.precision == "int8"
    assert manifest.calibration == {"measured_receptions": 4}
    for name, stage in looped.manifest.stages.items():
        assert manifest.stages[name].inputs == stage.inputs
        assert manifest.stages[name].outputs == stage.outputs


def test_parity_is_kept_only_for_stages_that_were_not_replaced(looped, tmp_path):
    assert set(looped.manifest.parity) == {"decode", "condition"}
    models = {"decode": changed(looped, "decode", "tail.weight")}
    bundle = rewritten(looped, tmp_path / "d.jscc", models)
    assert set(bundle.manifest.parity) == {"condition"}


def test_the_known_image_is_received_anew(looped, weaker):
    known = weaker.tensor("selftest_image")
    assert np.any(known != looped.tensor("selftest_image"))
    receiver = Receiver(weaker, selftest=True)  # which would raise E_SELFTEST
    np.testing.assert_array_equal(receiver.receive_known(weaker), known)


def test_a_bundle_without_a_self_test_gets_none(tmp_path):
    manifest, files = tiny_convolutions.looped()
    manifest = dataclasses.replace(manifest, selftest=None, tensors={})
    files = {name: data for name, data in files.items() if not name.startswith("tensors/")}
    source = write_bundle(tmp_path / "source.jscc", manifest, files)
    models = {"decode": changed(source, "decode", "tail.weight")}
    assert rewritten(source, tmp_path / "out.jscc", models).manifest.selftest is None


def test_one_file_holds_the_same(looped, tmp_path, weaker):
    models = {"denoise": changed(looped, "denoise", "exit.weight")}
    path = tmp_path / "single.jscc"
    rewritten(looped, path, models, single_file=True)
    assert path.is_file()
    opened = Bundle.open(path)
    for name in weaker.manifest.files:
        assert bytes(opened.file(name)) == bytes(weaker.file(name))


def test_the_source_may_be_one_file(looped, tmp_path):
    rewritten(looped, tmp_path / "single.jscc", {}, precision="fp32", single_file=True)
    source = Bundle.open(tmp_path / "single.jscc")
    models = {"denoise": changed(source, "denoise", "exit.weight")}
    bundle = rewritten(source, tmp_path / "out.jscc", models)
    assert WEIGHTS not in bundle.manifest.files
    Receiver(bundle, selftest=True)


def test_nothing_is_left_beside_the_bundle(weaker, tmp_path):
    assert list(tmp_path.iterdir()) == [weaker.path]


def test_what_is_there_is_not_replaced_unasked(looped, weaker, tmp_path):
    before = weaker.manifest.files
    with pytest.raises(OutputError, match="weaker.jscc: got something that is there") as caught:
        rewritten(looped, weaker.path, {})
    assert caught.value.code == "E_EXISTS"
    assert Bundle.open(weaker.path).manifest.files == before
    assert list(tmp_path.iterdir()) == [weaker.path]
    assert rewritten(looped, weaker.path, {}, overwrite=True).manifest.files != before
