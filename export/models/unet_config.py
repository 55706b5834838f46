"""Unet configuration: the values of an official YAML that decide shapes, checked and typed.

The YAML of published checkpoints carries many switches of the original training code. Those that
change nothing at inference are ignored; those that would change the network must have the one
value that `jscc.export.models.unet` implements.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from jscc.export.models.params import counts, flag, integer, integers, number, positive

# Change neither shapes nor values at inference.
IGNORED: Final = frozenset(
    {
        "dropout",
        "image_size",
        "legacy",
        "use_bf16",
        "use_checkpoint",
        "use_fp16",
        "use_new_attention_order",
    }
)
# Must be absent or equal to this.
FIXED: Final[Mapping[str, Any]] = {
    "adm_in_channels": None,
    "conv_resample": True,
    "dims": 2,
    "disable_middle_self_attn": False,
    "disable_self_attentions": None,
    "n_embed": None,
    "num_attention_blocks": None,
    "num_classes": None,
    "num_heads_upsample": -1,
    "resblock_updown": False,
    "use_scale_shift_norm": False,
    "use_spatial_transformer": True,
}
TRUNK: Final = frozenset(
    {
        "attention_resolutions",
        "channel_mult",
        "context_dim",
        "in_channels",
        "model_channels",
        "num_head_channels",
        "num_heads",
        "num_res_blocks",
        "transformer_depth",
        "use_linear_in_transformer",
    }
)
GROUPS: Final = 32


@dataclass(frozen=True)
class UnetConfig:
    """Shape of the diffusion network.

    Attributes:
        in_channels: Features of the latent.
        out_channels: Features of the prediction.
        model_channels: Width at full resolution.
        levels: (width, number of residual blocks going down) per resolution, highest first.
        attention: For each level whether its blocks attend.
        head_channels: Width of one attention head; None if `head_count` says how many there are.
        head_count: Number of attention heads; None if `head_channels` says how wide they are.
        context_dim: Width of a context token.
        transformer_depth: Transformer blocks per attention.
        linear_in_transformer: Whether the projections around them are linear layers on tokens
            (Stable Diffusion 2) or 1x1 convolutions (Stable Diffusion 1).
    """

    in_channels: int
    out_channels: int
    model_channels: int
    levels: tuple[tuple[int, int], ...]
    attention: tuple[bool, ...]
    head_channels: int | None
    head_count: int | None
    context_dim: int
    transformer_depth: int
    linear_in_transformer: bool

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str) -> Self:
        """Read `params`; `where` names their place in the YAML for messages.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        _check_keys(params, where, TRUNK | {"out_channels"})
        return cls._read(params, where, integer(params, "out_channels", where))

    @classmethod
    def _read(cls, params: Mapping[str, Any], where: str, out_channels: int) -> Self:
        width = integer(params, "model_channels", where)
        mults = integers(params, "channel_mult", where, default=(1, 2, 4, 8))
        blocks = counts(params, where, len(mults))
        resolutions = integers(params, "attention_resolutions", where)
        head_channels, head_count = _heads(params, where)
        config = cls(
            in_channels=integer(params, "in_channels", where),
            out_channels=out_channels,
            model_channels=width,
            levels=tuple((width * mult, n) for mult, n in zip(mults, blocks, strict=True)),
            attention=tuple(2**level in resolutions for level in range(len(mults))),
            head_channels=head_channels,
            head_count=head_count,
            context_dim=integer(params, "context_dim", where),
            transformer_depth=integer(params, "transformer_depth", where, default=1),
            linear_in_transformer=flag(params, "use_linear_in_transformer", where),
        )
        config._check_widths(where)
        return config

    @property
    def embedding(self) -> int:
        """Width of the embedding of timestep and SNR."""
        return 4 * self.model_channels

    def attends(self, level: int) -> bool:
        """Whether the blocks of `level` attend."""
        return self.attention[level]

    def heads(self, width: int) -> int:
        """The number of attention heads at a place of this `width`."""
        if self.head_count is not None:
            return self.head_count
        return width // self.head_channels if self.head_channels else 1

    def _check_widths(self, where: str) -> None:
        for width in (self.model_channels, *(width for width, _ in self.levels)):
            if width % GROUPS:
                raise ValueError(
                    f"{where}: got a level of width {width}, expected a multiple of {GROUPS}. "
                    "Check model_channels and channel_mult."
                )
            unit = self.head_count or self.head_channels or 1
            if width % unit:
                raise ValueError(
                    f"{where}: got a level of width {width}, expected a multiple of {unit}. "
                    "Check num_heads and num_head_channels."
                )


@dataclass(frozen=True)
class ControlConfig:
    """Shape of the control network.

    Attributes:
        trunk: The half of the diffusion network that it repeats; its `out_channels` is unused.
        hint_channels: Features of the hint, which joins the latent at the first convolution.
        use_snr: Whether the SNR is embedded next to the timestep.
        snr_scale: The SNR in dB is multiplied by this …
        min_snr: … and then this is subtracted.
    """

    trunk: UnetConfig
    hint_channels: int
    use_snr: bool
    snr_scale: float
    min_snr: float

    @classmethod
    def from_params(cls, params: Mapping[str, Any], where: str) -> Self:
        """Read `params`; `where` names their place in the YAML for messages.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        own = {"hint_channels", "use_snr", "snr_scale", "min_snr"}
        # DiffBIR's file repeats out_channels here, where it means nothing.
        _check_keys(params, where, TRUNK | own | {"out_channels"})
        use_snr = flag(params, "use_snr", where)
        return cls(
            trunk=UnetConfig._read(params, where, integer(params, "in_channels", where)),
            hint_channels=integer(params, "hint_channels", where),
            use_snr=use_snr,
            snr_scale=number(params, "snr_scale", where) if use_snr else 0.0,
            min_snr=number(params, "min_snr", where) if use_snr else 0.0,
        )


def _check_keys(params: Mapping[str, Any], where: str, known: frozenset[str]) -> None:
    for key, value in params.items():
        if key in FIXED:
            if value != FIXED[key]:
                raise ValueError(
                    f"{where}.{key}: got {value!r}, expected {FIXED[key]!r}. "
                    "This variant of the network is not implemented."
                )
        elif key not in known and key not in IGNORED:
            raise ValueError(
                f"{where}: got unknown key {key!r}, expected some of {sorted(known)}. "
                "Remove it if it does not change the network."
            )


def _heads(params: Mapping[str, Any], where: str) -> tuple[int | None, int | None]:
    """(width of a head, number of heads); one of them is None."""
    channels, count = params.get("num_head_channels", -1), params.get("num_heads", -1)
    if (channels == -1) == (count == -1):
        raise ValueError(
            f"{where}: got num_head_channels {channels!r} and num_heads {count!r}, expected "
            "exactly one of them other than -1. Take the config.yaml of the checkpoint."
        )
    if channels != -1:
        return positive(channels, f"{where}.num_head_channels"), None
    return None, positive(count, f"{where}.num_heads")
