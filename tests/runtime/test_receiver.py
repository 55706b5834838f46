"""Receiver: from symbols to an image and a record of what ran."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fake_engine import FakeBackend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.channel import Awgn
from jscc.runtime.csi import Csi
from jscc.runtime.errors import SymbolsError, UnavailableError, UsageError
from jscc.runtime.receiver import Receiver
from jscc.runtime.transmitter import Transmitter

ENGINE = OnnxRuntimeBackend(threads=1)
CSI = Csi(7.0)
CONTEXT = {"context": np.linspace(0, 1, 10, dtype=np.float32).reshape(1, 2, 5)}


def heard(rows=8, columns=12, seed=0):
    """Symbols of unit power over a channel of 7 dB."""
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, 2, rows, columns))
    symbols = (parts[0] + 1j * parts[1]).astype(np.complex64)
    symbols /= np.sqrt(np.mean(np.abs(symbols) ** 2))
    return Awgn().transmit(symbols, CSI.snr_db, rng=rng)[0]


def with_manifest(bundle, **changes):
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **changes))


@pytest.fixture
def receiver(diffusion_bundle):
    return Receiver(diffusion_bundle, backend=ENGINE)


def receive(receiver, symbols=None, **arguments):
    given = {"seed": 1, "side": CONTEXT, **arguments}
    return receiver.receive(heard() if symbols is None else symbols, CSI, **given)


def test_an_image_goes_through_the_whole_link(codec_bundle):
    image = np.random.default_rng(0).integers(0, 256, (30, 45, 3), dtype=np.uint8)
    symbols = Transmitter(codec_bundle, backend=ENGINE).send(image)
    received, csi = Awgn().transmit(symbols, 10.0, rng=np.random.default_rng(1))
    out, record = Receiver(codec_bundle, backend=ENGINE).receive(
        received, csi, seed=0, size=(30, 45)
    )
    assert out.shape == image.shape
    assert out.dtype == np.uint8
    assert record.symbols == 2 * 8 * 12
    assert record.loops == {}


def test_without_a_size_the_whole_grid_comes_back(receiver):
    assert receive(receiver)[0].shape == (32, 48, 3)
    assert receive(receiver, size=(25, 41))[0].shape == (25, 41, 3)


def test_the_size_only_crops(receiver):
    whole, cropped = receive(receiver)[0], receive(receiver, size=(25, 41))[0]
    assert np.array_equal(whole[:25, :41], cropped)


def test_symbols_in_a_row_are_shaped_by_the_size(receiver):
    shaped = receive(receiver, size=(30, 45))[0]
    flat = receive(receiver, heard().ravel(), size=(30, 45))[0]
    assert np.array_equal(shaped, flat)
    with pytest.raises(SymbolsError, match=r"got \[192\], expected \[2,rows,columns\]"):
        receive(receiver, heard().ravel())


def test_an_enlarged_image_shrinks_back(diffusion_bundle):
    contract = dataclasses.replace(diffusion_bundle.manifest.image, short_edge=32)
    device = Receiver(with_manifest(diffusion_bundle, image=contract), backend=ENGINE)
    image, _ = receive(device, heard(8, 10), size=(16, 20))
    assert image.shape == (16, 20, 3)
    assert receive(device, heard(6, 6))[0].shape == (24, 24, 3)


def test_the_record_says_what_ran(receiver, diffusion_bundle):
    _, record = receive(receiver, frame=7, sampler="dpmpp2m", steps=3, start="received",
                        start_level=0.5, guidance=2.0, spacing="karras")  # fmt: skip
    tree = json.loads(record.to_json())
    assert tree["bundle"] == diffusion_bundle.sha256
    assert tree["backend"].startswith("onnxruntime 1.")
    assert tree["providers"] == dict.fromkeys(("decode", "condition", "denoise", "render"), "cpu")
    assert tree["loops"]["denoise"] == {
        "sampler": "dpmpp2m", "steps": 3, "start": "received", "level": 500, "guidance": 2.0,
        "guide": None, "guide_every": 1, "travel": [1, 1], "settings": {}, "spacing": "karras",
    }  # fmt: skip
    assert (tree["seed"], tree["frame"], tree["batch"]) == (1, 7, 1)
    assert tree["tiles"] == {"decode": 1, "condition": 1, "denoise": 2, "render": 2}
    assert set(tree["times_ms"]) == {"decode", "condition", "denoise", "render", "total"}
    assert tree["times_ms"]["total"] >= sum(tree["times_ms"].values()) / 2
    assert tree["fallbacks"] == []
    assert tree["power"] == pytest.approx(1.2, rel=0.2)
    assert record.steps == 3


def test_the_bundle_decides_what_the_caller_does_not(receiver):
    _, record = receive(receiver)
    loop = record.loops["denoise"]
    assert (loop.sampler, loop.steps, loop.start, loop.level) == ("ddim", 4, "received", 599)


def test_the_same_call_gives_the_same_image(receiver, diffusion_bundle):
    first = receive(receiver, start="noise", sampler="ddpm")[0]
    assert np.array_equal(receive(receiver, start="noise", sampler="ddpm")[0], first)
    another = Receiver(diffusion_bundle, backend=OnnxRuntimeBackend(threads=2))
    assert np.array_equal(receive(another, start="noise", sampler="ddpm")[0], first)


@pytest.mark.parametrize("change", [{"seed": 2}, {"frame": 1}, {"sampler": "ddim"}, {"steps": 5}])
def test_every_choice_shows(receiver, change):
    base = {"start": "noise", "sampler": "ddpm", "steps": 4}
    first = receive(receiver, **base)[0]
    assert not np.array_equal(receive(receiver, **{**base, **change})[0], first)


def test_images_of_a_batch_are_those_received_alone(receiver):
    symbols = np.stack([heard(seed=seed) for seed in range(3)])
    csis = [Csi(3.0), Csi(7.0), Csi(12.0)]
    common = {"seed": 4, "side": CONTEXT, "sampler": "ddpm", "start": "noise", "size": (30, 45)}
    images, records = receiver.receive_batch(symbols, csis, frame=10, **common)
    assert images.shape == (3, 30, 45, 3)
    for index in range(3):
        alone, record = receiver.receive(symbols[index], csis[index], frame=10 + index, **common)
        assert np.abs(images[index].astype(int) - alone).max() <= 1
        assert records[index].frame == record.frame == 10 + index
        assert records[index].snr_db_used == csis[index].snr_db
        assert records[index].batch == 3


def test_threads_share_a_receiver(receiver):
    jobs = [(heard(8, 8 + 2 * (index % 3), seed=index), index) for index in range(24)]

    def work(job):
        symbols, index = job
        return receive(receiver, symbols, seed=index, sampler="ddpm", start="noise")[0]

    serial = [work(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(work, jobs))
    assert all(np.array_equal(*pair) for pair in zip(serial, parallel, strict=True))


def test_the_gain_is_equalised_and_passed_on(diffusion_bundle):
    signal = dataclasses.replace(diffusion_bundle.manifest.signal, equalisation="zero_forcing")
    seen = []

    def decode(arrays):
        seen.append(arrays)
        noise = np.random.default_rng(0).random((1, 3, 32, 48), np.float32)
        return {"reconstruction": noise}

    bundle = with_manifest(diffusion_bundle, signal=signal)
    device = Receiver(bundle, backend=FakeBackend({"decode": decode, "render": fake_render}))
    symbols = heard()
    device.receive((symbols * 0.5j).astype(np.complex64), Csi(7.0, 0.5j), seed=0, side=CONTEXT)
    planes = np.concatenate([symbols.real, symbols.imag])
    assert np.abs(seen[0]["received"][0] - planes).max() < 1e-6
    assert seen[0]["snr_db"].tolist() == [7.0]


def fake_render(arrays):
    return {"image": np.random.default_rng(1).random(arrays["reconstruction"].shape, np.float32)}


def test_a_captioner_is_asked_for_what_the_caller_does_not_give(diffusion_bundle):
    pictures = []

    def captioner(image):
        pictures.append(image)
        return CONTEXT["context"]

    device = Receiver(diffusion_bundle, backend=ENGINE, captioner=captioner)
    image, _ = receive(device, side=None)
    given, _ = receive(device)
    assert np.array_equal(image, given)
    assert len(pictures) == 1
    assert pictures[0].dtype == np.uint8
    assert pictures[0].shape == (32, 48, 3)
    device.receive_batch(np.stack([heard()] * 2), [CSI] * 2, seed=0)
    assert len(pictures) == 3


@pytest.mark.parametrize(
    ("side", "shown"),
    [(None, "got none, expected context"), ({"text": CONTEXT["context"]}, "got text, expected")],
)
def test_side_inputs_have_to_be_given(receiver, side, shown):
    with pytest.raises(UsageError, match=shown) as caught:
        receive(receiver, side=side)
    assert caught.value.code == "E_SIDE"


def test_a_side_input_for_each_image_or_one_for_all(receiver):
    symbols, csis = np.stack([heard()] * 2), [CSI] * 2
    other = {"context": CONTEXT["context"] + np.float32(1)}
    both = {"context": np.concatenate([CONTEXT["context"], other["context"]])}
    one = receiver.receive_batch(symbols, csis, seed=1, side=CONTEXT)[0]
    two = receiver.receive_batch(symbols, csis, seed=1, side=both)[0]
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])


def test_a_codec_has_nothing_to_sample(codec_bundle):
    device = Receiver(codec_bundle, backend=ENGINE)
    with pytest.raises(
        UsageError, match=r"sampling: got .*steps=5.*this bundle has no loop"
    ) as caught:
        device.receive(heard(), CSI, seed=0, steps=5)
    assert caught.value.code == "E_NO_LOOP"


@pytest.mark.parametrize(("seed", "frame"), [(-1, 0), (1 << 64, 0), (0, -1), (0, 1 << 64)])
def test_seed_and_frame_are_64_bits(receiver, seed, frame):
    with pytest.raises(UsageError, match=f"seed, frame: got {seed}, {frame}, expected 0 to"):
        receive(receiver, seed=seed, frame=frame)


def test_a_batch_has_a_csi_per_image(receiver):
    for symbols, csis in ((np.stack([heard()] * 2), [CSI]), (heard()[None][:0], [])):
        with pytest.raises(UsageError, match=f"csis: got {len(csis)} for") as caught:
            receiver.receive_batch(symbols, csis, seed=0, side=CONTEXT)
        assert caught.value.code == "E_BATCH"


def test_lost_symbols_are_marked(receiver):
    erased = np.zeros((2, 8, 12), bool)
    erased[0, :4] = True
    symbols = heard()
    symbols[erased] = np.nan
    image, record = receive(receiver, symbols, erased=erased)
    assert record.missing == 48
    assert not np.array_equal(image, receive(receiver)[0])
    with pytest.raises(UsageError, match=r"erased: got bool\[1,8,12\], expected bool\[1,2,8,12\]"):
        receive(receiver, erased=erased[0])


def test_a_batch_that_does_not_fit_is_received_one_by_one(diffusion_bundle):
    def decode(arrays):
        if len(arrays["received"]) > 1:
            raise UnavailableError("E_MEMORY", "stage 'decode': got out of memory")
        value = float(arrays["received"].mean())
        image = np.linspace(value, 0.9, 32 * 48, dtype=np.float32).reshape(1, 1, 32, 48)
        return {"reconstruction": np.repeat(image, 3, axis=1)}

    device = Receiver(
        diffusion_bundle,
        backend=FakeBackend({"decode": decode, "render": lambda a: {"image": a["reconstruction"]}}),
    )
    symbols = np.stack([heard(seed=0), heard(seed=1)])
    images, records = device.receive_batch(symbols, [CSI] * 2, seed=0, frame=5, side=CONTEXT)
    assert not np.array_equal(images[0], images[1])
    assert [record.frame for record in records] == [5, 6]
    assert records[0].fallbacks == ("ran out of memory: tried again, images one by one",)


def test_an_image_that_does_not_fit_alone_is_an_error(diffusion_bundle):
    tries = []

    def decode(arrays):
        tries.append(1)
        raise UnavailableError("E_MEMORY", "stage 'decode': got out of memory")

    device = Receiver(diffusion_bundle, backend=FakeBackend({"decode": decode}))
    with pytest.raises(UnavailableError, match="got out of memory"):
        receive(device)
    assert len(tries) == 2  # once more on the engine built anew


def test_other_failures_of_the_engine_are_not_tried_again(diffusion_bundle):
    tries = []

    def decode(arrays):
        tries.append(1)
        raise UnavailableError("E_RUN", "stage 'decode': got error 700")

    device = Receiver(diffusion_bundle, backend=FakeBackend({"decode": decode}))
    with pytest.raises(UnavailableError, match="got error 700"):
        receive(device)
    assert len(tries) == 1


def test_images_received_one_by_one_keep_their_side_inputs_and_levels(diffusion_bundle):
    """Whatever memory there is, the images are the same."""
    side = {"context": np.stack([CONTEXT["context"][0], 1 - CONTEXT["context"][0]])}
    loop = diffusion_bundle.manifest.loops["denoise"]
    sampler = dataclasses.replace(loop.sampler, start_level=None)
    loops = {"denoise": dataclasses.replace(loop, sampler=sampler)}
    bundle = with_manifest(diffusion_bundle, loops=loops)

    @dataclasses.dataclass(frozen=True)
    class Cramped:
        name = ENGINE.name

        def load(self, stage, *arguments):
            session = ENGINE.load(stage, *arguments)
            return Single(session) if stage == "decode" else session

        def fallback(self):
            return None

    class Single:
        def __init__(self, session):
            self.inputs, self.outputs = session.inputs, session.outputs
            self.provider, self.fallbacks = session.provider, session.fallbacks
            self.session = session

        def run(self, arrays):
            if len(arrays["received"]) > 1:
                raise UnavailableError("E_MEMORY", "stage 'decode': got out of memory")
            return self.session.run(arrays)

    symbols = np.stack([heard(seed=0), heard(seed=1)])
    csis = [Csi(2.0), Csi(11.0)]
    together, _ = Receiver(bundle, backend=ENGINE).receive_batch(symbols, csis, seed=1, side=side)
    cramped, records = Receiver(bundle, backend=Cramped()).receive_batch(
        symbols, csis, seed=1, side=side
    )
    assert np.abs(together.astype(int) - cramped).max() <= 1
    levels = [record.loops["denoise"].level for record in records]
    assert levels[0] > levels[1]


def test_a_received_start_begins_at_the_named_tensor(diffusion_bundle):
    states = []

    def condition(arrays):
        return {"hint": np.full((1, 4, 8, 12), 5.0, np.float32)}

    def denoise(arrays):
        states.append(arrays["latent"])
        return {"clean": arrays["latent"]}

    backend = FakeBackend(
        {
            "decode": lambda arrays: {"reconstruction": np.zeros((1, 3, 32, 48), np.float32)},
            "condition": condition,
            "denoise": denoise,
            "render": fake_render,
        }
    )
    device = Receiver(diffusion_bundle, backend=backend)
    receive(device, start="received", start_level=0.1)
    receive(device, start="noise", guidance=1e4, steps=1, sampler="ddpm")
    assert states[0].mean() == pytest.approx(5 * 0.957, abs=0.1)  # sqrt(abar) at level 100
    assert abs(states[-1].mean()) < 0.5


def test_the_self_test_can_be_left_out(codec_bundle):
    fake = FakeBackend()
    Receiver(codec_bundle, backend=fake, selftest=False)
    assert fake.sessions["decode", "fake"].calls == []
