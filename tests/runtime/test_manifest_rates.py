"""Rates and side values in the manifest: round trip, and contradictions refused by place."""

import json
import re
from dataclasses import replace

import pytest

import rated_bundle
from jscc.runtime.coherence import check_coherence
from jscc.runtime.declared import needed_format, write
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest import parse_manifest, serialise_manifest
from jscc.runtime.ports import Port


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return rated_bundle.write_rated(tmp_path_factory.mktemp("rated") / "rated.jscc").manifest


def with_signal(manifest, **changes):
    return replace(manifest, signal=replace(manifest.signal, **changes))


def with_ports(manifest, stage, **changes):
    entry = replace(manifest.stages[stage], **changes)
    return replace(manifest, stages={**manifest.stages, stage: entry})


def test_what_is_written_is_read_back(manifest):
    assert manifest.signal.rates == (2, 4, 8)
    assert parse_manifest(serialise_manifest(manifest)) == manifest
    check_coherence(manifest)


def test_both_fields_need_format_2_and_stay_out_of_bundles_without_them(manifest):
    assert needed_format(manifest) == 2
    plain = replace(with_signal(manifest, rates=()), selftest=None)
    assert needed_format(plain) == 1
    assert "rates" not in write(plain)["signal"]
    tested = replace(plain, selftest=replace(manifest.selftest, side={}))
    assert "side" not in write(tested)["selftest"]
    assert needed_format(replace(plain, selftest=manifest.selftest)) == 2


@pytest.mark.parametrize("rates", [[2, 3], [4, 2], [2, 2], [0, 8], [2.0, 8], "2"])
def test_rates_are_even_numbers_in_order(manifest, rates):
    tree = json.loads(serialise_manifest(manifest))
    tree["signal"]["rates"] = rates
    with pytest.raises(BundleError, match=r"/signal/rates.*: got .*, expected ") as caught:
        parse_manifest(json.dumps(tree).encode())
    assert caught.value.code == "E_MANIFEST"


def broken(manifest):
    """Manifests that contradict themselves, with what is said of each."""
    grid, decode = rated_bundle.GRID, manifest.stages["decode"]
    fixed = replace(rated_bundle.RECEIVED, shape=("batch", 8, *grid[2:]))
    encode = manifest.stages["encode"]
    planes, power, mask = encode.outputs
    test = manifest.selftest
    wide = replace(mask, shape=("batch", 4097))
    return {
        "/signal/rates: got [2, 4], expected 8, all planes, at the end": with_signal(
            manifest, rates=(2, 4)
        ),
        "/stages/decode/inputs/0: got 'received' float32[batch,8,": with_ports(
            manifest, "decode", inputs=(fixed, *decode.inputs[1:])
        ),
        "/stages/encode/inputs: got ['image'], expected 'rate' too": with_ports(
            manifest, "encode", inputs=encode.inputs[:1]
        ),
        "/stages/encode/inputs/1: got 'rate', expected one of ['image']": with_ports(
            with_ports(
                with_signal(manifest, rates=()), "decode", inputs=(fixed, *decode.inputs[1:])
            ),
            "encode",
            outputs=(replace(planes, shape=fixed.shape), power, mask),
        ),
        "/stages/encode/outputs: got power float32[batch], planes": with_ports(
            manifest, "encode", outputs=(power, planes, mask)
        ),
        "/stages/encode/outputs/2: got 'other', expected one of /side_inputs": with_ports(
            manifest, "encode", outputs=(planes, power, replace(mask, name="other"))
        ),
        "got 'mask' float16[batch,8], expected float32[batch,…] of a fixed size": with_ports(
            manifest, "encode", outputs=(planes, power, replace(mask, dtype="float16"))
        ),
        "got 'mask' float32[batch,planes], expected float32[batch,…]": with_ports(
            manifest, "encode", outputs=(planes, power, replace(mask, shape=("batch", "planes")))
        ),
        "got 'mask' float32[batch,7], expected float32[batch,8] as the receiver": with_ports(
            manifest, "encode", outputs=(planes, power, replace(mask, shape=("batch", 7)))
        ),
        "got 2 with 4098 values beside the planes, expected at most 8 with 4096": with_ports(
            with_ports(manifest, "encode", outputs=(planes, power, wide)),
            "decode",
            inputs=(*decode.inputs[:2], wide),
        ),
        "/side_inputs/2: got 'unread', expected the name of a stage's input": replace(
            manifest, side_inputs=("power", "mask", "unread")
        ),
        "/selftest/side: got 'other', expected one of ['power', 'mask']": replace(
            manifest, selftest=replace(test, side={"other": "selftest_side_power"})
        ),
        "/selftest/side/power: got 'nothing', expected a tensor float32[batch]": replace(
            manifest, selftest=replace(test, side={"power": "nothing"})
        ),
        "/selftest/side/power: got 'selftest_side_mask' float32[1, 8], expected": replace(
            manifest, selftest=replace(test, side={"power": "selftest_side_mask"})
        ),
    }


def test_contradictions_are_refused_by_place(manifest):
    for words, wrong in broken(manifest).items():
        with pytest.raises(BundleError, match=re.escape(words)) as caught:
            check_coherence(wrong)
        assert caught.value.code == "E_BUNDLE_INCONSISTENT"


def test_the_self_test_may_be_sent_at_any_of_the_rates(manifest):
    """Its symbols are those of 4 planes; 6 planes are no rate of this bundle."""
    tensor = manifest.tensors["selftest_symbols"]
    assert tensor.shape == (2, 2, 4)
    tensors = {**manifest.tensors, "selftest_symbols": replace(tensor, shape=(3, 2, 4))}
    with pytest.raises(BundleError, match=r"expected complex64\[1 or 2 or 4, rows, columns\]"):
        check_coherence(replace(manifest, tensors=tensors))


def test_a_receiver_alone_keeps_its_side_inputs(manifest):
    """Nothing then says which of them a transmitter sends."""
    stages = {"decode": manifest.stages["decode"]}
    files = {name: entry for name, entry in manifest.files.items() if "encode" not in name}
    check_coherence(replace(manifest, stages=stages, files=files))


def test_a_port_of_another_meaning_is_unchanged():
    """`planes` is a dimension like others for whoever does not choose a rate."""
    assert str(Port("x", "float32", ("batch", "planes"))) == "float32[batch,planes]"
