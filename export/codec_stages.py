"""Codec stages: the encode and decode stages of any codec and the contract of its symbols."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from jscc.export.models.gdn import fold_gdns
from jscc.export.models.pairing import Listener, Sender
from jscc.export.system import StageSpec
from jscc.runtime.errors import CheckpointError
from jscc.runtime.manifest import Signal
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from jscc.export.source import Config, WeightSource

Padding = Literal["zeros", "reflect"]
Rounding = Literal["truncate", "nearest"]

# Symbol power that no codec of unit mean power can meet: noise only, or an overdriven receiver.
POWER_RANGE = (0.02, 400.0)


@dataclass(frozen=True)
class Codec:
    """A codec's two stages.

    Attributes:
        encode: Stage of the transmitter.
        decode: First stage of the receiver.
        signal: Contract of the symbols between them.
        multiple: Image height and width must be multiples of this, in pixels.
        variant: Which codec this is, for humans.
        padding: How images reach a multiple of `multiple`.
        rounding: How [0, 1] becomes 0..255; DiffJSCC's own scripts truncate.
    """

    encode: StageSpec
    decode: StageSpec
    signal: Signal
    multiple: int
    variant: str
    padding: Padding = "zeros"
    rounding: Rounding = "nearest"


def features(x: Tensor, snr_db: Tensor | None, gain: Tensor | None) -> Tensor:
    """CSI features [batch, 0, 1 or 3]: the SNR in dB, then the gain, where the codec wants them."""
    if snr_db is None:
        return x.new_zeros(x.shape[0], 0)
    snr = snr_db.unsqueeze(1)
    return snr if gain is None else torch.cat((snr, gain), dim=1)


class Encode(nn.Module):
    """Image in [0,1] and CSI to planes, before power normalisation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, snr_db: Tensor | None = None, gain: Tensor | None = None
    ) -> Tensor:
        planes: Tensor = self.network(image, features(image, snr_db, gain))
        return planes


class Decode(nn.Module):
    """Equalised planes and CSI to the initial reconstruction in [0,1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, received: Tensor, snr_db: Tensor | None = None, gain: Tensor | None = None
    ) -> Tensor:
        reconstruction: Tensor = self.network(received, features(received, snr_db, gain))
        return reconstruction


def snr_db_range_of(
    params: Config, default: tuple[float, float] | None = None
) -> tuple[float, float]:
    """``SNR_low`` and ``SNR_high`` of a configuration, in dB, or `default`.

    Raises:
        CheckpointError: ``E_CONFIG``, one is missing or no number, or they are the wrong way round.
    """
    if default is not None:
        params = {"SNR_low": default[0], "SNR_high": default[1], **params}
    low, high = decibels(params, "SNR_low"), decibels(params, "SNR_high")
    if low > high:
        raise CheckpointError(
            "E_CONFIG",
            f"config, SNR_low: got {low:g}, expected at most SNR_high, {high:g}. Correct them.",
        )
    return low, high


def decibels(params: Config, key: str) -> float:
    """The finite number at `key`.

    Raises:
        CheckpointError: ``E_CONFIG``, there is none.
    """
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(
            "E_CONFIG",
            f"config, {key}: got {value!r}, expected a number of decibels. "
            "Give the configuration that the checkpoint was trained with.",
        )
    return float(value)


def halves_of(
    source: WeightSource, network: Callable[[], nn.Module], prefix: str
) -> Callable[[str], nn.Module]:
    """What builds ``encoder`` or ``decoder`` of `network`, weights loaded and GDN folded."""

    def half(name: str) -> nn.Module:
        def build() -> nn.Module:
            part: nn.Module = getattr(network(), name)
            return part

        return fold_gdns(source.load(build, f"{prefix}{name}."))

    return half


def coded(
    half: Callable[[str], nn.Module],
    *,
    planes: int,
    stride: int,
    snr_db_range: tuple[float, float],
    variant: str,
    told_snr: bool = True,
    pairs: bool = False,
    scale: float = 1.0,
    output: str = "clip",
) -> Codec:
    """A codec of two halves that are told the SNR [batch, 1], or nothing.

    A code with an odd number of planes is sent from every 2x2 positions together.

    Args:
        half: Builds ``encoder`` or ``decoder``, see `halves_of`.
        planes: Real values per position of the code.
        stride: Image pixels per position.
        snr_db_range: What the networks were trained on, in true SNR.
        variant: Which codec this is, for humans.
        told_snr: Whether the networks look at the SNR.
        pairs: Whether consecutive values of the code are one symbol, see `pairing`.
        scale: What the decoder's input is multiplied by, see `Listener`.
        output: ``sigmoid`` or ``clip``, see `Listener`.
    """
    fold = 1 + planes % 2
    signal = signal_of(
        planes=planes * fold**2,
        stride=stride * fold,
        snr_db_range=snr_db_range,
        csi_inputs=("snr_db",) if told_snr else (),
    )
    return codec_from(
        lambda: Sender(half("encoder"), planes, pairs=pairs),
        lambda: Listener(half("decoder"), planes, pairs=pairs, scale=scale, output=output),
        signal,
        multiple=signal.stride,
        variant=variant,
    )


def signal_of(
    *,
    planes: int,
    stride: int,
    snr_db_range: tuple[float, float],
    csi_inputs: tuple[Literal["snr_db", "gain"], ...] = ("snr_db",),
    equalised: bool = True,
) -> Signal:
    """The contract of symbols of unit mean power per image, packed as halves.

    Args:
        planes: Real planes, an even number.
        stride: Image pixels per position.
        snr_db_range: What the networks were trained on.
        csi_inputs: What both halves are told of the channel.
        equalised: Whether the receiver divides by the gain.
    """
    return Signal(
        planes=planes,
        stride=stride,
        packing="halves",
        power="unit_per_image",
        snr_db_range=snr_db_range,
        snr_db_default=sum(snr_db_range) / 2,
        csi_inputs=csi_inputs,
        transmitter_csi=bool(csi_inputs),
        equalisation="zero_forcing" if equalised else "none",
        power_range=POWER_RANGE,
    )


def codec_from(
    encoder: Callable[[], nn.Module],
    decoder: Callable[[], nn.Module],
    signal: Signal,
    *,
    multiple: int,
    variant: str,
    rounding: Rounding = "nearest",
) -> Codec:
    """A codec whose halves take the CSI features of `features`.

    Args:
        encoder: Builds the module (image, features) → planes.
        decoder: Builds the module (planes, features) → reconstruction.
        signal: Contract of the symbols.
        multiple: Image height and width must be multiples of this, in pixels.
        variant: Which codec this is, for humans.
        rounding: As in `Codec`.
    """
    image = ("batch", 3, "height", "width")
    grid = ("batch", signal.planes, f"height/{signal.stride}", f"width/{signal.stride}")
    known = (Port("snr_db", "float32", ("batch",)), Port("gain", "float32", ("batch", 2)))
    csi = known[: len(signal.csi_inputs)]
    return Codec(
        encode=StageSpec(
            name="encode",
            build=lambda: Encode(encoder()),
            inputs=(Port("image", "float32", image), *csi),
            outputs=(Port("planes", "float32", grid),),
        ),
        decode=StageSpec(
            name="decode",
            build=lambda: Decode(decoder()),
            inputs=(Port("received", "float32", grid), *csi),
            outputs=(Port("reconstruction", "float32", image),),
        ),
        signal=signal,
        multiple=multiple,
        variant=variant,
        rounding=rounding,
    )
