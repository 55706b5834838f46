"""Rows 27 to 34, 37, 46, 49 and 50 of the fault table: what a receiver does when things go wrong.

Everywhere: a typed error with a code, no image, and a receiver that goes on working.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_bundle
from effort import little_effort
from fake_engine import FakeBackend
from jscc.runtime.backends import onnxruntime as engine
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.csi import Csi
from jscc.runtime.errors import (
    BundleError,
    CsiError,
    ImageError,
    JsccError,
    SymbolsError,
    UnavailableError,
)
from jscc.runtime.receiver import Receiver

ENGINE = OnnxRuntimeBackend(threads=1)
CSI = Csi(7.0)
SIZE = (30, 45)
SHAPE = (2, 8, 12)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return tiny_bundle.write_codec(tmp_path_factory.mktemp("rows") / "codec.jscc")


@pytest.fixture(scope="module")
def receiver(codec):
    return Receiver(codec, backend=ENGINE)


def good(seed=0, shape=SHAPE):
    parts = np.random.default_rng(seed).standard_normal((2, *shape))
    symbols = (parts[0] + 1j * parts[1]).astype(np.complex64)
    return symbols / np.float32(np.sqrt(np.mean(np.abs(symbols) ** 2)))


def refused(receiver, symbols, *, csi=CSI, **arguments):
    """The error that `symbols` meet; the receiver then still receives good ones."""
    with pytest.raises(JsccError) as caught:
        receiver.receive(symbols, csi, seed=0, **arguments)
    assert receiver.receive(good(), CSI, seed=0)[0].shape == (32, 48, 3)
    return caught.value


def with_selftest(bundle, **changes):
    test = dataclasses.replace(bundle.manifest.selftest, **changes)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, selftest=test))


def test_row_27_a_bundle_whose_program_cannot_run(codec):
    """Declared and hashed correctly, and yet the parts do not fit together."""

    def decode(arrays):
        raise UnavailableError("E_RUN", "stage 'decode': got ShapeInferenceError")

    with pytest.raises(
        BundleError, match=r"self-test on fake 1 \(fake\): got .*ShapeInf"
    ) as caught:
        Receiver(codec, backend=FakeBackend({"decode": decode}))
    assert caught.value.code == "E_BUNDLE_INCONSISTENT"


def test_row_27_a_bundle_that_decodes_something_else(codec):
    other = dataclasses.replace(
        codec,
        _tensors={**codec._tensors, "selftest_symbols": good(9, (2, 2, 4))},
    )
    with pytest.raises(UnavailableError, match=r"got an image .* dB from the known one") as caught:
        Receiver(other, backend=ENGINE)
    assert caught.value.code == "E_SELFTEST"
    assert caught.value.exit_status == 69


def wrong(arrays):
    """What a faulty driver returns: an image, but not the one."""
    rows, columns = arrays["received"].shape[2:]
    image = np.random.default_rng(0).random((1, 3, 4 * rows, 4 * columns), np.float32)
    return {"reconstruction": image}


def nan(arrays):
    return {"reconstruction": np.full_like(wrong(arrays)["reconstruction"], np.nan)}


@pytest.mark.parametrize("fault", [wrong, nan])
def test_row_28_a_provider_that_computes_wrongly_is_left_and_it_is_said(codec, fault):
    session = ENGINE.load(
        "decode", codec.manifest.stages["decode"], codec.graph("decode"), codec.external("decode")
    )
    backend = FakeBackend(
        {("decode", "cuda"): fault, ("decode", "cpu"): session.run}, providers=("cuda", "cpu")
    )
    device = Receiver(codec, backend=backend)
    _, record = device.receive(good(), CSI, seed=0)
    assert record.providers == {"decode": "cpu"}
    (fallback,) = record.fallbacks
    assert fallback.startswith("self-test on fake 1 (cuda): got ")
    assert "expected 40 dB or more" in fallback


def test_row_28_no_provider_left(codec):
    backend = FakeBackend({"decode": wrong}, providers=("tensorrt", "cuda"))
    with pytest.raises(
        UnavailableError, match=r"self-test on fake 1 \(cuda\): got an im"
    ) as caught:
        Receiver(codec, backend=backend)
    assert caught.value.code == "E_SELFTEST"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, complex(0, np.nan)])
def test_row_29_symbols_that_are_not_finite(receiver, value):
    symbols = good()
    symbols.flat[[17, 100, 101]] = value
    error = refused(receiver, symbols)
    assert error.code == "E_SYM_NONFINITE"
    assert "got 3 symbols that are not finite, the first at 17, expected finite" in error.message


def test_row_29_a_million_symbols_are_checked_in_no_time(codec):
    manifest = codec.manifest
    image = dataclasses.replace(manifest.image, max_pixels=1 << 24)
    large = dataclasses.replace(codec, manifest=dataclasses.replace(manifest, image=image))
    device = Receiver(large, backend=ENGINE, selftest=False)
    symbols = good(shape=(2, 512, 1024))
    symbols[1, 511, 1023] = np.nan
    with little_effort(), pytest.raises(SymbolsError, match="the first at 1048575"):
        device.receive(symbols, CSI, seed=0)


LEVELS = [0.0, 1e-30, 1e-45, 1e-3, 20.0, 1e10, 1e19, 1e30, 3e38]


@pytest.mark.parametrize("level", LEVELS)
def test_row_30_power_out_of_range(receiver, level):
    signs = np.where(good().real > 0, level, -level).astype(np.complex64)
    error = refused(receiver, signs)
    assert error.code == "E_SYM_POWER"
    assert "got a mean power of " in error.message


def test_row_30_symbols_that_are_all_the_same(receiver):
    error = refused(receiver, np.full(SHAPE, 0.8 - 0.6j, np.complex64))
    assert error.code == "E_SYM_POWER"
    assert "got 192 times the symbol 0.8-0.6j" in error.message


@settings(deadline=None, max_examples=60)
@given(st.floats(allow_nan=True, width=32), st.integers(0, 191), st.floats(-3.0, 3.0))
def test_row_30_any_amplitude_gives_an_image_or_an_error(receiver, peak, place, decade):
    symbols = good() * np.float32(10.0**decade)
    symbols.flat[place] = peak
    code = None
    try:
        image, record = receiver.receive(symbols, CSI, seed=0)
    except SymbolsError as error:
        code = error.code
    else:
        assert image.shape == (32, 48, 3)
        assert np.isfinite(record.power)
    assert code in {None, "E_SYM_POWER", "E_SYM_NONFINITE"}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 8, 11), SIZE),
        ((2, 8, 13), SIZE),
        ((1, 8, 12), SIZE),
        ((4, 8, 12), None),
        ((191,), SIZE),
        ((193,), SIZE),
        ((0,), SIZE),
        ((192,), None),
        ((2, 96), None),
        ((1, 2, 8, 12), SIZE),
    ],
)
def test_row_31_wrong_counts(receiver, shape, size):
    symbols = good(shape=(4, 8, 13)).ravel()[: int(np.prod(shape))].reshape(shape)
    error = refused(receiver, symbols, size=size)
    assert error.code == "E_SYM_COUNT"
    assert "expected" in error.message


def test_row_31_the_counts_are_named(receiver):
    error = refused(receiver, good().ravel()[:191], size=SIZE)
    assert "got complex64[191], 191 in all, expected complex64[2,8,12] or [192]" in error.message


def test_row_31_nothing_is_padded_unless_it_is_said_and_then_it_is_marked(receiver):
    erased = np.zeros(SHAPE, bool)
    erased[1, 7, 11] = True
    _, record = receiver.receive(good(), CSI, seed=0, erased=erased)
    assert (record.symbols, record.missing) == (192, 1)


@pytest.mark.parametrize(
    "symbols",
    [
        good().astype(np.complex128),
        good().astype(">c8"),
        good().real,
        good().view(np.float32),
        np.zeros((*SHAPE, 2), np.int16),
        np.zeros(SHAPE, [("i", "<f4"), ("q", "<f4")]),
        good().astype(object),
        np.zeros(SHAPE, "M8[s]"),
        good().tolist(),
        b"\0" * 1536,
        None,
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__))[:20],
)
def test_row_32_other_types_are_refused_not_converted(receiver, symbols):
    error = refused(receiver, symbols)
    assert error.code == "E_SYM_DTYPE"
    assert "symbols: got " in error.message


def test_row_32_swapped_bytes_are_caught_by_their_power(receiver):
    swapped = good().byteswap()
    assert refused(receiver, swapped).code in {"E_SYM_POWER", "E_SYM_NONFINITE"}


def test_row_33_an_snr_out_of_range_is_clamped_and_said(receiver):
    for declared, used in ((25.0, 14.0), (-8.0, 0.0), (1e300, 14.0)):
        noise = good(1) * np.float32(10 ** (-min(declared, 300.0) / 20))
        _, record = receiver.receive(good() + noise, Csi(declared), seed=0)
        assert record.snr_clamped
        assert (record.snr_db_declared, record.snr_db_used) == (declared, used)


def test_row_33_a_strict_receiver_refuses_it(codec):
    strict = Receiver(codec, backend=ENGINE, strict_snr=True)
    error = refused(strict, good(), csi=Csi(14.5))
    assert isinstance(error, CsiError)
    assert error.code == "E_CSI_RANGE"
    assert "got an SNR of 14.5 dB, expected 0 to 14 dB" in error.message


@pytest.mark.parametrize("snr_db", [None, np.nan, np.inf])
def test_row_33_a_missing_snr(snr_db):
    with pytest.raises(CsiError, match=f"csi.snr_db: got {snr_db}, expected a finite") as caught:
        Csi(snr_db)
    assert caught.value.code == "E_CSI"


def test_row_33_a_declared_snr_that_the_symbols_contradict(receiver):
    shape = (2, 64, 64)
    heard = good(0, shape) + good(1, shape)  # 0 dB
    _, lying = receiver.receive(heard, Csi(14.0), seed=0)
    _, honest = receiver.receive(heard, Csi(0.0), seed=0)
    assert lying.snr_suspect
    assert lying.snr_db_measured == pytest.approx(0.0, abs=1.0)
    assert not honest.snr_suspect


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((100_000, 100_000), "got 100000x100000"),
        ((0, 10), "got 0x10"),
        ((10, -1), "got 10x-1"),
        ((1025, 1024), "got 1025x1024"),
    ],
)
def test_row_34_sizes_that_are_refused_before_allocation(receiver, size, shown):
    error = refused(receiver, good(), size=size)
    assert isinstance(error, ImageError)
    assert error.code == "E_IMG_SIZE"
    assert shown in error.message


def test_row_34_a_size_of_another_image(receiver):
    for size in ((33, 45), (30, 49), (24, 48), (45, 30)):
        assert refused(receiver, good(), size=size).code == "E_SYM_COUNT"


def test_row_34_symbols_of_an_image_that_is_too_large(codec):
    device = Receiver(codec, backend=ENGINE, max_pixels=32 * 48)
    huge = np.lib.stride_tricks.as_strided(good(), (2, 1 << 16, 1 << 16), (8, 0, 0))
    assert refused(device, huge).code == "E_IMG_SIZE"


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (np.nan, "got values that are not finite from finite symbols"),
        (np.inf, "got values that are not finite from finite symbols"),
        (0.25, "got one colour only from finite symbols"),
    ],
)
def test_row_37_no_image_comes_out(codec, fault, shown):
    calls = []

    def decode(arrays):
        image = wrong(arrays)["reconstruction"]
        if not calls:
            image = np.full_like(image, fault)
        calls.append(1)
        return {"reconstruction": image}

    device = Receiver(codec, backend=FakeBackend({"decode": decode}), selftest=False)
    error = refused(device, good(), frame=12)
    assert isinstance(error, ImageError)
    assert error.code == "E_DECODE_NONFINITE"
    assert f"image 12: {shown}" in error.message


def test_row_37_one_pixel_is_enough(codec):
    def decode(arrays):
        image = wrong(arrays)["reconstruction"]
        image[0, 2, 31, 47] = np.nan
        return {"reconstruction": image}

    device = Receiver(codec, backend=FakeBackend({"decode": decode}), selftest=False)
    with pytest.raises(ImageError, match="got values that are not finite"):
        device.receive(good(), CSI, seed=0)


def test_row_46_concurrent_calls_equal_serial_ones_bit_for_bit(tmp_path):
    bundle = tiny_bundle.write_diffusion(tmp_path / "diffusion.jscc")
    device = Receiver(bundle, backend=ENGINE)
    side = {"context": np.ones((1, 2, 5), np.float32)}
    jobs = [(index, (2, 2 * (2 + index % 4), 2 * (2 + index % 3))) for index in range(64)]

    def work(job):
        index, shape = job
        symbols = good(index, shape)
        if index % 8 == 5:  # a poisoned request among the others
            symbols.flat[3] = np.nan
        try:
            image, record = device.receive(
                symbols, CSI, seed=index, frame=index, sampler="ddpm", start="noise", side=side
            )
        except SymbolsError as error:
            return error.code
        return image.tobytes(), record.power

    serial = [work(job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, jobs)) == serial
    poisoned = [index for index, result in enumerate(serial) if result == "E_SYM_NONFINITE"]
    assert poisoned == list(range(5, 64, 8))


def test_row_46_a_poisoned_image_of_a_batch_is_named(receiver):
    symbols = np.stack([good(seed) for seed in range(4)])
    symbols[2].flat[5] = np.inf
    with pytest.raises(SymbolsError, match="symbols of image 2: got 1 symbols") as caught:
        receiver.receive_batch(symbols, [CSI] * 4, seed=0)
    assert caught.value.code == "E_SYM_NONFINITE"


def test_row_49_a_provider_that_is_not_there(codec, capfd):
    with pytest.raises(
        UnavailableError, match=r"cuda is not in this onnxruntime .*has.*cpu"
    ) as caught:
        Receiver(codec, backend=OnnxRuntimeBackend(providers=("cuda",)))
    assert caught.value.code == "E_EP_MISSING"
    assert caught.value.exit_status == 69
    assert capfd.readouterr() == ("", "")


def test_row_49_falling_back_is_said_in_every_record(codec, capfd):
    device = Receiver(codec, backend=OnnxRuntimeBackend(providers=("tensorrt", "cuda", "cpu")))
    for frame in range(2):
        _, record = device.receive(good(), CSI, seed=0, frame=frame)
        assert record.providers == {"decode": "cpu"}
        assert len(record.fallbacks) == 2
        assert record.fallbacks[0].startswith("stage 'decode': tensorrt is not in this onnxruntime")
        assert record.fallbacks[1].startswith("stage 'decode': cuda is not in this onnxruntime")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    "AzureExecutionProvider" not in engine.ort.get_available_providers(),
    reason="this onnxruntime has no second provider",
)
def test_row_49_a_provider_that_is_listed_and_runs_nothing(codec, monkeypatch):
    """The library reports it among the session's providers and computes on the CPU."""
    monkeypatch.setitem(engine.PROVIDERS, "azure", "AzureExecutionProvider")
    with pytest.raises(UnavailableError, match="azure runs none of its 5 nodes") as caught:
        Receiver(codec, backend=OnnxRuntimeBackend(providers=("azure",)))
    assert caught.value.code == "E_EP_MISSING"
    device = Receiver(codec, backend=OnnxRuntimeBackend(providers=("azure", "cpu")))
    _, record = device.receive(good(), CSI, seed=0)
    assert record.providers == {"decode": "cpu"}
    assert record.fallbacks == ("stage 'decode': azure runs none of its 5 nodes",)


class Part:
    """As the library reports which provider took which nodes."""

    def __init__(self, ep_name, *kinds):
        self.ep_name = ep_name
        self.kinds = kinds

    def get_nodes(self):
        return [type("Node", (), {"op_type": kind})() for kind in self.kinds]


class HalfSession:
    """A session of which the CPU runs a part."""

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        return [
            Part("CUDAExecutionProvider", "Conv", "Add", "Conv"),
            Part("CPUExecutionProvider", "Shape", "Gather"),
        ]


def test_row_49_a_provider_that_runs_a_part():
    lack, notes = engine._assigned(HalfSession(), "cuda")
    assert lack is None
    assert notes == ("2 of 5 nodes do not run on cuda: Gather, Shape",)


def test_row_49_a_provider_whose_driver_is_missing():
    lack, _ = engine._assigned(HalfSession(), "tensorrt")
    assert lack == "tensorrt could not start on this machine (driver or libraries)"


BFC = "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 77"


def test_row_50_a_device_out_of_memory_loses_no_later_image(codec):
    """The engine says it ran out; the session is built anew and the image tried once more."""
    device = Receiver(codec, backend=ENGINE)
    stage = device._program.stages["decode"]
    working = stage.session._session
    session = engine.OnnxRuntimeSession("decode", stage.entry, "cuda", (), lambda: working, working)
    device._program.stages["decode"] = dataclasses.replace(stage, session=session)

    class Exhausted:
        def io_binding(self):
            raise RuntimeError(BFC)

    expected, _ = device.receive(good(), CSI, seed=0)
    for _ in range(2):
        session._session = Exhausted()
        image, record = device.receive(good(), CSI, seed=0)
        assert np.array_equal(image, expected)
        assert record.fallbacks == ("ran out of memory: tried again",)
    assert device.receive(good(), CSI, seed=0)[1].fallbacks == ()
