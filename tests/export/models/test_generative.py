"""GenerativeJSCC takes any multiple of 16, stays small, and hears position, SNR and symbols."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jscc.export.models.generative import REFERENCE, Generative, config_of

TINY = {
    "planes": 6,
    "encoder_widths": [4, 6, 6, 8],
    "decoder_widths": [8, 6, 6, 4, 4],
    "style_dim": 8,
}


@pytest.fixture(scope="module")
def tiny() -> Generative:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        return Generative.from_config(TINY).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (64, 32)])
def test_any_multiple_of_16(tiny: Generative, height: int, width: int) -> None:
    snr_db = torch.tensor([1.0, 13.0])
    planes = tiny.encoder(torch.rand(2, 3, height, width), snr_db)
    assert planes.shape == (2, 6, height // 16, width // 16)
    assert tiny.decoder(planes, snr_db).shape == (2, 3, height, width)


def test_the_reference_is_small_and_has_cbr_1_96() -> None:
    """16 reals, 8 symbols, for 16x16x3 samples; at most 8 GMAC for 256x256 pixels."""
    assert REFERENCE["planes"] / 2 / (16 * 16 * 3) == 1 / 96
    network = Generative.from_config(REFERENCE)
    assert sum(parameter.numel() for parameter in network.parameters()) < 1_700_000
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        planes = network.encoder(torch.rand(1, 3, 256, 256), torch.tensor([7.0]))
        network.decoder(planes, torch.tensor([7.0]))
    assert counted.get_total_flops() / 2 < 8e9


def test_the_configuration_is_read_back(tiny: Generative) -> None:
    shapes = {key: tuple(value.shape) for key, value in tiny.state_dict().items()}
    assert config_of(shapes) == {"family": "generative", **TINY}
    assert config_of({"encoder.halve.0.weight": (4, 3, 5, 5)}) is None


def test_symbols_say_what_is_where(tiny: Generative) -> None:
    """A symbol changes the picture most where it was sent from."""
    planes = torch.randn(1, 6, 12, 12, generator=torch.Generator().manual_seed(0))
    changed = planes.clone()
    changed[..., 0, 0] += 1
    snr_db = torch.tensor([7.0])
    change = (tiny.decoder(changed, snr_db) - tiny.decoder(planes, snr_db)).abs().mean(dim=(0, 1))
    assert float(change[:16, :16].mean()) > 2 * float(change[96:, 96:].mean()) > 0


def test_the_snr_reaches_every_layer(tiny: Generative) -> None:
    planes = torch.randn(1, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    low, high = (tiny.decoder(planes, torch.tensor([snr])) for snr in (0.0, 14.0))
    assert float((low - high).abs().max()) > 1e-3
    torch.testing.assert_close(tiny.decoder(planes, torch.tensor([[14.0]])), high)


@pytest.mark.parametrize("key", ["encoder_widths", "decoder_widths"])
def test_another_number_of_widths_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="expected 4 and 5"):
        Generative.from_config({**TINY, key: [4, 4]})
