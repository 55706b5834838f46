"""DeepJsccSwin gives the published codec's numbers at any image size."""

import numpy as np
import pytest
import torch

import tiny_checkpoint
from jscc.export.codecs import SWIN_REBUILT
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.models.swin_blocks import PatchMerging, PatchSplitting, shift_mask

TOLERANCE = 5e-5
SIZES = ("128x128", "128x192")
REBUILT = (*SWIN_REBUILT, "decoder.absolute_pos_embed")
SNRS = {"A": 1.0, "B": 10.0}
SMALL = {**tiny_checkpoint.SWIN["params"], "img_size_h": 32, "img_size_w": 32}


@pytest.fixture(scope="module")
def codec(swin):
    return swin.load(lambda: DeepJsccSwin.from_config(swin.config["params"]), "", REBUILT)


def image(swin, size):
    return swin.tensors[f"in.{size}.x_u8"].permute(2, 0, 1)[None].float() / 255


def planes(tokens, size):
    height, width = (int(side) // 16 for side in size.split("x"))
    return tokens.transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize("snr", SNRS)
@pytest.mark.parametrize("size", SIZES)
def test_codec_matches_golden(swin, codec, size, snr):
    csi = torch.tensor([[SNRS[snr]]])
    name = f"{size}.snr{snr}.awgn"
    with torch.no_grad():
        z = codec.encoder(image(swin, size), csi)
        assert swin.gap(f"{name}.z", z.flatten(2).transpose(1, 2)) < TOLERANCE
        received = planes(swin.tensors[f"out.{name}.rx"], size)
        assert swin.gap(f"{name}.x_hat", codec.decoder(received, csi)) < TOLERANCE


@pytest.mark.parametrize("snr", SNRS)
def test_faded_symbols_decode_without_the_gain(swin, codec, snr):
    name = f"128x128.snr{snr}.rayleigh"
    with torch.no_grad():
        received = planes(swin.tensors[f"out.{name}.rx"], "128x128")
        got = codec.decoder(received, torch.tensor([[SNRS[snr]]]))
    assert swin.gap(f"{name}.x_hat", got) < TOLERANCE


def test_stages_match_golden(swin, codec):
    name, csi, outs = "128x192.snrA.awgn", torch.tensor([[1.0]]), {}
    wanted = {f"enc_layer{i}": codec.encoder.layers[i] for i in (1, 2, 3)}
    wanted |= {f"dec_layer{i}": codec.decoder.layers[i] for i in (0, 1)}
    hooks = [
        layer.register_forward_hook(lambda *a, key=key: outs.update({key: a[2]}))
        for key, layer in wanted.items()
    ]
    with torch.no_grad():
        codec.encoder(image(swin, "128x192"), csi)
        codec.decoder(planes(swin.tensors[f"out.{name}.rx"], "128x192"), csi)
    for hook in hooks:
        hook.remove()
    for key in wanted:
        assert swin.gap(f"{name}.{key}", outs[key].flatten(1, 2)) < TOLERANCE


def test_rebuilt_buffers_are_those_of_the_checkpoint(swin, codec):
    masks = [name for name in swin.weights if name.endswith("attn_mask")]
    assert len(masks) == 8
    for name in masks:
        stored = swin.weights[name]
        side = int(len(stored) ** 0.5) * 4
        assert torch.equal(shift_mask(side, side, window=4, shift=2), stored)
    indices = [name for name in swin.weights if name.endswith("relative_position_index")]
    assert len(indices) == 16
    for name in indices:
        attention = codec.get_submodule(name.rpartition(".")[0])
        assert torch.equal(attention.index, swin.weights[name].flatten())


def test_image_sizes_are_multiples_of_the_last_window(codec):
    assert codec.multiple == 64


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 8), (4, 4)])
def test_shift_mask_separates_what_the_roll_brings_together(height, width):
    """Numbering the positions and rolling the numbers tells which are true neighbours."""
    window, shift = 4, 2
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rolled = [torch.roll(axis, (-shift, -shift), (0, 1)) for axis in (rows, columns)]
    mask = shift_mask(height, width, window, shift)
    assert mask.shape == (height * width // 16, 16, 16)
    for index in range(len(mask)):
        row, column = divmod(index, width // window)
        part = np.s_[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        r, c = (axis[part].flatten() for axis in rolled)
        apart = ((r[:, None] - r[None]).abs() >= window) | ((c[:, None] - c[None]).abs() >= window)
        if height > window and width > window:
            assert torch.equal(mask[index], apart * -100.0)
        assert set(mask.unique().tolist()) <= {-100.0, 0.0}


def test_windows_larger_than_the_training_resolution_shrink_and_stay_put():
    with torch.device("meta"):
        codec = DeepJsccSwin.from_config({**SMALL, "img_size_w": 48, "window_size": 12})
    assert [(stage.window, stage.shift) for stage in codec.down] == [(12, 6), (8, 0)]
    assert [(stage.window, stage.shift) for stage in codec.up] == [(8, 0), (12, 6)]
    table = codec.encoder.layers[1].blocks[1].attn.relative_position_bias_table
    assert table.shape == (15 * 15, 3)
    assert codec.multiple == 96


def test_windows_as_large_as_the_training_resolution_stay_put():
    with torch.device("meta"):
        codec = DeepJsccSwin.from_config({**SMALL, "window_size": 8})
    assert [(stage.window, stage.shift) for stage in codec.down] == [(8, 4), (8, 0)]


def test_items_of_a_batch_do_not_mix(rng, randomise):
    codec = randomise(DeepJsccSwin.from_config(SMALL))
    images, csi = torch.rand(2, 3, 32, 48, generator=rng), torch.tensor([[1.0], [9.0]])
    with torch.no_grad():
        together = codec.encoder(images, csi)
        alone = torch.cat([codec.encoder(images[i : i + 1], csi[i : i + 1]) for i in range(2)])
        assert together.shape == (2, 4, 8, 12)
        assert (together - alone).abs().max() < 1e-5
        pictures = codec.decoder(together, csi)
    assert pictures.shape == images.shape
    assert 0 <= pictures.min() <= pictures.max() <= 1


def test_the_snr_matters(rng, randomise):
    codec = randomise(DeepJsccSwin.from_config(SMALL))
    images = torch.rand(1, 3, 32, 32, generator=rng)
    outs = [codec.encoder(images, torch.tensor([[snr]])) for snr in (0.0, 10.0)]
    assert (outs[0] - outs[1]).abs().max() > 1e-3


def test_neighbours_merge_row_first():
    """The order of the four neighbours is that of the checkpoints' weights."""
    merging = PatchMerging(1, 4)
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.eye(4))
    merging.norm = torch.nn.Identity()
    got = merging(torch.tensor([[0.0, 2.0], [1.0, 3.0]])[None, :, :, None])
    assert got.flatten().tolist() == [0, 1, 2, 3]


def test_splitting_makes_four_positions():
    splitting = PatchSplitting(8, 5)
    assert splitting(torch.zeros(2, 3, 4, 8)).shape == (2, 6, 8, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 4}, "patch_size: got 4, expected 2"),
        ({"qkv_bias": False}, "qkv_bias: got False, expected True"),
        ({"qk_scale": 0.5}, "qk_scale: got 0.5, expected None"),
        ({"channel": "Rician"}, "channel: got 'Rician', expected one of"),
        ({"depths": [2]}, r"got \[2, 1, 2\] entries"),
        ({"embed_dims_d": [12]}, "embed_dims_d: got 1 stages, expected 2"),
    ],
)
def test_unusable_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DeepJsccSwin.from_config({**SMALL, **change})


def test_missing_values_are_named():
    params = {key: value for key, value in SMALL.items() if key != "window_size"}
    with pytest.raises(ValueError, match=r"got no \['window_size'\], expected a value"):
        DeepJsccSwin.from_config(params)
