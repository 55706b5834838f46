"""TensorRT build: what it says of weights, progress and refusals; spans and command-line shapes."""

import dataclasses
import threading
from collections import deque

import numpy as np
import pytest
from onnx import helper

import tiny_bundle
from fake_tensorrt import WORDS, FakeTensorRt, make_device
from jscc.runtime.errors import BundleError, StorageError, UsageError
from jscc.runtime.ports import Port
from jscc.runtime.tensorrt.build import Plan, build_engine
from jscc.runtime.tensorrt.library import (
    FULL,
    RTX,
    Library,
    Lines,
    is_out_of_memory,
    make_monitor,
)
from jscc.runtime.tensorrt.progress import Announcer, left
from jscc.runtime.tensorrt.spans import Span, parse_shapes, stage_spans, usual_images


def libraries():
    for version in ("10.3.0", "10.13.0"):
        yield Library(FULL, FakeTensorRt(make_device(), version))
    yield Library(RTX, FakeTensorRt(make_device(), "1.7", rtx=True))


def plan_of(bundle, stage, external=None):
    manifest = bundle.manifest
    entry = manifest.stages[stage]
    spans = stage_spans(usual_images(manifest), entry, manifest)
    weights = bundle.external(stage) if external is None else external
    return Plan(stage, entry, bundle.graph(stage), weights, spans)


@pytest.mark.parametrize("library", list(libraries()), ids=lambda each: each.named)
def test_weights_that_lie_outside_reach_the_library(library, shared_bundles, tmp_path, monkeypatch):
    """From memory, or from a folder that is gone afterwards; no file that lies about is read."""
    bundle = shared_bundles["diffusion"]
    (tmp_path / "denoise.onnx.data").write_bytes(bytes(64))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = bytes(bundle.external("denoise")["denoise.onnx.data"])
    built = build_engine(library, plan_of(bundle, "denoise"))
    assert data in bytes(built.data)
    assert [path.name for path in tmp_path.iterdir()] == ["denoise.onnx.data"]


def test_weights_that_find_no_room_are_one_line(shared_bundles, tmp_path):
    """The parser before 10.13 reads files, below the cache where there is one."""
    plan = plan_of(shared_bundles["diffusion"], "denoise")
    file = tmp_path / "file"
    file.write_bytes(b"")
    built = build_engine(next(libraries()), dataclasses.replace(plan, scratch=tmp_path))
    assert built.data.nbytes > 0
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(StorageError) as caught:
        build_engine(next(libraries()), dataclasses.replace(plan, scratch=file))
    size = sum(data.nbytes for data in plan.external.values())
    assert str(caught.value) == (
        f"stage 'denoise': got 'Not a directory', expected room for {size} bytes of weights in "
        f"'{file}'. Free some space. [E_DISK_FULL]"
    )


@pytest.mark.parametrize("library", list(libraries()), ids=lambda each: each.named)
def test_weights_that_are_missing_are_named(library, shared_bundles):
    for files in ({}, {"denoise.onnx.data": memoryview(b"short")}):
        plan = plan_of(shared_bundles["diffusion"], "denoise", files)
        message = "stage 'denoise', tensor 'mix': got bytes outside its file"
        with pytest.raises(BundleError, match=message) as caught:
            build_engine(library, plan)
        assert caught.value.code == "E_GRAPH_EXTERNAL"


def test_a_refused_node_is_named_with_the_parser_s_words(shared_bundles):
    library = next(libraries())
    library.module.refused = ("Conv", "Sum")
    with pytest.raises(BundleError) as caught:
        build_engine(library, plan_of(shared_bundles["diffusion"], "denoise"))
    assert caught.value.code == "E_GRAPH_LOAD"
    assert str(caught.value) == (
        "stage 'denoise', node 0 (Conv): got \"This version of TensorRT doesn't support mode than "
        '1 outputs for MaxPool nodes!" and 1 more of the kind, expected a graph that tensorrt '
        "10.3.0 takes. Run it with another engine, or export the bundle again. [E_GRAPH_LOAD]"
    )


def test_progress_grows_and_ends(shared_bundles):
    shares = []
    build_engine(next(libraries()), plan_of(shared_bundles["codec"], "decode"), shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] <= 1


def test_an_interrupt_stops_the_build_and_is_passed_on(shared_bundles):
    """It may not be thrown through the library."""

    def interrupt(share):
        raise KeyboardInterrupt

    library = next(libraries())
    with pytest.raises(KeyboardInterrupt):
        build_engine(library, plan_of(shared_bundles["codec"], "decode"), interrupt)
    assert library.log.lines[-1][1] == WORDS["cancel"]
    assert library.module.told == []


@pytest.mark.parametrize(
    "method", [("phase_start", "b", None, 2), ("step_complete", "a", 1), ("phase_finish", "a")]
)
def test_a_monitor_is_called_from_one_thread_after_the_other(method):
    """The library calls from several; what one does has to wait until another is done."""
    others, waiting = [], []

    def tell(share):
        if not others:
            name, *given = method
            others.append(threading.Thread(target=getattr(monitor, name), args=given))
            others[0].start()
            others[0].join(0.05)
            waiting.append(others[0].is_alive())

    monitor = make_monitor(next(libraries()).module, tell)
    monitor.phase_start("a", None, 2)
    assert monitor.step_complete("a", 0)
    others[0].join()
    assert waiting == [True]


def test_a_line_that_comes_while_others_are_read_is_no_fault():
    kept = deque()

    class Busy(int):
        def __gt__(self, other):
            kept.append((9, "late"))
            return int(self) > int(other)

    kept.extend([(Busy(1), "one"), (Busy(2), "two")])
    assert Lines(kept, 0).new == ("one", "two")


def test_only_complaints_of_the_time_are_heard():
    library = next(libraries())
    library.log.log(library.module.ILogger.Severity.ERROR, "before")
    lines = library.listen()
    library.log.log(library.module.ILogger.Severity.WARNING, "mild")
    assert lines.words == "no reason"
    library.log.log(library.module.ILogger.Severity.ERROR, "one\n  two")
    assert lines.new == ("one\n  two",)
    assert lines.words == "'one two'"
    assert not lines.memory


@pytest.mark.parametrize(
    ("words", "memory"),
    [
        (WORDS["memory"], True),
        ("Requested amount of GPU memory (17920000000 bytes) could not be allocated.", True),
        ("[virtualMemoryBuffer.cpp::resizePhysical::144] Error Code 2: OutOfMemory", True),
        *((WORDS[key], False) for key in ("compiler", "version", "shape", "tactic")),
    ],
)
def test_words_for_too_little_memory(words, memory):
    assert is_out_of_memory(words) is memory


def test_targets_are_those_of_the_library():
    full, _, rtx = libraries()
    assert full.targets() == ()
    assert rtx.targets() == ("sm_86", "sm_89", "sm_120")


def test_shapes_as_the_command_line_writes_them():
    assert parse_shapes("512x768") == (Span.exactly({"batch": 1, "height": 512, "width": 768}),)
    two = parse_shapes("1x64x32-4x512x768,2x8x8")
    assert two[0] == Span.of(
        {"batch": (1, 4, 4), "height": (64, 512, 512), "width": (32, 768, 768)}
    )
    assert str(two[0]) == "batch 1..4, best 4, height 64..512, best 512, width 32..768, best 768"
    assert two[1] == Span.exactly({"batch": 2, "height": 8, "width": 8})


@pytest.mark.parametrize(
    "text", ["", "512", "x512x768", "0x8", "16x16-8x32", "8x8-", "8x8,", "1e3x8"]
)
def test_other_shapes_are_refused(text):
    with pytest.raises(UsageError, match="--shapes: got .*, expected ") as caught:
        parse_shapes(text)
    assert caught.value.code == "E_SHAPES"


def test_a_span_covers_what_lies_inside():
    (span,) = parse_shapes("1x64x32-4x512x768")
    assert span.covers({"batch": 4, "height": 64, "width": 768})
    assert not span.covers({"batch": 5, "height": 64, "width": 64})
    assert not span.covers({"batch": 1, "height": 63, "width": 64})
    assert not span.covers({"batch": 1, "planes": 2})
    assert Span().covers({})
    assert span.shapes(Port("x", "float32", ("batch", 4, "height/8", "width/8"))) == (
        (1, 4, 8, 4), (4, 4, 64, 96), (4, 4, 64, 96),
    )  # fmt: skip


def test_the_narrowest_span_is_told_by_its_reach():
    wide, narrow, exact = parse_shapes("8x8-64x64,32x32-64x64,64x64")
    assert exact.reach < narrow.reach < wide.reach


def test_a_stage_sees_padded_images_and_tiles(shared_bundles):
    """Images of 21x100 are padded to 24x104; a tiled stage gets at most 32 of either."""
    manifest = shared_bundles["diffusion"].manifest
    (decode,), (render,) = (
        stage_spans(parse_shapes("2x21x100"), manifest.stages[name], manifest)
        for name in ("decode", "render")
    )
    assert decode == Span.exactly({"batch": 2, "height": 24, "width": 104})
    assert render == Span.exactly({"batch": 2, "height": 24, "width": 32})


def test_the_usual_images_are_the_self_test_s_and_a_tile_s(shared_bundles):
    manifest = shared_bundles["codec"].manifest
    test, tile = usual_images(manifest)
    assert test == Span.exactly({"batch": 1, "height": 8, "width": 16})
    assert tile == parse_shapes("16x16-32x32")[0]
    (span,) = usual_images(shared_bundles["diffusion"].manifest)
    assert span == tile


def test_the_usual_images_are_no_larger_than_the_bundle_takes(shared_bundles):
    """Tiles are of 32, but of 600 pixels 24x24 is the largest square in multiples of 8."""
    manifest = shared_bundles["diffusion"].manifest
    small = dataclasses.replace(manifest.image, max_pixels=600)
    manifest = dataclasses.replace(manifest, image=small)
    (span,) = usual_images(manifest)
    assert span == parse_shapes("12x12-24x24")[0]
    for entry in manifest.stages.values():
        assert stage_spans((span,), entry, manifest)


def test_images_larger_than_the_bundle_takes_are_refused_by_the_option(shared_bundles):
    manifest = shared_bundles["codec"].manifest
    message = "^--shapes: got 30000x20000, expected at most [0-9]+ pixels after padding. Write "
    with pytest.raises(UsageError, match=message) as caught:
        stage_spans(parse_shapes("30000x20000"), manifest.stages["decode"], manifest)
    assert caught.value.code == "E_SHAPES"


def test_progress_is_said_every_few_seconds_with_what_is_left():
    said, now = [], [100.0]
    announcer = Announcer(said.append, "building", clock=lambda: now[0])
    for seconds, share in ((1, 0.1), (6, 0.25), (8, 0.3), (12, 0.01), (18, 1.0)):
        now[0] = 100.0 + seconds
        announcer.advance(share)
    announcer.finish()
    assert said == [
        "building …",
        "building: 25 %, about 18 s left",
        "building: 1 %",
        "building: 100 %",
        "building: done in 18.0 s",
    ]
    assert left(0.5, 10.0) == ", about 10 s left"


def test_the_graph_s_symbols_decide_what_moves(shared_bundles):
    """`snr_db` has a batch alone."""
    plan = plan_of(shared_bundles["codec"], "decode")
    library = next(libraries())
    build_engine(library, plan)
    profiles = library.module.told[0]["profiles"]
    assert [profile["snr_db"] for profile in profiles] == [[[1]] * 3] * 2
    assert profiles[1]["received"] == [[1, 4, 4, 4], [1, 4, 8, 8], [1, 4, 8, 8]]


def test_unparsable_bytes_are_refused(shared_bundles):
    plan = plan_of(shared_bundles["codec"], "decode")
    other = tiny_bundle.model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [Port("x", "float32", (1,))], [Port("y", "float32", (1,))],
    )  # fmt: skip
    for data in (b"no graph", np.zeros(9, np.uint8).tobytes(), other.SerializeToString()):
        with pytest.raises(BundleError):
            build_engine(next(libraries()), Plan("decode", plan.entry, data, {}, plan.spans))
