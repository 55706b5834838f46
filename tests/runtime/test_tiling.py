"""Tiling: weights that sum to one, tiles of one shape, stages that cannot tell the difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jscc.runtime.ports import Port
from jscc.runtime.tiling import cut, run_tiled, tile_image

IMAGE = Port("image", "float32", ("batch", 3, "height", "width"))
LATENT = Port("latent", "float32", ("batch", 4, "height/8", "width/8"))
SNR = Port("snr_db", "float32", ("batch",))


@st.composite
def cuts(draw):
    """Length, tile, overlap and alignment as manifests allow them."""
    align = draw(st.sampled_from([1, 8, 64]))
    tile = align * draw(st.integers(2, 12))
    overlap = align * draw(st.integers(0, tile // align // 2))
    return align * draw(st.integers(1, 60)), tile, overlap, align


@settings(deadline=None)
@given(cuts())
def test_tiles_cover_the_edge_with_the_overlap_asked_for(case):
    length, tile, overlap, align = case
    axis = cut(*case)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.tile == length
    assert axis.tile == min(tile, length)
    assert all(start % align == 0 for start in axis.starts)
    shared = np.array(axis.starts[:-1]) + axis.tile - np.array(axis.starts[1:])
    assert (shared >= overlap).all()
    if length > tile:
        assert len(axis.starts) == -(-(length - overlap) // (tile - overlap))


@settings(deadline=None)
@given(cuts())
def test_weights_sum_to_one_everywhere(case):
    axis = cut(*case)
    total = np.zeros(axis.length)
    for start, weight in zip(axis.starts, axis.weights(1), strict=True):
        assert (weight > 0).all()
        total[start : start + axis.tile] += weight
    assert np.abs(total - 1).max() < 1e-6


@pytest.mark.parametrize("length", range(192, 1024, 64))
def test_an_overlap_that_is_no_multiple_is_kept(length):
    axis = tile_image(length, 64, tile=128, overlap=32, multiple=64).height
    shared = np.array(axis.starts[:-1]) + axis.tile - np.array(axis.starts[1:])
    assert shared.min() >= 32
    assert all(start % 32 == 0 for start in axis.starts)


def test_two_tiles_are_blended_by_a_straight_ramp():
    left, right = cut(12, 8, 4, 1).weights(1)
    assert left.tolist() == [1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]
    assert right.tolist() == left[::-1].tolist()


def test_an_image_of_one_tile_is_whole():
    for size in (64, 512):
        tiling = tile_image(size, 512, tile=512, overlap=64, multiple=64)
        assert tiling.count == 1
        assert tiling.height.tile == size
    assert tile_image(4096, 4096, tile=0, overlap=0, multiple=64).count == 1


def test_one_long_edge_is_cut_alone():
    tiling = tile_image(256, 1152, tile=512, overlap=64, multiple=64)
    assert tiling.height.starts == (0,)
    assert tiling.width.starts == (0, 320, 640)
    assert tiling.count == 3


def tiling():
    return tile_image(320, 200, tile=128, overlap=32, multiple=8)


def arrays(batch=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.standard_normal((batch, 3, 320, 200)).astype(np.float32),
        "latent": rng.standard_normal((batch, 4, 40, 25)).astype(np.float32),
        "snr_db": np.arange(batch, dtype=np.float32),
    }


def pointwise(tile):
    """Sees each element alone, so tiles cannot show; the latent also goes through the scale."""
    grown = tile["latent"][:, :3].repeat(8, axis=2).repeat(8, axis=3)
    snr = tile["snr_db"].reshape(-1, 1, 1, 1)
    return {"image": tile["image"] * 2 + grown + snr, "latent": tile["latent"] - snr}


def test_a_pointwise_stage_gives_what_it_gives_whole():
    whole = pointwise(arrays())
    shapes = []

    def run(tile):
        shapes.append((tile["image"].shape, tile["latent"].shape, tile["snr_db"].shape))
        return pointwise(tile)

    tiled = run_tiled(run, (IMAGE, LATENT, SNR), (IMAGE, LATENT), arrays(), tiling())
    for name in ("image", "latent"):
        assert tiled[name].dtype == np.float32
        assert np.abs(tiled[name] - whole[name]).max() < 2e-6
    assert set(shapes) == {((2, 3, 128, 128), (2, 4, 16, 16), (2,))}
    assert len(shapes) == tiling().count == 6


def test_tiles_are_blended_not_butted():
    """A stage that answers with the tile's own number leaves no step larger than a ramp's."""
    number = iter(range(100))

    def run(tile):
        return {"image": np.full_like(tile["image"], next(number))}

    image = run_tiled(run, (IMAGE,), (IMAGE,), arrays(), tiling())["image"]
    assert np.abs(np.diff(image, axis=3)).max() < 1.1 / 32 * 2
    assert np.abs(np.diff(image, axis=2)).max() < 2.1 / 32 * 2


def test_half_precision_ports_are_blended_in_single():
    half = Port("latent", "float16", LATENT.shape)
    values = {"latent": arrays()["latent"].astype(np.float16)}
    tiled = run_tiled(lambda tile: dict(tile), (half,), (half,), values, tiling())["latent"]
    assert tiled.dtype == np.float16
    assert np.abs(tiled.astype(np.float32) - values["latent"]).max() < 2e-3
