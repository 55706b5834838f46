"""Codecs: the encode and decode stages of a JSCC codec and the contract of its symbols.

Each published codec is found by the ``target`` class that its official configuration names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jscc.export.checkpoint import section
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.fold import fold_batch_norms
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.source import configured
from jscc.export.system import StageSpec
from jscc.runtime.errors import CheckpointError
from jscc.runtime.manifest import Signal
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from collections.abc import Callable

    from jscc.export.source import Config, WeightSource

# Symbol power that no codec of unit mean power can meet: noise only, or an overdriven receiver.
POWER_RANGE = (0.02, 400.0)
# Made anew from the image size, or never used.
SWIN_REBUILT = ("*attn_mask", "*relative_position_index", "absolute_pos_embed")


@dataclass(frozen=True)
class Codec:
    """A codec's two stages.

    Attributes:
        encode: Stage of the transmitter.
        decode: First stage of the receiver.
        signal: Contract of the symbols between them.
        multiple: Image height and width must be multiples of this, in pixels.
    """

    encode: StageSpec
    decode: StageSpec
    signal: Signal
    multiple: int


def features(snr_db: Tensor, gain: Tensor | None) -> Tensor:
    """CSI features [batch, 1 or 3]: the SNR in dB, then the gain where the codec wants it."""
    snr = snr_db.unsqueeze(1)
    return snr if gain is None else torch.cat((snr, gain), dim=1)


class Encode(nn.Module):
    """Image in [0,1] and CSI to planes, before power normalisation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, snr_db: Tensor, gain: Tensor | None = None) -> Tensor:
        planes: Tensor = self.network(image, features(snr_db, gain))
        return planes


class Decode(nn.Module):
    """Equalised planes and CSI to the initial reconstruction in [0,1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, received: Tensor, snr_db: Tensor, gain: Tensor | None = None) -> Tensor:
        reconstruction: Tensor = self.network(received, features(snr_db, gain))
        return reconstruction


def codec_of(source: WeightSource, config: Config, prefix: str) -> Codec:
    """The codec that `config` (``target`` and ``params``) describes, weights below `prefix`.

    Raises:
        CheckpointError: ``E_CKPT_CONFIG``, the target names no codec known here.
    """
    target = str(config.get("target", ""))
    if target not in _CODECS:
        raise CheckpointError(
            "E_CKPT_CONFIG",
            f"config: got codec target {target!r}, expected one of {', '.join(_CODECS)}. "
            "Give the configuration that the checkpoint was trained with.",
        )
    return _CODECS[target](source, section(config, "params"), prefix)


def _cnn(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The convolutional codec of DiffJSCC; under Rayleigh fading both ends are told h."""

    def half(name: str) -> Callable[[], nn.Module]:
        return lambda: fold_batch_norms(
            source.load(lambda: getattr(DeepJscc.from_config(params), name), f"{prefix}{name}.")
        )

    stride = 2 ** int(params["n_downsample"])
    fading = params.get("channel", "AWGN") == "Rayleigh"
    signal = _signal(params, int(params["C_channel"]), stride, fading=fading, equalised=True)
    return _codec(half("E"), half("G"), signal, multiple=stride)


def _swin(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The Swin codec; its fading channel is neither equalised nor told to the networks."""

    def half(name: str) -> Callable[[], nn.Module]:
        return lambda: source.load(
            lambda: getattr(DeepJsccSwin.from_config(params), name),
            f"{prefix}{name}.",
            ignore=SWIN_REBUILT,
        )

    stages = len(params["embed_dims"])
    stride = int(params["patch_size"]) * 2 ** (stages - 1)
    signal = _signal(params, int(params["bottleneck_dim"]), stride, fading=False, equalised=False)
    with torch.device("meta"):
        multiple = configured(lambda: DeepJsccSwin.from_config(params)).multiple
    return _codec(half("encoder"), half("decoder"), signal, multiple=multiple)


_CODECS = {
    "model.deepjscc_cnn.DeepJSCC": _cnn,
    "model.deepjscc_swin.DeepJSCC_SWIN": _swin,
}


def _signal(params: Config, planes: int, stride: int, *, fading: bool, equalised: bool) -> Signal:
    low, high = float(params["SNR_low"]), float(params["SNR_high"])
    return Signal(
        planes=planes,
        stride=stride,
        packing="halves",
        power="unit_per_image",
        snr_db_range=(low, high),
        snr_db_default=(low + high) / 2,
        csi_inputs=("snr_db", "gain") if fading else ("snr_db",),
        transmitter_csi=True,
        equalisation="zero_forcing" if equalised else "none",
        power_range=POWER_RANGE,
    )


def _codec(
    encoder: Callable[[], nn.Module],
    decoder: Callable[[], nn.Module],
    signal: Signal,
    multiple: int,
) -> Codec:
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
    )


def codec_config(config: Config) -> tuple[Config, str]:
    """The codec's own configuration inside `config`, and the prefix of its weights there."""
    params: Any = config.get("params", {})
    if isinstance(params, dict) and "preprocess_config" in params:
        return section(config, "params.preprocess_config"), "preprocess_model."
    return config, ""
