"""TensorRT for RTX takes every graph of every system: each is parsed and compiled without a GPU.

The bundles are tiny; what their engines compute needs a device and is not tested here. Modules that
export a system for tests of their own hold it to TensorRT too, by the fixture ``tensorrt_takes``;
here each system is exported once more, for any size.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tiny_bundle
import tiny_convolutions
from jscc.__main__ import main
from jscc.export.cli import main as export
from jscc.runtime.bundle import Bundle
from jscc.runtime.device.device import open_device
from jscc.runtime.errors import BundleError, UnavailableError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Port
from jscc.runtime.tensorrt.build import Plan, build_engine
from jscc.runtime.tensorrt.engine import EngineError, load_engine
from jscc.runtime.tensorrt.lane import Place
from jscc.runtime.tensorrt.library import RTX, load_library
from jscc.runtime.tensorrt.spans import Span, parse_shapes, stage_spans

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")

import tiny_systems

TARGET = "sm_89"
SHAPES = "1x32x32-2x64x64"
GRADIENTS = {
    "commin": {"guided", "guided_cheap"},
    "inverse_jscc": {"gradient_0"},
    "sing_inn": {"guided", "guided_cheap"},
}


def build(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    """What ``jscc build --json`` says; nothing may be refused."""
    shapes = () if "--shapes" in more else ("--shapes", SHAPES)
    options = ("--ahead", TARGET, *shapes, "-o", str(folder), "--json", *more)
    capsys.readouterr()
    status = main(["build", str(bundle), *options])
    out, err = capsys.readouterr()
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.mark.exhaustive
@pytest.mark.parametrize("system", tiny_systems.SYSTEMS)
def test_every_graph_is_taken(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_systems.SYSTEMS[system](tmp_path)
    document = build(bundle, tmp_path / "engines", capsys)
    stages = {row["stage"] for row in document["engines"]}
    assert stages == set(Bundle.open(bundle).manifest.stages)
    assert GRADIENTS.get(system, set()) <= stages
    assert all(row["size"] > 0 for row in document["engines"])


def test_no_system_is_left_out() -> None:
    from jscc.export.system import names

    assert set(tiny_systems.SYSTEMS) == set(names())


@pytest.mark.exhaustive
@pytest.mark.parametrize("precision", ["fp16", "int8", "fp8"])
def test_half_and_integers_are_taken(
    precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As calibration writes them, islands of float32 and pairs of Q and DQ included."""
    from PIL import Image

    source = tiny_systems.diffjscc(tmp_path)
    (tmp_path / "images").mkdir()
    for name, pixels in tiny_convolutions.photos(3).items():
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    lower = tmp_path / f"{precision}.jscc"
    images = ("--images", str(tmp_path / "images"), "--snr", "4", "--steps", "1", "--threads", "1")
    options = ("--precision", precision, "--budget", "psnr=99", "-o", str(lower))
    assert main(["calibrate", str(source), *images, *options]) == 0
    document = build(lower, tmp_path / "engines", capsys)
    assert document["precision"] == precision


@pytest.mark.exhaustive
def test_the_denoiser_of_stable_diffusion_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the size of Stable Diffusion 2.1, weights beside the graph; takes minutes and memory."""
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 20 << 30:
        pytest.skip("less than 20 GiB of memory")
    bundle = tmp_path / "sd21.jscc"
    command = ("--model", "diffjscc", "--config", "architecture:diffjscc_c16", "--vae", "tiny")
    assert export([*command, "--random-weights", "0", "-o", str(bundle)]) == 0
    document = build(
        bundle, tmp_path / "engines", capsys, "--stage", "denoise", "--shapes", "512x512"
    )
    (row,) = document["engines"]
    assert row["size"] > 3 << 30  # 1.2 billion weights in float32


def library() -> Any:
    return load_library(RTX)


def plan(nodes: list[Any], target: str = TARGET, spans: tuple[Span, ...] | None = None) -> Plan:
    """A graph of y[batch,4] from x[batch,4]."""
    ports = tuple(Port(name, "float32", ("batch", 4)) for name in "xy")
    entry = StageEntry("graphs/tiny.onnx", tiny_bundle.OPSET, False, ports[:1], ports[1:])
    data = tiny_bundle.model(nodes, ports[:1], ports[1:]).SerializeToString()
    chosen = (Span.of({"batch": (1, 2, 4)}),) if spans is None else spans
    return Plan("tiny", entry, data, {}, chosen, target)


DOUBLE = [tiny_bundle.helper.make_node("Add", ["x", "x"], ["y"])]


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120"])
def test_every_kind_of_device_is_built_for(target: str) -> None:
    assert target in library().targets()
    shares: list[float] = []
    built = build_engine(library(), plan(DOUBLE, target), shares.append)
    assert built.data.nbytes > 1000
    assert shares == sorted(shares)


def test_external_weights_are_taken_from_memory(tmp_path: Path) -> None:
    """The same engine as with the weights inside; they may not be read from where we stand."""
    bundle = tiny_bundle.write_diffusion(tmp_path / "bundle.jscc")
    entry, graph = bundle.manifest.stages["denoise"], bundle.graph("denoise")
    spans = stage_spans(parse_shapes("32x32"), entry, bundle.manifest)
    data = bytes(bundle.external("denoise")["denoise.onnx.data"])
    plans = [
        Plan("denoise", entry, graph, {"denoise.onnx.data": memoryview(each)}, spans, TARGET)
        for each in (data, bytes(len(data)))
    ]
    engines = [bytes(build_engine(library(), each).data) for each in plans]
    assert data in engines[0]
    assert data not in engines[1]


def test_a_refused_node_is_named_with_the_parser_s_words() -> None:
    node = tiny_bundle.helper.make_node("Teleport", ["x"], ["y"], name="beam")
    made = plan(DOUBLE)
    model = tiny_bundle.onnx.load_model_from_string(made.graph)
    model.graph.node[0].CopyFrom(node)
    broken = Plan("tiny", made.entry, model.SerializeToString(), {}, made.spans, TARGET)
    with pytest.raises(
        BundleError, match=r"stage 'tiny', node 'beam' \(Teleport\): got '.*Plugin "
    ):
        build_engine(library(), broken)


def test_sizes_out_of_order_are_refused_in_one_line() -> None:
    wrong = plan(DOUBLE, spans=(Span.of({"batch": (4, 2, 1)}),))
    with pytest.raises(
        UnavailableError, match="got 'IOptimizationProfile::isValid: .*MIN"
    ) as caught:
        build_engine(library(), wrong)
    assert caught.value.code == "E_ENGINE_BUILD"
    assert "\n" not in str(caught.value)


def test_cuda_python_without_a_device_is_one_line() -> None:
    module = pytest.importorskip("cuda.bindings.driver", reason="no cuda-python")
    with suppress(RuntimeError):  # there is no driver
        if not int(module.cuInit(0)[0]):
            pytest.skip("there is a device")
    with pytest.raises(UnavailableError, match="^cuInit: got .*, expected a CUDA dev") as caught:
        open_device()
    assert caught.value.code == "E_CUDA"


def test_without_a_device_no_engine_loads_and_the_library_says_why() -> None:
    built = build_engine(library(), plan(DOUBLE))
    place = Place(library(), None)  # type: ignore[arg-type]
    entry = plan(DOUBLE).entry
    for data in (built.data, built.data[:-9], memoryview(np.zeros(99, np.uint8)).cast("B")):
        with pytest.raises(EngineError, match="IRuntime::deserialize|readHeader|Error Code"):
            load_engine(place, data, plan(DOUBLE).spans, entry)
