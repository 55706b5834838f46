"""The convolutional codec against golden vectors, and what its configuration may say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from jscc.export.checkpoint import read_checkpoint
from jscc.export.models.deepjscc_cnn import DeepJscc

GOLDEN = Path(__file__).resolve().parents[3].parent / "shared" / "golden" / "diffjscc"
TOLERANCE = 2e-5
PARAMS = {
    "input_nc": 3,
    "output_nc": 3,
    "ngf": 4,
    "max_ngf_E": 12,
    "max_ngf_D": 8,
    "n_downsample": 4,
    "n_blocks_E": 1,
    "n_blocks_D": 1,
    "C_channel": 4,
    "norm": "batch",
    "channel": "AWGN",
}
AWGN = [f"out.snr{snr}.jscc." for snr in "AB"]
RAYLEIGH = [f"out.snr{snr}.h{gain}." for snr in "AB" for gain in "01"]
CASES = [
    ("tiny-cnn", ("params", "preprocess_config", "params"), "preprocess_model.", AWGN),
    ("tiny-cnn-rayleigh", ("params",), "", RAYLEIGH),
]


def golden(name):
    folder = GOLDEN / name
    if not folder.exists():
        pytest.skip(f"golden vectors are not here: {folder}")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    tensors = read_checkpoint(folder / "model.ckpt").tensors
    return config, tensors, load_file(folder / "io.safetensors")


def assert_close(got, want):
    assert float((got - want).abs().max()) <= TOLERANCE * float(want.abs().max())


@pytest.mark.parametrize(("name", "place", "prefix", "cases"), CASES, ids=[c[0] for c in CASES])
@torch.no_grad()
def test_agrees_with_upstream(name, place, prefix, cases):
    params, tensors, io = golden(name)
    for key in place:
        params = params[key]
    codec = DeepJscc.from_config(params).eval()
    codec.load_state_dict(
        {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    )
    image = (io["in.x_u8"].float() / 255).permute(2, 0, 1)[None]
    for case in cases:
        csi = io[f"{case}csi"]
        assert_close(codec.E(image, csi), io[f"{case}z"])
        assert_close(codec.G(io[f"{case}eq"], csi), io[f"{case}x_init"])


@pytest.mark.parametrize(("channel", "features"), [("AWGN", 1), ("Rayleigh", 3)])
@torch.no_grad()
def test_halves_the_picture_four_times(channel, features):
    codec = DeepJscc.from_config(PARAMS | {"channel": channel}).eval()
    csi = torch.zeros(2, features)
    planes = codec.E(torch.rand(2, 3, 48, 80), csi)
    assert planes.shape == (2, 4, 3, 5)
    assert codec.G(planes, csi).shape == (2, 3, 48, 80)


@torch.no_grad()
def test_the_csi_matters():
    torch.manual_seed(0)
    codec = DeepJscc.from_config(PARAMS).eval()
    image = torch.rand(1, 3, 32, 32)
    planes = [codec.E(image, torch.full((1, 1), snr_db)) for snr_db in (0.0, 14.0)]
    assert not torch.equal(*planes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel": "Rician"}, r"got channel 'Rician', expected one of \['AWGN', 'Rayleigh'\]"),
        ({"norm": "instance"}, r"got norm 'instance', expected 'batch'"),
    ],
)
def test_refuses_what_it_does_not_implement(change, message):
    with pytest.raises(ValueError, match=message):
        DeepJscc.from_config(PARAMS | change)


def test_golden_index_lists_every_case():
    for name, _, _, cases in CASES:
        path = GOLDEN / name / "io_index.json"
        if not path.exists():
            pytest.skip(f"golden vectors are not here: {path}")
        index = json.loads(path.read_text())
        names = set(index.get("tensors", index))
        assert {f"{case}{tensor}" for case in cases for tensor in ("csi", "z", "eq")} <= names
