"""Null space against its definition and against the exported guide; its CUDA source bit for bit."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from host_kernels import guarded
from jscc.export.models.nullspace import NullSpace, Operator
from jscc.kernels.null_space.reference import Shares, ddnm_shares, null_space
from jscc.kernels.philox_normal.reference import philox_normal
from table_rows import ROW, Row

ADDRESS = (9, 4, 1)
FIELDS = ("x", "estimate", "eps", "target", "clean_prev", "clean_prev2", "grad")


SHARES = Shares(gap=0.8, fresh=0.3, old=0.2, inside=0.5, project_noise=True)


def fields_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name in FIELDS}


def noise_of(shape):
    return philox_normal(*ADDRESS, int(np.prod(shape))).reshape(shape)


def by_reference(fields, row, shares, scale):
    f = fields
    noise = noise_of(f["estimate"].shape)
    return null_space(
        f["x"], f["estimate"], f["eps"], f["target"], f["clean_prev"], f["clean_prev2"],
        noise, f["grad"], row, shares, scale,
    )  # fmt: skip


def mean_of_blocks(image, scale):
    """A+A by the plain formula, in float64."""
    out = np.empty(image.shape)
    for y in range(0, image.shape[1], scale):
        for x in range(0, image.shape[2], scale):
            block = np.s_[:, y : y + scale, x : x + scale]
            out[block] = image[block].astype(np.float64).mean(axis=(1, 2), keepdims=True)
    return out


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_with_a_whole_share_the_means_become_the_target(scale):
    fields = fields_of((3, 12, 24))
    fields["target"] = mean_of_blocks(fields["target"], scale).astype(np.float32)
    after, clean = by_reference(fields, Row(b=1.0), Shares(1.0, 0, 0), scale)
    assert np.array_equal(after, clean)
    assert np.abs(mean_of_blocks(clean, scale) - fields["target"]).max() < 1e-6
    kept = fields["estimate"] - mean_of_blocks(fields["estimate"], scale)
    assert np.abs(clean - mean_of_blocks(clean, scale) - kept).max() < 1e-6


@pytest.mark.parametrize("sigma_y", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("left", [0.1, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("scale", [2, 4])
def test_one_ddnm_step_is_what_the_exported_guide_makes(sigma_y, eta, left, scale):
    """The graph's own module in float64, and the row of the ddnm sampler."""
    fields = fields_of((3, 8, 16))
    noise = noise_of((3, 8, 16))
    guide = NullSpace(Operator.parse(f"avgpool:{scale}"), "none")
    tensors = {
        name: torch.from_numpy(array[None].astype(np.float64))
        for name, array in {**fields, "noise": noise}.items()
    }
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (left, eta, sigma_y)]
    clean, direction = guide(
        tensors["estimate"], tensors["eps"], tensors["target"], None,
        numbers[0], tensors["noise"], numbers[1], numbers[2],
    )  # fmt: skip
    row = Row(b=left**0.5, d=1.0)
    got = by_reference(fields, row, ddnm_shares(left, eta, sigma_y, scale), scale)
    wanted = (row.b * clean + direction)[0].numpy()
    assert np.abs(got[1] - clean[0].numpy()).max() < 3e-6
    assert np.abs(got[0] - wanted).max() < 3e-6


def test_without_a_direction_no_share_of_noise_is_asked_for():
    fields = {**fields_of((3, 4, 4)), "eps": None}
    by_reference(fields, Row(b=1.0), SHARES, 2)
    with pytest.raises(ValueError, match="null_space: got no eps, expected .* factor is 0.2"):
        by_reference(fields, ROW, SHARES, 2)


@pytest.mark.parametrize(("shape", "scale"), [((3, 8, 9), 2), ((3, 6, 8), 4), ((3, 4, 4), 0)])
def test_blocks_fill_the_image(shape, scale):
    message = f"got {shape[1]}x{shape[2]} pixels .height x width., expected .* scale {scale}"
    with pytest.raises(ValueError, match=message):
        by_reference(fields_of(shape), ROW, SHARES, scale)


def compiled(host, fields, row, shares, scale, threads=1):
    shape = fields["estimate"].shape
    results = [np.full(shape, np.nan, np.float32) for _ in range(2)]
    return run(host, fields, row, shares, scale, results, threads)


def run(host, fields, row, shares, scale, results, threads=1):
    names = ("a", "b", "c", "e", "s", "g", "d", "gap_share", "fresh_share", "old_share",
             "inside_share", "project_noise", "seed", "frame", "step",
             "scale", "planes", "height", "width")  # fmt: skip
    shape = results[0].shape
    numbers = (*astuple(row), *astuple(shares), *ADDRESS, scale, *shape)
    values = dict(zip(("after", "corrected"), results, strict=True))
    values |= dict(zip(names, numbers, strict=True))
    host.start("null_space", {**fields, **values}, threads=threads)
    return results


def check(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


factors = st.sampled_from([0.0, 1.0]) | st.floats(-2, 2)


@settings(max_examples=200, deadline=None)
@given(
    row=st.builds(Row, *[factors] * 7),
    shares=st.builds(Shares, *[factors] * 4, project_noise=st.booleans()),
    scale=st.integers(1, 6),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
)
def test_the_source_gives_the_same_bits(host, row, shares, scale, blocks):
    fields = fields_of((blocks[0], scale * blocks[1], scale * blocks[2]))
    got = compiled(host, fields, row, shares, scale)
    check(got, by_reference(fields, row, shares, scale))


@pytest.mark.parametrize("threads", [1, 5, 64])
@pytest.mark.parametrize("scale", [4, 8, 32])
def test_any_grid_gives_the_same_bits(host, scale, threads):
    fields = fields_of((3, 32, 64))
    got = compiled(host, fields, ROW, SHARES, scale, threads)
    check(got, by_reference(fields, ROW, SHARES, scale))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_a_ddnm_step_gives_the_same_bits(host, eta, sigma_y):
    fields = fields_of((3, 16, 16))
    shares = ddnm_shares(0.7, eta, sigma_y, 4)
    got = compiled(host, fields, Row(b=0.7**0.5, d=1.0), shares, 4)
    check(got, by_reference(fields, Row(b=0.7**0.5, d=1.0), shares, 4))


@pytest.mark.parametrize(
    ("name", "letter"), [("x", "a"), ("clean_prev", "c"), ("clean_prev2", "e"), ("grad", "g")]
)
def test_a_term_without_a_factor_is_not_read(host, name, letter):
    fields, row = fields_of((3, 4, 4)), replace(ROW, **{letter: 0.0})
    wanted = by_reference(fields, row, SHARES, 2)
    check(compiled(host, {**fields, name: None}, row, SHARES, 2), wanted)


@pytest.mark.parametrize("shares", [replace(SHARES, old=0.0), SHARES])
def test_the_noise_that_nobody_weighs_is_not_read(host, shares):
    fields = fields_of((3, 4, 4))
    row = ROW if shares.old == 0.0 else replace(ROW, d=0.0)
    wanted = by_reference(fields, row, shares, 2)
    check(compiled(host, {**fields, "eps": None}, row, shares, 2), wanted)


def test_nothing_is_read_or_written_behind_the_end(host):
    fields = fields_of((3, 9, 15))
    there = {name: guarded(field) for name, field in fields.items()}
    results = [guarded(np.zeros((3, 9, 15), np.float32)) for _ in range(2)]
    got = run(host, there, ROW, SHARES, 3, results)
    check(got, by_reference(fields, ROW, SHARES, 3))
