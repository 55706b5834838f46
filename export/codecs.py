"""Codecs: which published codec a configuration describes, and its stages.

Each is found by the ``target`` class that its official configuration names, or by the family that
its weights were recognised as.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jscc.export.checkpoint import section
from jscc.export.codec_stages import (
    POWER_RANGE,
    Codec,
    Decode,
    Encode,
    codec_from,
    coded,
    decibels,
    halves_of,
    signal_of,
    snr_db_range_of,
)
from jscc.export.codec_swinjscc import swinjscc
from jscc.export.models import bourtsoulatze, generative, pdjscc
from jscc.export.models.af import Af
from jscc.export.models.bourtsoulatze import Bourtsoulatze
from jscc.export.models.deepjscc_cnn import DeepJscc
from jscc.export.models.fold import fold_batch_norms
from jscc.export.models.generative import Generative
from jscc.export.models.pdjscc import Pdjscc
from jscc.export.models.swin import DeepJsccSwin
from jscc.export.source import configured
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jscc.export.source import Config, WeightSource

__all__ = ["POWER_RANGE", "SWIN_REBUILT", "Codec", "Decode", "Encode", "codec_of"]

# Made anew from the image size, or never used.
SWIN_REBUILT = ("*attn_mask", "*relative_position_index", "absolute_pos_embed")


def codec_of(source: WeightSource, config: Config, prefix: str) -> Codec:
    """The codec that `config` describes, weights below `prefix`.

    Args:
        source: Where the weights are.
        config: An official configuration (``target`` and ``params``) of a codec, or of a whole
            DiffJSCC network whose codec is meant; or ``family`` and its parameters.
        prefix: Of the weights of the checkpoint that `config` belongs to.

    Raises:
        CheckpointError: ``E_CKPT_CONFIG``, no codec known here is described.
    """
    family = str(config.get("family", ""))
    if family in _FAMILIES:
        return _FAMILIES[family](source, config, prefix)
    inner, below = codec_config(config)
    target = str(inner.get("target", ""))
    if family or target not in _TARGETS:
        raise CheckpointError(
            "E_CKPT_CONFIG",
            f"config: got codec {family or target!r}, expected a family of "
            f"{', '.join(_FAMILIES)} or a target of {', '.join(_TARGETS)}. "
            "Give the configuration that the checkpoint was trained with.",
        )
    return _TARGETS[target](source, section(inner, "params"), prefix + below)


def codec_config(config: Config) -> tuple[Config, str]:
    """The codec's own configuration inside an official `config`, and its weights' prefix there."""
    params: Any = config.get("params", {})
    if isinstance(params, dict) and "preprocess_config" in params:
        return section(config, "params.preprocess_config"), "preprocess_model."
    return config, ""


def _recognised(config: Config) -> Config:
    """The parameters of a recognised codec of DiffJSCC; an official configuration's go first."""
    inner, _ = codec_config(config)
    official = inner.get("params", {})
    return {**config, **official} if isinstance(official, dict) else config


def _recognised_cnn(source: WeightSource, config: Config, prefix: str) -> Codec:
    """Trained over 0 to 14 dB, as all published ones, where the configuration says nothing else."""
    return _cnn(source, {"SNR_low": 0.0, "SNR_high": 14.0, **_recognised(config)}, prefix)


def _recognised_swin(source: WeightSource, config: Config, prefix: str) -> Codec:
    """No weights were published, so nothing is known of the SNRs unless they are given.

    Raises:
        CheckpointError: ``E_CONFIG``, they are not.
    """
    params = _recognised(config)
    if not {"SNR_low", "SNR_high"} <= set(params):
        raise CheckpointError(
            "E_CONFIG",
            "config: got no SNR_low and SNR_high, expected the SNRs in dB that this codec was "
            "trained on: its weights do not tell. Write both into a file and add --config FILE.",
        )
    return _swin(source, params, prefix)


def _cnn(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The convolutional codec of DiffJSCC; under Rayleigh fading both ends are told h."""

    def half(name: str) -> Callable[[], nn.Module]:
        return lambda: fold_batch_norms(
            source.load(lambda: getattr(DeepJscc.from_config(params), name), f"{prefix}{name}.")
        )

    stride = 2 ** int(params["n_downsample"])
    fading = params.get("channel", "AWGN") == "Rayleigh"
    signal = signal_of(
        planes=int(params["C_channel"]),
        stride=stride,
        snr_db_range=snr_db_range_of(params),
        csi_inputs=("snr_db", "gain") if fading else ("snr_db",),
        equalised=True,
    )
    return codec_from(
        half("E"), half("G"), signal, multiple=stride, variant="DeepJSCC", rounding="truncate"
    )


def _swin(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The Swin codec; its fading channel is neither equalised nor told to the networks."""

    def half(name: str) -> Callable[[], nn.Module]:
        return lambda: source.load(
            lambda: getattr(DeepJsccSwin.from_config(params), name),
            f"{prefix}{name}.",
            ignore=SWIN_REBUILT,
        )

    levels = len(params["embed_dims"])
    signal = signal_of(
        planes=int(params["bottleneck_dim"]),
        stride=int(params["patch_size"]) * 2 ** (levels - 1),
        snr_db_range=snr_db_range_of(params),
        equalised=False,
    )
    with torch.device("meta"):
        multiple = configured(lambda: DeepJsccSwin.from_config(params)).multiple
    codec = codec_from(
        half("encoder"),
        half("decoder"),
        signal,
        multiple=multiple,
        variant="DeepJSCC_SWIN",
        rounding="truncate",
    )
    return replace(
        codec,
        encode=replace(codec.encode, counted=True),
        decode=replace(codec.decode, counted=True),
    )


def _af(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The AF network; trained over SNRs of 0 to 20 dB where the configuration says nothing else.

    ``output`` says what follows the decoder: a ``sigmoid`` (deepjscc_stream's trainers, and ours)
    or ``clip`` (those that store ``g_a``, ``g_s``).
    """
    with torch.device("meta"):
        shape = configured(lambda: Af.from_config(params))
    unnamed = "encoder.layers.0.conv1.weight" in shape.state_dict()
    output = str(params.get("output", "clip" if unnamed else "sigmoid"))
    if output not in ("sigmoid", "clip"):
        raise CheckpointError(
            "E_CONFIG", f"config, output: got {output!r}, expected sigmoid or clip. Correct it."
        )
    return coded(
        halves_of(source, lambda: Af.from_config(params), prefix),
        planes=int(params["c_out"]),
        stride=shape.stride,
        snr_db_range=snr_db_range_of(params, (0.0, 20.0)),
        variant=f"AF {params.get('variant', 'regular')}, N={params['c_feat']}, M={params['c_out']}",
        told_snr=shape.told_snr,
        pairs=True,
        output=output,
    )


def _pdjscc(source: WeightSource, params: Config, prefix: str) -> Codec:
    """ADJSCC and pDJSCC; trained over 0 to 14 dB where the configuration says nothing else."""
    with torch.device("meta"):
        configured(lambda: Pdjscc.from_config(params))
    codec = coded(
        halves_of(source, lambda: Pdjscc.from_config(params), prefix),
        planes=int(params["c_out"]),
        stride=pdjscc.STRIDE,
        snr_db_range=snr_db_range_of(params, (0.0, 14.0)),
        variant=f"ADJSCC/pDJSCC, width {params['c_feat']}, C={params['c_out']}",
    )
    return replace(codec, padding="reflect")


def _bourtsoulatze(source: WeightSource, params: Config, prefix: str) -> Codec:
    """The first DeepJSCC; its SNR range is that of the public checkpoints, in true SNR.

    ``snr_label_db`` in the configuration is the label of one checkpoint.
    """
    with torch.device("meta"):
        configured(lambda: Bourtsoulatze.from_config(params))
    label = decibels(params, "snr_label_db") if "snr_label_db" in params else None
    low, high = (1.0, 19.0) if label is None else (label, label)
    offset = bourtsoulatze.TRUE_SNR_DB
    return coded(
        halves_of(source, lambda: Bourtsoulatze.from_config(params), prefix),
        planes=int(params["c_out"]),
        stride=bourtsoulatze.STRIDE,
        snr_db_range=(low + offset, high + offset),
        variant=f"Bourtsoulatze, 2c={params['c_out']}; true SNR is 3.01 dB above the "
        "checkpoint's label",
        told_snr=False,
        scale=bourtsoulatze.SCALE,
    )


def _generative(source: WeightSource, params: Config, prefix: str) -> Codec:
    """Our GenerativeJSCC; trained over 0 to 14 dB where the configuration says nothing else."""
    with torch.device("meta"):
        configured(lambda: Generative.from_config(params))
    return coded(
        halves_of(source, lambda: Generative.from_config(params), prefix),
        planes=int(params["planes"]),
        stride=generative.STRIDE,
        snr_db_range=snr_db_range_of(params, (0.0, 14.0)),
        variant=f"GenerativeJSCC (ours), {params['planes']} planes",
    )


_TARGETS = {
    "model.deepjscc_cnn.DeepJSCC": _cnn,
    "model.deepjscc_swin.DeepJSCC_SWIN": _swin,
}
_FAMILIES = {
    "af": _af,
    "pdjscc": _pdjscc,
    "bourtsoulatze": _bourtsoulatze,
    "generative": _generative,
    "swinjscc": swinjscc,
    "diffjscc_cnn": _recognised_cnn,
    "diffjscc_swin": _recognised_swin,
}
