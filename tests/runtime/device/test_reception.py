"""Receptions that stay on a device, on fakes, against the receiver on the CPU.

Stages compute with ONNX Runtime in both, kernels are the device's own sources; what is not real is
the driver, so copies are counted, and what would be read too early or freed too early is missed.
"""

import dataclasses
import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper, numpy_helper

import tiny_bundle
from fake_cuda import Result, Status
from fake_tensorrt import WORDS, FakeTensorRt, install, make_device
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.backends.tensorrt import TensorRtBackend, find_place
from jscc.runtime.bundle import write_bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import ImageError, UnavailableError
from jscc.runtime.manifest import FORMAT
from jscc.runtime.manifest_loops import Loop, LoopStep, SamplerSpec, ScheduleSpec
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.ports import Port
from jscc.runtime.receiver import Receiver
from jscc.runtime.tensorrt.library import load_library
from jscc.runtime.tensorrt.spans import Span

HOST = "what lies between the stages stays on the host: "
TRUTH = OnnxRuntimeBackend(threads=1)


@pytest.fixture
def cuda(host):
    return make_device(host)


@pytest.fixture
def library(cuda, monkeypatch):
    fake = FakeTensorRt(cuda)
    install(monkeypatch, fake, cuda)
    yield fake
    load_library.cache_clear()


@pytest.fixture
def backend(library, tmp_path):
    return TensorRtBackend(threads=1, folder=tmp_path / "engines")


@pytest.fixture
def made(backend, cuda):
    """Makes a receiver; whatever it holds has to be given back by the end."""
    receivers = []

    def make(bundle, **options):
        receivers.append(Receiver(bundle, backend=backend, **options))
        return receivers[-1]

    yield make
    for receiver in receivers:
        for stage in receiver._program.stages.values():
            for engine in stage.session._shelf.loaded:
                engine.close()
    find_place(backend.folder).station.shrink()
    driver = cuda.driver
    held = (driver.blocks, driver.streams, driver.captured, driver.events, driver.capturing)
    assert held == ({}, {}, {}, {}, {})


def symbols(images=1, rows=8, columns=8, gain=1.0):
    parts = np.random.default_rng(3).standard_normal((2, images, 2, rows, columns))
    return (gain * np.sqrt(0.5) * (parts[0] + 1j * parts[1])).astype(np.complex64)


CONTEXT = {"context": np.random.default_rng(4).standard_normal((1, 2, 5)).astype(np.float32)}
WAYS = {
    "from what was received": {},
    "from noise, with noise on the way": {"sampler": "ddpm", "start": "noise", "steps": 3},
    "two estimates back": {"sampler": "unipc", "steps": 5, "start": "noise"},
    "each image from its own level": {"sampler": "dpmpp2m", "steps": 3, "level": None},
    "pulled to a tensor": {"guidance": 20.0, "sampler": "ddpm"},
    "a part of an image": {"size": (29, 31)},
}


def both(made, bundle, received, csis, **options):
    """The CPU's images, the device's, and its records."""
    expected, _ = Receiver(bundle, backend=TRUTH).receive_batch(received, csis, **options)
    images, records = made(bundle).receive_batch(received, csis, **options)
    assert expected.std() > 10
    return expected, images, records


@pytest.mark.parametrize("way", WAYS)
def test_images_are_the_cpu_s(made, shared_bundles, tmp_path, cuda, way):
    """Two images with SNRs and gains of their own; one description for both."""
    options = {**WAYS[way]}
    bundle = shared_bundles["diffusion"]
    if "level" in options:
        bundle = snr_decides(tmp_path, options.pop("level"))
    gains = (0.8 - 0.6j, 1.0)
    received = symbols(2)
    received *= np.array(gains, np.complex64).reshape(2, 1, 1, 1)
    csis = tuple(Csi(snr_db, gain) for snr_db, gain in zip((3.0, 12.0), gains, strict=True))
    options |= {"seed": 9, "frame": 2**40, "side": CONTEXT}
    expected, images, records = both(made, bundle, received, csis, **options)
    assert np.array_equal(images, expected)
    for record in records:
        assert record.fallbacks == ()
        assert set(record.times_ms) == {"decode", "condition", "denoise", "render", "total"}
        assert record.tiles == dict.fromkeys(("decode", "condition", "denoise", "render"), 1)


def snr_decides(folder, level):
    manifest, files = tiny_bundle.diffusion()
    loop = manifest.loops["denoise"]
    loop = dataclasses.replace(loop, sampler=dataclasses.replace(loop.sampler, start_level=level))
    return write_bundle(
        folder / "own.jscc", dataclasses.replace(manifest, loops={"denoise": loop}), files
    )


IMAGE = ("batch", 3, "height", "width")


def guided_bundle(folder, dtype="float32"):
    """A loop with a guide's stage, a knob and stages that ask for all that a step is about."""
    _, (decode, *edges) = tiny_bundle._codec_graphs()
    state, noise, clean, direction, grad = (
        Port(name, dtype, IMAGE) for name in ("state", "noise", "clean", "direction", "grad")
    )
    told = ("timestep", "alpha_bar", "alpha_bar_next", "eta")
    numbers = [Port(name, "float32", ("batch",)) for name in told]
    inputs = [state, noise, edges[1][0], *numbers]
    image = Port("image", "float32", IMAGE)
    nodes = [
        helper.make_node("Mul", ["timestep", "slope"], ["level"]),
        helper.make_node("Sum", ["level", *told[1:]], ["weight"]),
        helper.make_node("Unsqueeze", ["weight", "axes"], ["weights"]),
        helper.make_node("Mul", ["reconstruction", "weights"], ["drawn"]),
        helper.make_node("Cast", ["drawn"], ["clean"], to=tiny_bundle._TYPES[dtype]),
        helper.make_node("Add", ["state", "noise"], ["direction"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.float32(2**-12), "slope"),
    ]
    pull = helper.make_node("Sub", ["state", "clean"], ["grad"])
    parts = {
        "decode": (decode, *edges),
        "denoise": (nodes, inputs, [clean, direction], constants),
        "guided": ([*nodes, pull], inputs, [clean, grad, direction], constants),
        "render": ([helper.make_node("Cast", ["state"], ["image"], to=1)], [state], [image], []),
    }
    graphs = {"decode": decode} | {
        name: tiny_bundle.model(*part) for name, part in parts.items() if name != "decode"
    }
    stages = {
        name: tiny_bundle.stage(name, None, parts[name][1], parts[name][2]) for name in graphs
    }
    sampler = SamplerSpec("ddnm", 4, "noise", None, 2.0, guide="inn", guide_every=2)
    schedule = ScheduleSpec("linear", 1e-4, 0.02, 1000)
    loop = Loop("state", None, None, schedule, sampler, {"eta": 0.85}, {"inn": "guided"})
    program = ("decode", LoopStep("denoise"), "render")
    manifest = tiny_bundle._manifest(
        stages, program, "image", loops={"denoise": loop}, format=FORMAT
    )
    files = {f"graphs/{name}.onnx": made.SerializeToString() for name, made in graphs.items()}
    return write_bundle(folder / "guided.jscc", manifest, {**files, "SOURCE.md": b"Tests.\n"})


def test_a_guide_s_stage_and_stages_that_ask_for_noise(made, tmp_path, cuda):
    bundle = guided_bundle(tmp_path)
    csis = (Csi(3.0), Csi(12.0))
    expected, images, records = both(made, bundle, symbols(2), csis, seed=9, frame=7)
    assert np.array_equal(images, expected)
    assert {"denoise", "guided"} < set(records[0].times_ms)
    assert records[0].fallbacks == ()
    kernels = [entry for entry, _, _ in cuda.driver.launches]
    assert kernels.count("philox_normal") == 2 * 4  # each image's, at each step


def test_a_state_in_half_precision_is_the_host_s(made, tmp_path):
    bundle = guided_bundle(tmp_path, "float16")
    expected, images, records = both(made, bundle, symbols(), (Csi(3.0),), seed=9)
    assert np.array_equal(images, expected)
    assert records[0].fallbacks == (HOST + "stage 'denoise' has 'state' in float16",)


def test_symbols_go_up_one_picture_comes_down_and_nothing_between(made, shared_bundles, cuda):
    receiver = made(shared_bundles["diffusion"])
    received = symbols()
    for steps in (4, 40):
        cuda.driver.copies.clear()
        receiver.receive(received[0], Csi(7.0), seed=0, steps=steps, start="noise", side=CONTEXT)
        up = [size for kind, size in cuda.driver.copies if kind == "HtoD"]
        down = [size for kind, size in cuda.driver.copies if kind == "DtoH"]
        levels = steps * 3 * 4  # time step, and what is left of the image before and after it
        bias, context, snr_db = 16, 40, 4
        assert sorted(up) == sorted([received.nbytes, levels, bias, context, snr_db])
        assert down == [32 * 32 * 3, 2 * 4]


def test_a_codec_alone_stays_there_too(made, shared_bundles, cuda):
    expected, images, records = both(
        made, shared_bundles["codec"], symbols(2), (Csi(2.0), Csi(9.0)), seed=0
    )
    assert np.array_equal(images, expected)
    assert records[0].fallbacks == ()
    assert [kind for kind, _ in cuda.driver.copies].count("DtoH") == 4  # with the self-test's


def test_memory_is_kept_from_one_reception_to_the_next(made, shared_bundles, cuda):
    receiver = made(shared_bundles["diffusion"])
    held = []
    for steps in (3, 9, 9):
        receiver.receive(symbols()[0], Csi(7.0), seed=0, steps=steps, start="noise", side=CONTEXT)
        held.append((len(cuda.driver.blocks), len(cuda.driver.streams)))
    assert held[0][1] == held[2][1] == 5  # one of the receptions, and one of each lane
    assert held[1] == held[2]


def test_a_receiver_that_nobody_holds_leaves_nothing_behind(backend, shared_bundles, cuda):
    """But what the device keeps for receptions to come, of any receiver."""
    receiver = Receiver(shared_bundles["diffusion"], backend=backend)
    for _ in range(2):
        receiver.receive(symbols()[0], Csi(7.0), seed=0, side=CONTEXT)
    assert len(cuda.driver.captured) == 4
    del receiver
    gc.collect()
    driver = cuda.driver
    assert (driver.captured, driver.events, len(driver.streams)) == ({}, {}, 1)
    find_place(backend.folder).station.shrink()
    assert (driver.blocks, driver.streams) == ({}, {})


def test_receptions_at_once_share_the_engines(made, shared_bundles, library, cuda):
    bundle = shared_bundles["diffusion"]
    truth, receiver = Receiver(bundle, backend=TRUTH), made(bundle)
    received = symbols(6)

    def run(which, index):
        options = {"seed": index, "sampler": "ddpm", "side": CONTEXT}
        return which.receive(received[index], Csi(7.0), **options)[0]

    expected = [run(truth, index) for index in range(6)]
    with ThreadPoolExecutor(3) as pool:
        images = list(pool.map(lambda index: run(receiver, index), range(6)))
    assert np.array_equal(images, expected)
    assert library.loaded == 4  # one for each stage


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rows": 16}, "stage 'denoise' runs on 3 tiles"),
        ({"noise": True}, "the noise is the caller's own"),
        ({"refused": ("ReduceMean",)}, "stage 'denoise' runs on the CPU"),
        ({"nvrtc": True}, "nvrtcCompileProgram: got NVRTC_ERROR_INVALID_OPTION, expected NVIDIA's"),
    ],
)
def test_what_keeps_it_on_the_host_is_said_once(
    made, shared_bundles, library, cuda, monkeypatch, options, reason
):
    class Own(PhiloxNoise):
        """A caller's."""

    library.refused = options.get("refused", ())
    if "nvrtc" in options:
        failing = lambda prog, count, given: (Result.NVRTC_ERROR_INVALID_OPTION,)  # noqa: E731
        monkeypatch.setattr(cuda.nvrtc, "nvrtcCompileProgram", failing)
    bundle = shared_bundles["diffusion"]
    noise = Own() if "noise" in options else None
    received = symbols(rows=options.get("rows", 8))[0]
    given = {"seed": 3, "sampler": "ddpm", "side": CONTEXT}
    expected, _ = Receiver(bundle, backend=TRUTH).receive(received, Csi(7.0), **given)
    receiver = made(bundle, noise=noise)
    for _ in range(2):
        image, record = receiver.receive(received, Csi(7.0), **given)
        said = [text for text in record.fallbacks if text.startswith(HOST)]
        assert len(said) == 1
        assert said[0].startswith(HOST + reason)
        assert np.abs(image.astype(int) - expected).max() <= 1


def test_a_captioner_sees_the_decoded_image(made, shared_bundles):
    seen = []

    def captioner(image):
        seen.append(image)
        return CONTEXT["context"]

    bundle = shared_bundles["diffusion"]
    images = [
        Receiver(bundle, backend=TRUTH, captioner=captioner).receive(
            symbols()[0], Csi(7.0), seed=1
        ),
        made(bundle, captioner=captioner).receive(symbols()[0], Csi(7.0), seed=1),
    ]
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(images[0][0], images[1][0])
    assert images[1][1].fallbacks == ()


@pytest.mark.parametrize(
    ("number", "got"), [(3e38, "values that are not finite"), (None, "one colour only")]
)
def test_what_is_no_image_is_refused_alike(made, shared_bundles, monkeypatch, number, got):
    bundle, received = shared_bundles["diffusion"], symbols()[0]
    side = CONTEXT if number is None else {"context": np.full((1, 2, 5), number, np.float32)}
    receivers = [Receiver(bundle, backend=TRUTH), made(bundle)]
    if number is None:
        for receiver in receivers:
            flatten(receiver, monkeypatch)
    for receiver in receivers:
        with pytest.raises(ImageError, match=f"image 5: got {got} from finite symbols") as caught:
            receiver.receive(received, Csi(7.0), seed=0, frame=5, side=side)
        assert caught.value.code == "E_DECODE_NONFINITE"


def flatten(receiver, monkeypatch):
    """Let the last stage draw one colour."""
    session = receiver._program.stages["render"].session
    kind, plain, there = type(session), type(session).run, getattr(session, "run_there", None)

    def run(self, arrays):
        return {name: np.full_like(each, 0.5) for name, each in plain(self, arrays).items()}

    def run_there(tensors, sizes, flow):
        flat = {
            name: np.full(each.shape, 0.5, np.float32)
            for name, each in there(tensors, sizes, flow).items()
        }
        return {name: flow.take(each) for name, each in flat.items()}

    if there is None:
        monkeypatch.setattr(kind, "run", run)
    else:
        monkeypatch.setattr(session, "run_there", run_there)


@pytest.mark.parametrize(
    ("function", "place"),
    [
        (
            "cuLaunchKernel",
            "reception on NVIDIA Fake: got cuLaunchKernel CUDA_ERROR_ILLEGAL_ADDRESS",
        ),
        ("cuStreamSynchronize", "reception on NVIDIA Fake: got cuStreamSynchronize CUDA_ERROR_ILL"),
        (
            "cuMemcpyDtoDAsync",
            "stage 'decode' in tensorrt 10.3.0 on NVIDIA Fake: got cuMemcpyDtoDAs",
        ),
    ],
)
def test_what_fails_on_the_way_goes_by_way_of_the_host(made, shared_bundles, cuda, function, place):
    receiver = made(shared_bundles["diffusion"])
    given = {"seed": 0, "side": CONTEXT}
    image, _ = receiver.receive(symbols()[0], Csi(7.0), **given)
    cuda.driver.failures[function] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    for expected in ((f"{HOST}{place}",), ()):
        again, record = receiver.receive(symbols()[0], Csi(7.0), **given)
        assert np.array_equal(again, image)
        assert set(record.providers.values()) == {"cuda"}
        assert len(record.fallbacks) == len(expected)
        assert all(map(str.startswith, record.fallbacks, expected))


def test_an_engine_that_fails_twice_is_e_run(made, shared_bundles, library):
    receiver = made(shared_bundles["diffusion"])
    words = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (misaligned)"
    library.faults["run"] = [words] * 2
    with pytest.raises(
        UnavailableError, match="stage 'decode' in tensorrt .* got 'IExec"
    ) as caught:
        receiver.receive(symbols()[0], Csi(7.0), seed=0, side=CONTEXT)
    assert caught.value.code == "E_RUN"


def test_memory_that_is_short_once_costs_what_nobody_uses(made, shared_bundles, library, cuda):
    receiver, truth = made(shared_bundles["diffusion"]), shared_bundles["diffusion"]
    given = {"seed": 0, "side": CONTEXT}
    expected, _ = Receiver(truth, backend=TRUTH).receive(symbols()[0], Csi(7.0), **given)
    library.faults["run"] = [WORDS["memory"]]
    image, record = receiver.receive(symbols()[0], Csi(7.0), **given)
    assert np.array_equal(image, expected)
    assert record.fallbacks == ()
    cuda.driver.failures["cuMemAlloc"] = Status.CUDA_ERROR_OUT_OF_MEMORY
    image, record = receiver.receive(symbols()[0], Csi(7.0), steps=9, start="noise", **given)
    assert record.fallbacks == ("ran out of memory: tried again",)


def test_the_second_run_of_a_size_is_captured_and_then_launched(made, shared_bundles, cuda):
    """Also in other receptions, and in the streams of others."""
    bundle = shared_bundles["diffusion"]
    receiver, truth = made(bundle), Receiver(bundle, backend=TRUTH)
    replays = []
    for number, steps in enumerate((4, 6, 6)):
        given = {"seed": number, "steps": steps, "start": "noise", "side": CONTEXT}
        image, record = receiver.receive(symbols()[0], Csi(7.0), **given)
        assert np.array_equal(image, truth.receive(symbols()[0], Csi(7.0), **given)[0])
        assert record.fallbacks == ()
        replays.append(cuda.driver.replays)
    # The loop's first step is not, and no first run of the other three.
    assert replays == [3, 3 + 6 + 3, 3 + 6 + 3 + 6 + 3]
    assert len(cuda.driver.captured) == 4


@pytest.mark.parametrize(("ranged", "last"), [(False, (3, 4, 2)), (True, (2, 3, 1))])
def test_a_graph_holds_for_its_shapes_and_addresses_only(
    made, shared_bundles, cuda, monkeypatch, ranged, last
):
    """Engines of one size keep theirs; one of a range captures anew when the size changes."""
    if ranged:
        wide = classmethod(lambda cls, sizes: cls.of({s: (1, n, 2 * n) for s, n in sizes.items()}))
        monkeypatch.setattr(Span, "exactly", wide)
    bundle = shared_bundles["codec"]
    receiver, truth = made(bundle, selftest=False), Receiver(bundle, backend=TRUTH)
    for rows, replays in ((4, 0), (4, 1), (8, 1), (8, 2), (4, last[0]), (4, last[1])):
        received = symbols(rows=rows, columns=rows)[0]
        image, _ = receiver.receive(received, Csi(7.0), seed=0)
        assert np.array_equal(image, truth.receive(received, Csi(7.0), seed=0)[0])
        assert cuda.driver.replays == replays
    assert len(cuda.driver.captured) == last[2]


def test_a_run_that_the_host_asks_for_goes_between(made, shared_bundles, cuda):
    """A lane serves both, and keeps its graph."""
    bundle = shared_bundles["codec"]
    receiver, truth = made(bundle, selftest=False), Receiver(bundle, backend=TRUTH)
    session = receiver._program.stages["decode"].session
    received = symbols()[0]
    expected = truth.receive(received, Csi(7.0), seed=0)[0]
    planes = np.concatenate([received.real, received.imag])[None]
    fed = {"received": planes, "snr_db": np.array([7.0], np.float32)}
    for replays in (0, 1, 2):
        assert np.array_equal(receiver.receive(received, Csi(7.0), seed=0)[0], expected)
        drawn = session.run(fed)["reconstruction"][0].transpose(1, 2, 0)
        assert np.abs(drawn * 255 - expected).max() <= 1
        assert cuda.driver.replays == replays


@pytest.mark.parametrize(
    ("function", "got"),
    [
        ("cuStreamBeginCapture", "cuStreamBeginCapture: got CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
        ("cuStreamEndCapture", "cuStreamEndCapture: got CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
        ("cuGraphInstantiate", "cuGraphInstantiate: got CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),
        ("run", "got 'IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not"),
    ],
)
def test_what_cannot_be_captured_is_enqueued_and_that_is_said_once(
    made, shared_bundles, library, cuda, monkeypatch, function, got
):
    bundle = shared_bundles["diffusion"]
    receiver, truth = made(bundle), Receiver(bundle, backend=TRUTH)
    given = {"seed": 0, "sampler": "ddpm", "side": CONTEXT}
    real = cuda.driver.cuStreamBeginCapture

    def begin(hStream, mode):
        """The first capture, that of the loop's second step, goes wrong."""
        monkeypatch.setattr(cuda.driver, "cuStreamBeginCapture", real)
        if function == "run":
            words = "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (operation not permi"
            library.faults["run"] = [words]
        else:
            cuda.driver.failures[function] = Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        return real(hStream, mode)

    begin.__name__ = "cuStreamBeginCapture"
    monkeypatch.setattr(cuda.driver, "cuStreamBeginCapture", begin)
    for _ in range(3):
        image, record = receiver.receive(symbols()[0], Csi(7.0), **given)
        assert np.array_equal(image, truth.receive(symbols()[0], Csi(7.0), **given)[0])
        (note,) = record.fallbacks
        assert note.startswith(f"stage 'denoise' runs without a CUDA graph: {got}")
    assert cuda.driver.replays == 2 * 3  # the other stages, from their second run on


def test_a_graph_that_does_not_launch_is_said(made, shared_bundles, cuda):
    receiver = made(shared_bundles["diffusion"])
    cuda.driver.failures["cuGraphLaunch"] = Status.CUDA_ERROR_ILLEGAL_ADDRESS
    message = "stage 'denoise' in tensorrt 10.3.0 on NVIDIA Fake: got cuGraphLaunch CUDA_ERROR_ILL"
    _, record = receiver.receive(symbols()[0], Csi(7.0), seed=0, side=CONTEXT)
    assert record.fallbacks[0].startswith(f"{HOST}{message}")
    assert receiver.receive(symbols()[0], Csi(7.0), seed=0, side=CONTEXT)[1].fallbacks == ()


def test_what_is_dropped_in_the_middle_is_run_on_the_cpu(
    made, shared_bundles, library, monkeypatch
):
    """An engine that is there when it is asked for may not be there when it is to run."""
    receiver = made(shared_bundles["diffusion"])
    session = receiver._program.stages["denoise"].session
    given = {"seed": 0, "side": CONTEXT}
    image, _ = receiver.receive(symbols()[0], Csi(7.0), **given)
    choose, asked = session._choose, []

    def gone(sizes):
        asked.append(sizes)
        return choose(sizes) if len(asked) == 1 else None

    monkeypatch.setattr(session, "_choose", gone)
    again, record = receiver.receive(symbols()[0], Csi(7.0), **given)
    assert np.array_equal(again, image)
    assert record.providers["denoise"] == "cuda, cpu"
