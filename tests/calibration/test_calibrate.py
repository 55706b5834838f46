"""Calibrate: which stages it takes, what it refuses, and that the result is what was asked."""

import dataclasses
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import tiny_bundle
import tiny_convolutions
import tiny_descent
from jscc.calibration import calibrate as calibrate_module
from jscc.calibration.calibrate import Images, Order, calibrate, convertible
from jscc.calibration.collect import Grid
from jscc.calibration.graph import array_of, read_graph
from jscc.calibration.layers import layers_of
from jscc.calibration.rewrite import Place
from jscc.calibration.trials import Budget
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.errors import DataError, OutputError, UsageError
from jscc.runtime.manifest_loops import Regime
from jscc.runtime.receiver import Receiver

PHOTOS = tiny_convolutions.photos(3)
IMAGES = Images(
    MappingProxyType({name: PHOTOS[name] for name in ("0.png", "1.png")}),
    MappingProxyType({"2.png": PHOTOS["2.png"]}),
)
GRID = Grid((0.0, 10.0), steps=2)


def order_of(path, **changes):
    order = Order(Place(path / "out.jscc"), "int8", GRID, Budget(psnr=1.0), threads=1)
    return dataclasses.replace(order, **changes)


def calibrated(source, order, images=IMAGES):
    return calibrate(
        source, images, order, lpips=None, describe={"images": "abc"}, progress=lambda _: None
    )


def operators(bundle, stage):
    graph = onnx.ModelProto.FromString(bundle.graph(stage)).graph
    return [node.op_type for node in graph.node]


def test_stages_that_hold_gradients_are_left_out(tmp_path, looped):
    descending = tiny_descent.write_descending(tmp_path / "descending.jscc")
    assert convertible(descending) == ("decode",)
    assert convertible(looped) == ("decode", "condition", "denoise", "render")


def test_a_layer_is_quantised_unless_it_is_kept_or_given_back(looped, tmp_path):
    outcome = calibrated(looped, order_of(tmp_path))
    assert {key for key in outcome.kept if key[0] == "decode"} == {
        ("decode", "first"),
        ("decode", "last"),
    }
    assert set(outcome.sensitivity) == {
        ("decode", "middle"),
        ("decode", "tail"),
        ("denoise", "block.conv"),
        ("denoise", "block.up"),
        ("denoise", "block.down"),
    }
    assert outcome.found.returned == ()
    # In front of `middle`, behind it, in front of `tail`, behind it.
    assert operators(outcome.bundle, "decode").count("QuantizeLinear") == 4
    for stage in ("encode", "condition", "render"):
        assert bytes(outcome.bundle.graph(stage)) == bytes(looped.graph(stage))


def test_layers_are_given_back_until_the_budget_holds(looped, tmp_path):
    free = calibrated(looped, order_of(tmp_path, budget=Budget(agreement=0.0)))
    assert free.found.returned == ()
    bound = free.cost.agreement_db + 3
    outcome = calibrated(
        looped,
        order_of(tmp_path, place=Place(tmp_path / "b.jscc"), budget=Budget(agreement=bound)),
    )
    returned = outcome.found.returned
    worst_first = sorted(free.sensitivity, key=free.sensitivity.__getitem__, reverse=True)
    assert returned
    assert [key for key in worst_first if key in returned] == list(returned)
    assert outcome.cost.agreement_db >= bound
    assert len(returned) == min(t.returned for t in outcome.found.trials if t.holds)
    listed = outcome.bundle.manifest.calibration["returned"]
    assert listed == ["/".join(key) for key in returned]


def test_the_record_counts_what_was_used(looped, tmp_path):
    outcome = calibrated(looped, order_of(tmp_path))
    record = Bundle.open(outcome.bundle.path).manifest.calibration
    assert record["images"] == "abc"
    assert record["measured_receptions"] == 2 * 2  # images, SNRs
    assert record["tried_receptions"] == 1 * 2
    assert record["evaluations"] == {"decode": 4, "condition": 4, "denoise": 2 * 4}
    assert record["snrs_db"] == [0.0, 10.0]
    assert len(record["timesteps"]) == 2
    assert record["budget"] == {"psnr": 1.0}
    assert record["cost"]["psnr"] == outcome.cost.psnr
    assert record["kept"]["denoise/time_embed"].startswith("embedding")


def test_other_images_are_tried_than_measured(looped, tmp_path, monkeypatch):
    seen = {}

    def watched(name):
        original = getattr(calibrate_module, name)

        def note(*arguments, **options):
            airings = next(a for a in arguments if isinstance(a, (list, tuple)) and is_aired(a))
            seen.setdefault(name, set()).update(airing.name for airing in airings)
            return original(*arguments, **options)

        monkeypatch.setattr(calibrate_module, name, note)

    for name in ("collect", "sensitivity", "Trials"):
        watched(name)
    calibrated(looped, order_of(tmp_path))
    assert seen == {
        "collect": {"0.png", "1.png"},
        "sensitivity": {"0.png"},
        "Trials": {"2.png"},
    }


def is_aired(values):
    return bool(values) and hasattr(values[0], "received")


def test_products_are_balanced_before_they_are_quantised(looped, tmp_path):
    """`Gelu` makes what `block.down` reads, so the division is a multiplication of its own."""
    outcome = calibrated(
        looped, order_of(tmp_path, smoothing=0.5, keep=(r"middle|tail|block\.(conv|up)",))
    )
    assert outcome.smoothed == 1
    assert outcome.cost.agreement_db > 40
    names = operators(outcome.bundle, "denoise")
    assert names.count("Mul") == operators(looped, "denoise").count("Mul") + 1


def test_half_precision_converts_what_int8_keeps(looped, tmp_path):
    outcome = calibrated(looped, order_of(tmp_path, precision="fp16"))
    assert outcome.kept == {}
    assert outcome.bundle.manifest.precision == "fp16"
    assert outcome.cost.agreement_db > 50
    graph = onnx.ModelProto.FromString(outcome.bundle.graph("decode")).graph
    halves = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    assert {f"{name}.weight_float16" for name in tiny_convolutions.DECODE} <= halves
    assert outcome.sizes[1] < outcome.sizes[0]


@pytest.mark.parametrize(
    ("precision", "estimator", "recorded"),
    [
        ("int8", "minmax", "minmax"),
        ("int8", "entropy", "entropy"),
        ("fp16", "entropy", None),
        ("fp8", "entropy", "minmax"),
    ],
)
def test_the_result_passes_its_own_self_test(looped, tmp_path, precision, estimator, recorded):
    order = order_of(tmp_path, precision=precision, estimator=estimator, deny=False)
    opened = Bundle.open(calibrated(looped, order).bundle.path)
    Receiver(opened, selftest=True)
    assert opened.manifest.precision == precision
    assert opened.manifest.calibration["estimator"] == recorded


def test_eight_bit_floats_keep_what_integers_keep(looped, tmp_path):
    """The same layers, with a pair on what each reads alone."""
    both = {
        precision: calibrated(
            looped,
            order_of(
                tmp_path,
                precision=precision,
                place=Place(tmp_path / precision),
                budget=Budget(psnr=9.0),
            ),
        )
        for precision in ("int8", "fp8")
    }
    assert both["fp8"].kept == both["int8"].kept
    assert both["fp8"].found.returned == both["int8"].found.returned == ()
    assert both["fp8"].cost.agreement_db > 10  # random networks forgive little
    types = onnx.TensorProto
    for precision, dtype in (("int8", types.INT8), ("fp8", types.FLOAT8E4M3FN)):
        graph = onnx.ModelProto.FromString(both[precision].bundle.graph("denoise")).graph
        small = [t for t in graph.initializer if t.data_type == dtype and t.dims]
        assert sum(int(np.prod(t.dims)) for t in small) > 0
    assert operators(both["fp8"].bundle, "denoise").count("QuantizeLinear") < operators(
        both["int8"].bundle, "denoise"
    ).count("QuantizeLinear")


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_budget_that_cannot_hold_leaves_nothing(looped, tmp_path, precision):
    order = order_of(tmp_path, precision=precision, budget=Budget(agreement=200.0))
    with pytest.raises(DataError, match="got a budget that no layer's conversion meets") as caught:
        calibrated(looped, order)
    assert caught.value.code == "E_BUDGET"
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_which_nothing_was_converted_is_not_called_int8(looped, tmp_path):
    """Given back entirely, any budget holds: the images are then equal."""
    with pytest.raises(DataError, match="of 5 tried") as caught:
        calibrated(looped, order_of(tmp_path, budget=Budget(agreement=98.0)))
    assert caught.value.code == "E_BUDGET"
    assert list(tmp_path.iterdir()) == []


def refused(source, order, said, code="E_CALIBRATE", kind=UsageError):
    with pytest.raises(kind, match=said) as caught:
        calibrated(source, order)
    assert caught.value.code == code


def test_only_full_precision_is_calibrated(looped, tmp_path):
    half = calibrated(looped, order_of(tmp_path, precision="fp16")).bundle
    refused(
        half,
        order_of(tmp_path, place=Place(tmp_path / "again.jscc")),
        "bundle: got precision 'fp16', expected 'fp32'",
    )


def test_a_budget_is_needed(looped, tmp_path):
    refused(looped, order_of(tmp_path, budget=Budget()), "--budget: got none, expected psnr=")


@pytest.mark.parametrize("stage", ["denoiser", "encode"])
def test_a_stage_that_the_receiver_lacks_is_named(looped, tmp_path, stage):
    refused(
        looped,
        order_of(tmp_path, stages=("decode", stage)),
        f"--stages: got '{stage}', expected some of decode, condition, denoise, render",
    )


def test_no_stage_at_all_is_refused(looped, tmp_path):
    refused(looped, order_of(tmp_path, stages=()), "--stages: got '', expected some of decode")


def test_a_stage_that_never_ran_is_named(tmp_path):
    """At these SNRs the bundle leaves the codec's image as it is, so `denoise` has no ranges."""
    manifest, files = tiny_convolutions.looped()
    loop = manifest.loops["denoise"]
    regimes = (Regime(-50.0, 0, "received", None), Regime(40.0, 2, "received", 0.5))
    sampler = dataclasses.replace(loop.sampler, regimes=regimes)
    manifest = dataclasses.replace(
        manifest,
        loops={"denoise": dataclasses.replace(loop, sampler=sampler)},
        format=3,
        codec_output="reconstruction",
        selftest=None,
        tensors={},
    )
    files = {name: data for name, data in files.items() if not name.startswith("tensors/")}
    source = write_bundle(tmp_path / "source.jscc", manifest, files)
    order = order_of(tmp_path, grid=Grid((0.0, 10.0)))
    refused(source, order, "--stages: got '(condition|denoise)', which no reception ran")


def test_the_destination_is_looked_at_before_any_work(looped, tmp_path):
    taken = tiny_bundle.write_codec(tmp_path / "out.jscc")
    nothing = Images({}, {})
    with pytest.raises(OutputError, match="out.jscc: got something that is there") as caught:
        calibrated(looped, order_of(tmp_path), nothing)
    assert caught.value.code == "E_EXISTS"
    np.testing.assert_array_equal(
        Bundle.open(taken.path).tensor("selftest_image"), taken.tensor("selftest_image")
    )


def test_weights_alone_in_eight_bits_are_floats_again_in_the_engine(looped, tmp_path):
    """Every weight is within half a step; nothing else is rounded, and no run dequantises."""
    outcome = calibrated(looped, order_of(tmp_path, precision="weights-int8"))
    bundle = outcome.bundle
    assert bundle.manifest.precision == "weights-int8"
    assert outcome.collected.receptions == 0
    assert "QuantizeLinear" not in operators(bundle, "denoise")
    exact = {layer.name: layer for layer in layers_of(read_graph(looped, "denoise"))}
    stored = read_graph(bundle, "denoise").graph.initializers
    for name, layer in exact.items():
        weight = array_of(layer.weight)
        integers = stored[f"{layer.weight.name}_int8"].const_value.numpy()
        steps = stored[f"{layer.weight.name}_step"].const_value.numpy()
        shape = [1] * weight.ndim
        shape[layer.out_axis] = -1
        off = np.abs(integers * steps.reshape(shape) - weight)
        assert (off <= 0.5001 * steps.reshape(shape)).all(), name
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = tmp_path / "plain.onnx"
    ir.save(read_graph(bundle, "decode"), path)
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert "DequantizeLinear" not in {node.op_type for node in optimised.graph.node}


def test_the_backend_asks_the_engine_for_that(looped, tmp_path, monkeypatch):
    outcome = calibrated(looped, order_of(tmp_path, precision="weights-int8"))
    seen = []
    original = ort.SessionOptions.add_session_config_entry

    def noted(options, key, value):
        seen.append((key, value))
        return original(options, key, value)

    monkeypatch.setattr(ort.SessionOptions, "add_session_config_entry", noted)
    Receiver(outcome.bundle, backend=OnnxRuntimeBackend(threads=1))
    assert ("session.disable_quant_qdq", "1") in seen
    seen.clear()
    int8 = calibrated(looped, order_of(tmp_path, place=Place(tmp_path / "i.jscc")))
    Receiver(int8.bundle, backend=OnnxRuntimeBackend(threads=1))
    assert "session.disable_quant_qdq" not in {key for key, _ in seen}


def test_only_rounded_activations_are_smoothed(looped, tmp_path):
    for precision in ("fp16", "weights-int8"):
        order = order_of(tmp_path, precision=precision, smoothing=0.5)
        refused(looped, order, "--smooth: got it with precision")


def test_weights_of_a_reduced_range_leave_16_bits_room_for_two_products(looped, tmp_path):
    outcome = calibrated(looped, order_of(tmp_path, reduce_range=True))
    assert outcome.bundle.manifest.calibration["reduce_range"] is True
    kernels = [
        onnx.numpy_helper.to_array(tensor)
        for stage in ("decode", "denoise")
        for tensor in onnx.ModelProto.FromString(outcome.bundle.graph(stage)).graph.initializer
        if tensor.name.endswith(".weight_int8")
    ]
    assert kernels
    assert max(int(np.abs(each.astype(int)).max()) for each in kernels) == 63
    assert 2 * 63 * 255 < 2**15
    assert outcome.cost.agreement_db > 30


def test_only_integers_have_a_range_to_reduce(looped, tmp_path):
    for precision in ("fp16", "fp8", "weights-int8"):
        order = order_of(tmp_path, precision=precision, reduce_range=True)
        refused(looped, order, f"--reduce-range: got it with precision {precision}, expected int8")


def test_stages_with_nothing_to_convert_are_refused(looped, tmp_path):
    refused(looped, order_of(tmp_path, keep=(".",)), "without a layer to convert")
