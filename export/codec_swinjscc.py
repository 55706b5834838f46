"""The SwinJSCC codec: its two stages, what they exchange beside the symbols, and its rates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from jscc.export.codec_stages import Codec, signal_of, snr_db_range_of
from jscc.export.models.swinjscc import (
    Decoder,
    Encoder,
    Layout,
    Receive,
    ReceiveChosen,
    Send,
    SendChosen,
)
from jscc.export.source import configured
from jscc.export.system import StageSpec
from jscc.runtime.errors import CheckpointError
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from jscc.export.source import Config, WeightSource
    from jscc.runtime.manifest import Signal

# What the authors train on: SNRs of 1 to 13 dB, and these numbers of features per position.
SNR_DB_RANGE: Final = (1.0, 13.0)
RATES: Final = (32, 64, 96, 128, 192)
# Examples for proving the graph: a scale that is one, and features that are there or are not.
EXAMPLES: Final = {"power": (0.25, 4.0), "feature_mask": (0.0, 1.0)}


def swinjscc(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The codec of `params`, weights below `prefix`.

    Beside what `Layout.from_config` reads, ``SNR_low``, ``SNR_high`` and ``rates`` (features per
    position that sa_ra may send) may say what the network was trained on.

    Raises:
        CheckpointError: ``E_CONFIG``, a parameter is missing or asks for what is not implemented.
    """
    layout = configured(lambda: Layout.from_config(params))
    chosen = layout.variant == "sa_ra"
    encoder, decoder = (SendChosen, ReceiveChosen) if chosen else (Send, Receive)

    def send() -> nn.Module:
        below = f"{prefix}encoder."
        return encoder(source.load(lambda: Encoder(layout), below, layout.unused), layout)

    def receive() -> nn.Module:
        below = f"{prefix}decoder."
        return decoder(source.load(lambda: Decoder(layout), below, layout.unused), layout)

    return _codec(layout, _signal(params, layout), send, receive)


def _signal(params: Config, layout: Layout) -> Signal:
    rates = _rates(params, layout)
    signal = signal_of(
        planes=rates[-1] if rates else layout.planes_per_feature * layout.features,
        stride=layout.stride,
        snr_db_range=snr_db_range_of(params, SNR_DB_RANGE),
        csi_inputs=() if layout.variant == "base" else ("snr_db",),
    )
    return replace(signal, rates=rates)


def _rates(params: Config, layout: Layout) -> tuple[int, ...]:
    """Planes that sa_ra may send; nothing for the others."""
    if layout.variant != "sa_ra":
        return ()
    usual = [rate for rate in RATES if rate <= layout.features]
    features = params.get("rates", usual or list(range(1, layout.features + 1)))
    whole = isinstance(features, list | tuple) and all(type(rate) is int for rate in features)
    if not whole or not features or not 0 < min(features) <= max(features) <= layout.features:
        raise CheckpointError(
            "E_CONFIG",
            f"config, rates: got {features!r}, expected numbers from 1 to {layout.features}, "
            "features of the last layer. Correct them.",
        )
    return tuple(layout.planes_per_feature * rate for rate in sorted(set(features)))


def _codec(
    layout: Layout,
    signal: Signal,
    send: Callable[[], nn.Module],
    receive: Callable[[], nn.Module],
) -> Codec:
    chosen = bool(signal.rates)
    image = ("batch", layout.image_features, "height", "width")
    planes = "planes" if chosen else signal.planes
    grid = ("batch", planes, f"height/{signal.stride}", f"width/{signal.stride}")
    snr = (Port("snr_db", "float32", ("batch",)),) if signal.csi_inputs else ()
    rate = (Port("rate", "float32", ("batch",)),) if chosen else ()
    mask = (Port("feature_mask", "float32", ("batch", layout.features)),) if chosen else ()
    sides = (Port("power", "float32", ("batch",)), *mask)
    return Codec(
        encode=StageSpec(
            name="encode",
            build=send,
            inputs=(Port("image", "float32", image), *snr, *rate),
            outputs=(Port("planes", "float32", grid), *sides),
            rates=signal.rates,
            counted=True,
        ),
        decode=StageSpec(
            name="decode",
            build=receive,
            inputs=(Port("received", "float32", grid), *sides, *snr),
            outputs=(Port("reconstruction", "float32", image),),
            ranges=EXAMPLES,
            rates=signal.rates,
            counted=True,
        ),
        signal=signal,
        multiple=layout.multiple,
        variant=_variant(layout),
        padding="reflect",
    )


def _variant(layout: Layout) -> str:
    names = {"base": "SwinJSCC", "sa": "SwinJSCC w/ SA", "sa_ra": "SwinJSCC w/ SA&RA"}
    planes = "; a rate of 4R planes sends R of them" if layout.variant == "sa_ra" else ""
    return f"{names[layout.variant]}, {layout.features} features{planes}"
