"""DeepJsccSwin: the image codec with shifted-window attention that the DiffJSCC training code has.

Ke Yang, Sixian Wang, Jincheng Dai, Kailin Tan, Kai Niu, Ping Zhang, "WITT: A Wireless Image
Transmission Transformer for Semantic Communications", arXiv 2211.00937 (the codec).
Ze Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv
2103.14030 (its blocks).
Written from a description of the checkpoints; only the names of the parameters are theirs.

    image [B,3,H,W] in [0,1] --encoder--> planes [B,C,h,w] --radio--> planes --decoder--> image
                                ^ csi [B,1]                              ^ csi [B,1]

h = H / (2 * 2**(stages - 1)), 16 for four stages, and w likewise. The first half of the planes is
the real part of the symbols, the second half the imaginary part; symbols are sent row by row.
`csi` is the SNR in dB whatever the channel: codecs of this kind trained on Rayleigh fading are not
told the gain, and what they receive is not equalised.

H and W must be multiples of `multiple`. Inside, features come last: [B, h, w, features].
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from torch import Tensor, nn

from jscc.export.models.swin_blocks import (
    PATCH,
    DecoderStage,
    EncoderStage,
    PatchEmbed,
    StageConfig,
    factors,
    modulation,
    multiple_of,
)
from jscc.export.models.swinjscc import columns_of, is_diffjscc

CHANNELS: Final = ("AWGN", "Rayleigh")
REQUIRED: Final = frozenset(
    {
        "bottleneck_dim",
        "depths",
        "depths_d",
        "embed_dims",
        "embed_dims_d",
        "in_chans",
        "mlp_ratio",
        "num_heads",
        "num_heads_d",
    }
)
# What the windows follow from, and the windows themselves as `config_of` reads them off the shapes.
TRAINED: Final = frozenset({"img_size_h", "img_size_w", "window_size"})
FOUND: Final = frozenset({"windows", "windows_d", "shifted", "shifted_d"})


class Encoder(nn.Module):
    """Turns a picture into the feature planes that become symbols."""

    def __init__(self, stages: Sequence[StageConfig], features: int, image_features: int) -> None:
        super().__init__()
        last = stages[-1].width
        befores = [None, *(stage.width for stage in stages[:-1])]
        self.patch_embed = PatchEmbed(image_features, stages[0].width)
        self.layers = nn.ModuleList(map(EncoderStage, stages, befores))
        self.norm = nn.LayerNorm(last)
        self.bm_list, self.sm_list = modulation(last)
        self.head_list = nn.Linear(last, features)

    def forward(self, image: Tensor, csi: Tensor) -> Tensor:
        """Return planes [B,C,h,w] of `image` [B,3,H,W] in [0,1], not yet normalised in power."""
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        x = x * factors(x, csi, self.bm_list, self.sm_list)
        return self.head_list(x).permute(0, 3, 1, 2).float()  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Turns received planes back into a picture."""

    def __init__(self, stages: Sequence[StageConfig], features: int, image_features: int) -> None:
        super().__init__()
        first = stages[0].width
        afters = [*(stage.width for stage in stages[1:]), image_features]
        self.layers = nn.ModuleList(map(DecoderStage, stages, afters))
        self.head_list = nn.Linear(features, first)
        self.bm_list, self.sm_list = modulation(first)

    def forward(self, planes: Tensor, csi: Tensor) -> Tensor:
        """Return the picture [B,3,H,W] in [0,1] that `planes` [B,C,h,w] describe."""
        x = self.head_list(planes.permute(0, 2, 3, 1))
        x = x * factors(x, csi, self.bm_list, self.sm_list)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = x.permute(0, 3, 1, 2).float()
        return logits.sigmoid()


class DeepJsccSwin(nn.Module):
    """The codec: `encoder` at the transmitter, `decoder` at the receiver.

    Checkpoints also hold `attn_mask` and `relative_position_index` of every block, which are
    rebuilt here because they belong to one image size, and `decoder.absolute_pos_embed`, which
    nothing reads.
    """

    def __init__(
        self,
        down: Sequence[StageConfig],
        up: Sequence[StageConfig],
        features: int,
        image_features: int = 3,
    ) -> None:
        super().__init__()
        self.down = tuple(down)
        self.up = tuple(up)
        self.encoder = Encoder(down, features, image_features)
        self.decoder = Decoder(up, features, image_features)

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the codec of `params`, an official configuration or what `config_of` finds.

        Raises:
            ValueError: A value asks for something this codec has not.
        """
        _check_params(params)
        return cls(
            _stages(params, ""),
            _stages(params, "_d"),
            int(params["bottleneck_dim"]),
            int(params["in_chans"]),
        )

    @property
    def multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        return multiple_of(self.down, self.up)


def _stages(params: Mapping[str, Any], suffix: str) -> list[StageConfig]:
    """Read the stages of the encoder (no suffix) or of the decoder (`_d`)."""
    columns = [list(params[f"{name}{suffix}"]) for name in ("embed_dims", "depths", "num_heads")]
    if len({len(column) for column in columns}) != 1:
        raise ValueError(
            f"deepjscc_swin: got {[len(column) for column in columns]} entries in embed_dims, "
            f"depths and num_heads{suffix}, expected equal numbers. Correct the file."
        )
    rows = zip(*columns, _windows(params, suffix, len(columns[0])), strict=True)
    ratio = float(params["mlp_ratio"])
    return [
        StageConfig(width, depth, heads, window, window // 2 if shifted else 0, ratio)
        for width, depth, heads, (window, shifted) in rows
    ]


def _windows(params: Mapping[str, Any], suffix: str, levels: int) -> list[tuple[int, bool]]:
    """Side of the windows of each stage, and whether every second block shifts them.

    The network was built for one image size: where a window did not fit into it, windows are
    smaller and unshifted at every size.
    """
    if set(params) >= FOUND:
        return list(zip(params[f"windows{suffix}"], params[f"shifted{suffix}"], strict=True))
    most = int(params["window_size"])
    side = min(int(params["img_size_h"]), int(params["img_size_w"])) // PATCH
    sides = [side // 2**level for level in range(levels)]
    windows = [(min(side, most), side > most) for side in sides]
    return windows[::-1] if suffix else windows


def _check_params(params: Mapping[str, Any]) -> None:
    required = REQUIRED if set(params) >= FOUND else REQUIRED | TRAINED
    if missing := sorted(required - set(params)):
        raise ValueError(
            f"deepjscc_swin: got no {missing}, expected a value for each. "
            "Take the config.yaml that came with the checkpoint."
        )
    fixed = {"patch_size": PATCH, "qkv_bias": True, "qk_scale": None}
    for key, value in fixed.items():
        if params.get(key, value) != value:
            raise ValueError(
                f"deepjscc_swin.{key}: got {params[key]!r}, expected {value!r}. "
                "This variant of the codec is not implemented."
            )
    if params.get("channel", "AWGN") not in CHANNELS:
        raise ValueError(
            f"deepjscc_swin.channel: got {params['channel']!r}, expected one of {CHANNELS}. "
            "Correct the file."
        )
    if len(params["embed_dims"]) != len(params["embed_dims_d"]):
        raise ValueError(
            f"deepjscc_swin.embed_dims_d: got {len(params['embed_dims_d'])} stages, expected "
            f"{len(params['embed_dims'])} as in embed_dims. Correct the file."
        )


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The parameters of the network that has these names and shapes; None if it is no such.

    The table of positions that nothing reads tells this codec from SwinJSCC's. The range of SNRs
    that it was trained on is not in the weights.
    """
    head, columns = shapes.get("encoder.head_list.weight"), columns_of(shapes)
    if not is_diffjscc(shapes) or head is None or columns is None:
        return None
    return {"patch_size": PATCH, "bottleneck_dim": head[0], **columns}
