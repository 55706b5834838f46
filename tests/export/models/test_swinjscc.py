"""SwinJSCC gives the published implementation's numbers, and its checkpoints say what they are."""

import ast
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch

from jscc.export.checkpoint import load_into, read_checkpoint, select
from jscc.export.codec_swinjscc import swinjscc
from jscc.export.models.precision import halve
from jscc.export.models.swinjscc import (
    Decoder,
    Encoder,
    Layout,
    Receive,
    ReceiveChosen,
    Send,
    SendChosen,
    config_of,
)
from jscc.export.recognise import recognise
from jscc.export.source import RandomSource
from jscc.runtime.errors import CheckpointError

SHARED = Path(__file__).resolve().parents[4] / "shared"
GOLDEN = SHARED / "golden" / "swinjscc-tiny"
TOLERANCE = 5e-5
HALVES = {"encoder": Encoder, "decoder": Decoder}
CASES = [
    ("base", "64x64.snr10"),
    ("base", "64x96.snr10"),
    ("sa", "64x64.snr1"),
    ("sa", "64x64.snr13"),
    ("sa_ra", "32x64.snr1.rate5"),
    ("sa_ra", "32x64.snr1.rate14"),
    ("sa_ra", "32x64.snr13.rate5"),
    ("sa_ra", "32x64.snr13.rate14"),
]
SMALL = {
    "img_size": [64, 64],
    "embed_dims": [4, 8],
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "C": 6,
}


class Golden:
    """One published variant with its networks."""

    def __init__(self, variant):
        if not GOLDEN.is_dir():
            pytest.skip(f"no golden vectors at {GOLDEN}")
        self.arguments = json.loads((GOLDEN / "config.json").read_text())[variant]
        self.weights = read_checkpoint(GOLDEN / f"{variant}_fp16.model").tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        self.layout = Layout.from_config({**config_of(self.shapes), "variant": variant})
        with np.load(GOLDEN / f"{variant}_io.npz") as archive:
            self.vectors = {name: torch.from_numpy(archive[name]) for name in archive.files}
        self.encoder, self.decoder = (self.half(name) for name in HALVES)

    def half(self, name):
        with torch.device("meta"):
            module = HALVES[name](self.layout)
        weights = select(self.weights, f"{name}.")
        return load_into(module, weights, where=name, ignore=self.layout.unused).eval()


@pytest.fixture(scope="module")
def goldens():
    return {variant: Golden(variant) for variant in ("base", "sa", "sa_ra")}


@pytest.fixture(scope="module")
def full_size():
    """Names and shapes of the authors' checkpoints at their real size, by variant."""
    path = SHARED / "keys" / "jscc_codecs.txt"
    if not path.is_file():
        pytest.skip(f"no key list at {path}")
    found = {}
    for section in path.read_text().split("=" * 90):
        head, *lines = section.strip().splitlines() or [""]
        named = re.match(r"# SwinJSCC base (SwinJSCC_\S+) (?:en|de)coder", head)
        if named:
            rows = (line.split(" ", 1) for line in lines if not line.startswith("#"))
            shapes = {name: ast.literal_eval(shape) for name, shape in rows}
            found.setdefault(named[1], {}).update(shapes)
    return found


def size_of(name):
    height, width = name.split(".")[0].split("x")
    return int(height), int(width)


def snr_of(name):
    return torch.tensor([float(re.search(r"snr(\d+)", name)[1])])


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_features_and_picture_match_golden(goldens, variant, name):
    golden, (height, width), snr = goldens[variant], size_of(name), snr_of(name)
    vectors = golden.vectors
    image = vectors[f"{height}x{width}.image"]
    with torch.no_grad():
        features = golden.encoder(image, snr)
        if variant == "sa_ra":
            rate = torch.tensor([float(name.rpartition("rate")[2])])
            features, scores = golden.encoder.choose(features, rate)
            mask = torch.zeros_like(scores).scatter(1, scores.topk(int(rate)).indices, 1.0)
            assert torch.equal(mask, vectors[f"{name}.mask"][:, 0])
            features = features * mask[:, None, None]
        received = vectors[f"{name}.rx"].unflatten(1, (height // 16, width // 16))
        picture = golden.decoder(received, snr)
    assert (features.flatten(1, 2) - vectors[f"{name}.feature"]).abs().max() < TOLERANCE
    assert (picture - vectors[f"{name}.recon"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("variant", ["base", "sa", "sa_ra"])
def test_the_weights_tell_what_the_constructor_was_told(goldens, variant):
    golden = goldens[variant]
    assert golden.layout == Layout.from_config(golden.arguments)
    found = config_of(golden.shapes)
    assert found.get("variant") == ("sa_ra" if variant == "sa_ra" else None)


def test_a_stage_that_was_built_for_one_window_never_shifts(goldens):
    """At 64x64 pixels the last stage of `sa` is 4x4 positions, as large as its window."""
    layout = goldens["sa"].layout
    assert [stage.shift for stage in layout.down] == [2, 2, 2, 0]
    assert [stage.shift for stage in layout.up] == [0, 2, 2, 2]


def test_masks_that_somebody_took_out_are_taken_for_shifts(goldens):
    shapes = {name: shape for name, shape in goldens["sa"].shapes.items() if "mask" not in name}
    layout = Layout.from_config({**config_of(shapes), "variant": "sa"})
    assert [stage.shift for stage in layout.down] == [2, 2, 2, 2]
    told = {**config_of(shapes), "shifted": [True, True, True, False], "variant": "sa"}
    assert Layout.from_config(told).down == goldens["sa"].layout.down


@pytest.mark.parametrize(
    ("model", "planes", "stride"),
    [
        ("SwinJSCC_w/o_SAandRA", 96, 16),
        ("SwinJSCC_w/_SA", 96, 16),
        ("SwinJSCC_w/_SAandRA", 768, 32),
    ],
)
def test_full_size_names_are_those_of_the_authors(full_size, model, planes, stride):
    shapes = full_size[model]
    params = {"model": model, **config_of(shapes)}
    layout = Layout.from_config(params)
    with torch.device("meta"):
        modules = {name: build(layout) for name, build in HALVES.items()}
    ours = {
        f"{half}.{name}": tuple(tensor.shape)
        for half, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    used = {
        name: shape
        for name, shape in shapes.items()
        if not any(fnmatchcase(name.partition(".")[2], pattern) for pattern in layout.unused)
    }
    assert ours == used
    assert layout.multiple == 128
    signal = swinjscc(RandomSource({}, Path(), 0), params, "").signal
    assert (signal.planes, signal.stride) == (planes, stride)


def test_diffjscc_s_swin_and_other_networks_are_not_taken_for_it(goldens):
    shapes = goldens["sa"].shapes
    assert config_of({**shapes, "decoder.absolute_pos_embed": (1, 4096, 320)}) is None
    assert config_of({"encoder.conv1.weight": (3, 3, 3, 3)}) is None
    assert config_of({"encoder.patch_embed.proj.weight": (8, 3, 2, 2)}) is None
    table = "encoder.layers.0.blocks.0.attn.relative_position_bias_table"
    assert config_of({name: shape for name, shape in shapes.items() if name != table}) is None


WRONG = [
    ({}, "swinjscc.variant: got nothing, expected 'base' or 'sa': the weights fit both."),
    ({"model": "SwinJSCC_w/_RA"}, "got 'SwinJSCC_w/_RA', expected one of base, sa, sa_ra."),
    ({"variant": "sa", "C": 0}, "swinjscc.C: got 0, expected a whole number above 0."),
    ({"variant": "sa", "depths": 2}, "swinjscc.depths: got 2, expected a list with one entry"),
    ({"variant": "sa", "depths": [2]}, "got [2, 1, 2, 2, 2] entries in embed_dims, depths"),
    ({"variant": "sa", "img_size": 64}, "swinjscc.img_size: got 64, expected [height, width]"),
    ({"variant": "sa", "embed_dims_d": [9, 4]}, "embed_dims_d: got 9 at first, expected 8 as"),
    ({"variant": "sa_ra", "rates": [4, 9]}, "rates: got [4, 9], expected numbers from 1 to 8"),
    ({"variant": "sa_ra", "rates": []}, "rates: got [], expected numbers from 1 to 8"),
    ({"variant": "sa_ra", "rates": 4}, "rates: got 4, expected numbers from 1 to 8"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_configurations_that_are_refused(change, words):
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        swinjscc(RandomSource({}, Path(), 0), {**SMALL, **change}, "")
    assert caught.value.code == "E_CONFIG"


def both(layout, randomise):
    chosen = layout.variant == "sa_ra"
    send, receive = (SendChosen, ReceiveChosen) if chosen else (Send, Receive)
    return send(randomise(Encoder(layout)), layout), receive(randomise(Decoder(layout)), layout)


@pytest.mark.parametrize("features", [6, 5])
def test_planes_are_the_row_of_features(rng, randomise, features):
    """With an odd number of features, planes are quarters of the positions."""
    layout = Layout.from_config({**SMALL, "C": features, "variant": "sa"})
    send, receive = both(layout, randomise)
    image, snr = torch.rand(2, 3, 32, 48, generator=rng), torch.tensor([1.0, 9.0])
    with torch.no_grad():
        row = send.network(image, snr).flatten(1)
        planes, power = send(image, snr)
        assert torch.equal(planes.flatten(1), row)
        assert planes.shape[1] % 2 == 0
        assert planes.shape[2] * layout.stride == 32
        torch.testing.assert_close(power, 2 * row.square().mean(dim=1))
        scaled = planes / power.sqrt()[:, None, None, None]
        wanted = receive.network(row.reshape(2, 8, 12, features), snr)
        torch.testing.assert_close(receive(scaled, power, snr), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [1, 3, 8])
def test_only_the_best_features_are_sent_and_return_to_their_places(rng, randomise, rate):
    layout = Layout.from_config({**SMALL, "variant": "sa_ra"})
    send, receive = both(layout, randomise)
    image, snr = torch.rand(2, 3, 32, 48, generator=rng), torch.tensor([1.0, 9.0])
    planes_asked = torch.full((2,), 4.0 * rate)
    with torch.no_grad():
        features, scores = send.network.choose(send.network(image, snr), planes_asked / 4)
        planes, power, mask = send(image, snr, planes_asked)
        assert planes.shape == (2, 4 * rate, 4, 6)
        assert mask.sum(dim=1).tolist() == [rate, rate]
        least = torch.where(mask == 1, scores, torch.inf).min(dim=1).values
        assert (torch.where(mask == 1, -torch.inf, scores).max(dim=1).values < least).all()
        kept = [item[..., each == 1].flatten() for item, each in zip(features, mask, strict=True)]
        assert torch.equal(planes.flatten(1), torch.stack(kept))
        scaled = planes / power.sqrt()[:, None, None, None]
        wanted = receive.network(features * mask[:, None, None], snr)
        got = receive(scaled, power, mask, snr)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e30, -1e30])
def test_side_values_that_nobody_sent_still_give_finite_pictures(rng, randomise, fill):
    layout = Layout.from_config({**SMALL, "variant": "sa_ra"})
    _, receive = both(layout, randomise)
    planes, snr = torch.randn(1, 12, 4, 4, generator=rng), torch.tensor([7.0])
    with torch.no_grad():
        picture = receive(planes, torch.ones(1), torch.full((1, 8), fill), snr)
        assert picture.isfinite().all()
        assert receive(planes, torch.tensor([-1.0]), torch.ones(1, 8), snr).isfinite().all()


def test_the_transmitter_that_chooses_stays_in_float32(rng, randomise):
    """In half precision the scores of neighbouring features would change places."""
    layout = Layout.from_config({**SMALL, "variant": "sa_ra"})
    send, receive = both(layout, randomise)
    half_send, half_receive = halve(send), halve(receive)
    assert {p.dtype for p in half_send.parameters()} == {torch.float32}
    assert torch.float16 in {p.dtype for p in half_receive.parameters()}
    image, snr = torch.rand(1, 3, 32, 32, generator=rng), torch.tensor([5.0])
    with torch.no_grad():
        planes, power, mask = half_send(image, snr, torch.tensor([16.0]))
        scaled = planes / power.sqrt()[:, None, None, None]
        picture, wanted = (each(scaled, power, mask, snr) for each in (half_receive, receive))
    assert picture.dtype == torch.float32
    assert (picture - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_checkpoints_are_recognised_behind_a_wrapper(goldens):
    for variant, golden in goldens.items():
        found = recognise({f"module.{name}": shape for name, shape in golden.shapes.items()})
        assert found is not None
        assert found.family.name == "swinjscc"
        assert Layout.from_config({"variant": variant, **found.config}) == golden.layout
