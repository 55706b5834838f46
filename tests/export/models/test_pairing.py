"""Which two reals make a symbol: consecutive ones, on the way to the air and back."""

import pytest
import torch

from jscc.export.models.pairing import Listener, Sender, halves_to_pairs, pairs_to_halves


def numbered(batch, planes, rows, columns):
    """A code whose flattened values are 0, 1, 2, … in every image."""
    size = planes * rows * columns
    return (
        torch.arange(size, dtype=torch.float32)
        .reshape(1, planes, rows, columns)
        .repeat(batch, 1, 1, 1)
    )


@pytest.mark.parametrize("planes", [1, 2, 3, 4, 7])
def test_symbols_are_made_of_consecutive_values(planes):
    code = numbered(2, planes, 4, 6)
    real, imaginary = pairs_to_halves(code).chunk(2, dim=1)
    assert torch.equal(imaginary, real + 1)
    assert (real % 2 == 0).all()
    assert torch.equal(halves_to_pairs(pairs_to_halves(code), planes), code)


def test_even_codes_keep_the_order_of_the_symbols():
    real, imaginary = pairs_to_halves(numbered(1, 4, 3, 5)).chunk(2, dim=1)
    symbols = torch.stack((real.flatten(), imaginary.flatten()), dim=1).flatten()
    assert symbols.tolist() == list(range(60))


def test_odd_codes_take_positions_of_twice_the_stride():
    assert pairs_to_halves(numbered(1, 3, 4, 6)).shape == (1, 12, 2, 3)


class _Same(torch.nn.Module):
    def forward(self, x, csi):
        return x


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("pairs", [False, True])
def test_listener_undoes_what_the_sender_does(planes, pairs):
    code = torch.rand(2, planes, 4, 6)
    sender = Sender(_Same(), planes, pairs=pairs)
    listener = Listener(_Same(), planes, pairs=pairs, scale=0.5, output="clip")
    assert torch.equal(listener(sender(code, None), None), code * 0.5)
    assert sender(code, None).shape[1] % 2 == 0


def test_output_becomes_an_image():
    planes = torch.tensor([-1.0, 0.25, 3.0, 0.0]).reshape(1, 2, 1, 2)
    clip = Listener(_Same(), 2, pairs=False, scale=1.0, output="clip")
    sigmoid = Listener(_Same(), 2, pairs=False, scale=2.0, output="sigmoid")
    assert clip(planes, None).flatten().tolist() == [0.0, 0.25, 1.0, 0.0]
    assert torch.equal(sigmoid(planes, None), torch.sigmoid(2 * planes))
