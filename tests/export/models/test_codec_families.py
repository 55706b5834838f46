"""The codecs of other authors reproduce their implementations' numbers, as torch modules.

Through bundle and runtime they do so in tests/parity/test_codec_families_golden.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from jscc.export.checkpoint import load_into, read_checkpoint
from jscc.export.load import rename
from jscc.export.models.af import VARIANTS, Af
from jscc.export.models.bourtsoulatze import SCALE, Bourtsoulatze
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.recognise import recognise
from jscc.export.tensor_file import form

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden"
TOLERANCE = 1e-5  # absolute; the three READMEs agree


def loaded(name, build):
    """The golden checkpoint `name`, its configuration told by its weights."""
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"no golden vectors at {path.parent}")
    tensors = read_checkpoint(path).tensors
    found = recognise({key: form(tensors, key)[0] for key in tensors})
    with torch.device("meta"):
        network = build(found.config)
    weights = rename(tensors, found.names)
    return load_into(network, weights, where=name).eval().requires_grad_(False)


def close(got, expected):
    return float((got - torch.from_numpy(expected)).abs().max()) <= TOLERANCE


def told(image, snr_db):
    return torch.full((len(image), 1), float(snr_db))


@pytest.mark.parametrize("snr_db", [-5, 7.5, 20])
@pytest.mark.parametrize("variant", ["regular", "reduced"])
def test_af_network(variant, snr_db):
    network = loaded(f"deepjscc-af-tiny/{variant}.pth", Af.from_config)
    golden = np.load(GOLDEN / "deepjscc-af-tiny" / f"{variant}_io.npz")
    image = torch.from_numpy(golden["image"])
    code = network.encoder(image, told(image, snr_db))
    assert close(code, golden[f"snr{snr_db:g}.code"])
    symbols = golden[f"snr{snr_db:g}.received_symbols"]
    received = torch.from_numpy(np.stack((symbols.real, symbols.imag), -1).reshape(code.shape))
    decoded = network.decoder(received, told(image, snr_db))
    assert close(decoded, golden[f"snr{snr_db:g}.decoder_out"])


@pytest.mark.parametrize("snr_db", [1, 13])
def test_perceptual_codec(snr_db):
    network = loaded("pdjscc-tiny/model_fp16.pth.tar", Pdjscc.from_config)
    golden = np.load(GOLDEN / "pdjscc-tiny" / "io.npz")
    image = torch.from_numpy(golden["image_padded"])
    assert close(network.encoder(image, told(image, snr_db)), golden[f"snr{snr_db}.feature"])
    received = torch.from_numpy(golden[f"snr{snr_db}.rx"])
    decoded = network.decoder(received, told(image, snr_db))
    assert close(decoded, golden[f"snr{snr_db}.decoder_out_padded"])


@pytest.mark.parametrize("size", ["32x32", "40x56"])
def test_small_codec(size):
    network = loaded("bourtsoulatze-small/random_c2_fp16.pkl", Bourtsoulatze.from_config)
    golden = np.load(GOLDEN / "bourtsoulatze-small" / "c2_io.npz")
    code = network.encoder(torch.from_numpy(golden[f"{size}.image"]), None)
    power = code.square().sum(dim=(1, 2, 3), keepdim=True) / (code[0].numel() / 2)
    assert close(SCALE * code / power.sqrt(), golden[f"{size}.z"])
    received = torch.from_numpy(golden[f"{size}.snr7.rx"])
    assert close(network.decoder(received, None), golden[f"{size}.snr7.recon"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_back_the_size(variant, rng):
    network = Af(8, 6, variant).eval().requires_grad_(False)
    image = torch.rand(2, 3, 2 * network.stride, 3 * network.stride, generator=rng)
    code = network.encoder(image, told(image, 5))
    assert code.shape == (2, 6, 2, 3)
    assert network.decoder(code, told(image, 5)).shape == image.shape
    other = network.encoder(image, told(image, 9))
    assert network.told_snr == (not torch.equal(code, other))


@pytest.mark.parametrize(
    ("build", "params", "got"),
    [
        (Af, {"c_feat": 8, "c_out": 4, "variant": "tiny"}, r"af\.variant: got 'tiny'"),
        (Af, {"c_feat": 8}, r"af\.c_out: got nothing"),
        (Pdjscc, {"c_feat": 8, "c_out": 4}, r"pdjscc\.c_feat: got 8, expected 15 or more"),
        (Pdjscc, {"c_feat": "x", "c_out": 4}, r"pdjscc\.c_feat: got 'x'"),
        (Bourtsoulatze, {"c_out": 0}, r"bourtsoulatze\.c_out: got 0"),
    ],
)
def test_configurations_that_are_refused(build, params, got):
    with pytest.raises(ValueError, match=got):
        build.from_config(params)
