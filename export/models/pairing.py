"""Pairing: which two real values of a code are one complex symbol, in the order of the air.

On the air the first half of the planes are the real parts and the second half the imaginary ones.
Codecs that pair consecutive values instead, and codes with an odd number of planes, are re-ordered
inside the encode and decode graphs.

    pairs      code [B,M,h,w] as one row v: v[2k] + j v[2k+1]       ⇄  halves
    odd M      every 2x2 positions become one, with 4M planes       ⇄  halves
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def pairs_to_halves(code: Tensor) -> Tensor:
    """Planes whose halves are the even and the odd places of the flattened `code`.

    Returns:
        [B,M,h,w] for an even M, [B,4M,h/2,w/2] for an odd one, where h and w must be even.
    """
    batch, planes = code.shape[:2]
    if planes % 2:
        # Of the four values of 2x2 positions, the two of one row follow each other in `code`.
        folded = functional.pixel_unshuffle(code, 2)
        rows, columns = folded.shape[2:]
        pairs = folded.reshape(batch, 2 * planes, 2, rows, columns)
        return pairs.transpose(1, 2).reshape(folded.shape)
    return code.reshape(batch, -1, 2).transpose(1, 2).reshape(code.shape)


def halves_to_pairs(planes: Tensor, width: int) -> Tensor:
    """The code of `width` planes that `pairs_to_halves` made `planes` of."""
    batch = planes.shape[0]
    if width % 2:
        halves = planes.reshape(batch, 2, 2 * width, *planes.shape[2:])
        return functional.pixel_shuffle(halves.transpose(1, 2).reshape(planes.shape), 2)
    return planes.reshape(batch, 2, -1).transpose(1, 2).reshape(planes.shape)


class Sender(nn.Module):
    """An encoder whose code leaves as halves.

    Args:
        network: Image and CSI features to code.
        width: Planes of the code.
        pairs: Consecutive values of the code are one symbol; else its halves are, already.
    """

    def __init__(self, network: nn.Module, width: int, *, pairs: bool) -> None:
        super().__init__()
        self.network = network
        self.pairs = pairs or width % 2 == 1

    def forward(self, image: Tensor, csi: Tensor) -> Tensor:
        code: Tensor = self.network(image, csi)
        return pairs_to_halves(code) if self.pairs else code


class Listener(nn.Module):
    """A decoder that is given halves, at the scale that it was trained with.

    Args:
        network: Code and CSI features to image.
        width: Planes of the code.
        pairs: As in `Sender`.
        scale: What the symbols of unit mean power are multiplied by.
        output: ``sigmoid`` or ``clip``: how the network's output becomes an image in [0,1].
    """

    def __init__(
        self, network: nn.Module, width: int, *, pairs: bool, scale: float, output: str
    ) -> None:
        super().__init__()
        self.network = network
        self.width = width
        self.pairs = pairs or width % 2 == 1
        self.scale = scale
        self.output = output

    def forward(self, received: Tensor, csi: Tensor) -> Tensor:
        code = halves_to_pairs(received, self.width) if self.pairs else received
        image: Tensor = self.network(code * self.scale if self.scale != 1 else code, csi)
        return image.sigmoid() if self.output == "sigmoid" else image.clip(0, 1)
