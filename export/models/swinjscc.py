"""SwinJSCC: the codec of shifted windows in its three published variants.

Ke Yang, Sixian Wang, Jincheng Dai, Xiaoqi Qin, Kai Niu, Ping Zhang, "SwinJSCC: Taming Swin
Transformer for Deep Joint Source-Channel Coding", arXiv 2308.09361.
Written from a description of the checkpoints; only the names of the parameters are theirs.

    base    no modulation: one network for one SNR and one rate
    sa      features modulated by the SNR
    sa_ra   by the SNR and by the rate; the network picks the `rate` best features of its last
            layer, which alone are sent, and there is no head

What is sent are the features of all positions as one row, position after position; the first half
of that row are the real parts, the second half the imaginary ones. `Send` returns this row as
planes, which changes no order. The decoder undoes the transmitter's power normalisation, so the
mean power of the symbols before it goes along as side information, and with sa_ra the mask of the
features that were picked.

Checkpoints hold `attn_mask` and `relative_position_index` of every block, made anew here for every
size; whether a stage shifts its windows shows in the former. A base checkpoint also holds the
modulation that it never uses, so that base and sa have the same names: which one it is has to be
told.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
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

VARIANTS: Final = ("base", "sa", "sa_ra")
# The authors' names.
MODELS: Final = {
    "SwinJSCC_w/o_SAandRA": "base",
    "SwinJSCC_w/_SA": "sa",
    "SwinJSCC_w/_SAandRA": "sa_ra",
}
# Quarters of the positions make planes of twice the stride: with these, any number of features
# splits into two halves.
QUARTERS: Final = 4


@dataclass(frozen=True)
class Layout:
    """Shape of one network.

    Attributes:
        variant: One of `VARIANTS`.
        down: Stages of the encoder, in order.
        up: Stages of the decoder, in order.
        features: What a position can send at most: the width of the head, or with sa_ra that of
            the last layer.
        image_features: 3 for colour.
    """

    variant: str
    down: tuple[StageConfig, ...]
    up: tuple[StageConfig, ...]
    features: int
    image_features: int = 3

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """The layout of `params`: what `config_of` finds, or the authors' constructor arguments.

        Raises:
            ValueError: A value is missing, or asks for something this codec has not.
        """
        variant = _variant(params)
        down = _stages(params, "")
        up = _stages(params, "_d")
        if down[-1].width != up[0].width:
            raise ValueError(
                f"swinjscc.embed_dims_d: got {up[0].width} at first, expected {down[-1].width} as "
                "at the end of embed_dims. Correct the file."
            )
        features = down[-1].width if variant == "sa_ra" else _integer(params, "C")
        return cls(variant, down, up, features, int(params.get("in_chans", 3)))

    @property
    def quartered(self) -> bool:
        """Whether planes are quarters of the positions, because features alone have no halves."""
        return self.variant == "sa_ra" or self.features % 2 == 1

    @property
    def planes_per_feature(self) -> int:
        """How many planes one feature of all positions makes."""
        return QUARTERS if self.quartered else 1

    @property
    def feature_stride(self) -> int:
        """Image pixels per position of a feature."""
        return int(PATCH * 2 ** (len(self.down) - 1))

    @property
    def stride(self) -> int:
        """Image pixels per position of a plane."""
        return self.feature_stride * (2 if self.quartered else 1)

    @property
    def multiple(self) -> int:
        """What height and width of an image must be multiples of."""
        return math.lcm(self.stride, multiple_of(self.down, self.up))

    @property
    def unused(self) -> tuple[str, ...]:
        """Patterns of names below ``encoder.`` and ``decoder.`` that nothing reads."""
        rebuilt = ("*attn_mask", "*relative_position_index")
        return (*rebuilt, "bm_list.*", "sm_list.*") if self.variant == "base" else rebuilt


class Encoder(nn.Module):
    """Turns a picture into the features of each position."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        last = layout.down[-1].width
        befores = [None, *(stage.width for stage in layout.down[:-1])]
        self.variant = layout.variant
        self.patch_embed = PatchEmbed(layout.image_features, layout.down[0].width)
        self.layers = nn.ModuleList(map(EncoderStage, layout.down, befores))
        self.norm = nn.LayerNorm(last)
        if layout.variant != "base":
            self.bm_list, self.sm_list = modulation(last)
        if layout.variant == "sa_ra":
            self.bm_list1, self.sm_list1 = modulation(last)
        else:
            self.head_list = nn.Linear(last, layout.features)

    def forward(self, image: Tensor, snr_db: Tensor | None) -> Tensor:
        """Return features [B,h,w,C] of `image` [B,3,H,W] in [0,1], told `snr_db` [B] unless base.

        With sa_ra these are those of the last layer, for `choose`.
        """
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        if self.variant == "sa_ra":
            return x * factors(x, _column(snr_db), self.bm_list1, self.sm_list1)  # type: ignore[no-any-return]
        if self.variant == "sa":
            x = x * factors(x, _column(snr_db), self.bm_list, self.sm_list)
        return self.head_list(x)  # type: ignore[no-any-return]

    def choose(self, x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Modulate features [B,h,w,C] by `rate` [B], features per position to be sent.

        Returns:
            The features, and the score [B,C] of each: the `rate` highest are to be sent.
        """
        factor = factors(x, _column(rate), self.bm_list, self.sm_list)
        return x * factor, factor.float().sum(dim=(1, 2))


class Decoder(nn.Module):
    """Turns received features back into a picture."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        first = layout.up[0].width
        afters = [*(stage.width for stage in layout.up[1:]), layout.image_features]
        self.layers = nn.ModuleList(map(DecoderStage, layout.up, afters))
        self.head_list = None if layout.variant == "sa_ra" else nn.Linear(layout.features, first)
        self.modulated = layout.variant != "base"
        if self.modulated:
            self.bm_list, self.sm_list = modulation(first)

    def forward(self, features: Tensor, snr_db: Tensor | None) -> Tensor:
        """Return the picture [B,3,H,W], nominally in [0,1], that `features` [B,h,w,C] describe."""
        x = features if self.head_list is None else self.head_list(features)
        if self.modulated:
            x = x.to(next(self.sm_list.parameters()).dtype)
            x = x * factors(x, _column(snr_db), self.bm_list, self.sm_list)
        for layer in self.layers:
            x = layer(x)
        return x.permute(0, 3, 1, 2).float()


def _column(values: Tensor | None) -> Tensor:
    assert values is not None, "this variant is told the SNR"
    return values.unsqueeze(1)


class Send(nn.Module):
    """The transmitter of base and sa."""

    def __init__(self, network: Encoder, layout: Layout) -> None:
        super().__init__()
        self.network = network
        self.quarters = layout.planes_per_feature
        self.planes = layout.planes_per_feature * layout.features
        self.stride = layout.stride

    def forward(self, image: Tensor, snr_db: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return planes [B,planes,h,w] of `image` [B,3,H,W] and their mean symbol power [B]."""
        row = self.network(image, snr_db).float().flatten(1)
        rows = image.shape[2] // self.stride
        planes = torch.unflatten(row, 1, (self.planes, rows, -1))
        return planes, 2 * row.square().mean(dim=1)


class SendChosen(nn.Module):
    """The transmitter of sa_ra; float32 in any network.

    In half precision the scores of neighbouring features would change places.
    """

    keep_float32: Final = True

    def __init__(self, network: Encoder, layout: Layout) -> None:
        super().__init__()
        self.network = network
        self.stride = layout.stride

    def forward(self, image: Tensor, snr_db: Tensor, rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Send the best features of `image` [B,3,H,W].

        Args:
            image: In [0,1].
            snr_db: [B].
            rate: [B], planes to be made: 4 times the features per position. One for all images.

        Returns:
            Planes [B,rate,h,w], their mean symbol power [B], and 1 for every feature sent, 0 for
            the others, [B,C].
        """
        features, scores = self.network.choose(self.network(image, snr_db), rate / QUARTERS)
        count: Any = (rate[0] / QUARTERS).round().to(torch.int64).item()  # a symbol while traced
        chosen = torch.topk(scores, count, dim=1).indices.sort(dim=1).values
        mask = torch.zeros_like(scores).scatter(1, chosen, 1.0)
        tokens = features.flatten(1, 2)
        index = chosen[:, None, :].expand(-1, tokens.shape[1], -1)
        sent = torch.gather(tokens, 2, index).flatten(1)
        rows, columns = (side // self.stride for side in image.shape[2:])
        planes = sent.reshape(image.shape[0], -1, rows, columns)
        return planes, 2 * sent.square().mean(dim=1), mask


class Receive(nn.Module):
    """The receiver of base and sa."""

    def __init__(self, network: Decoder, layout: Layout) -> None:
        super().__init__()
        self.network = network
        self.features = layout.features
        self.grow = layout.stride // layout.feature_stride

    def forward(self, received: Tensor, power: Tensor, snr_db: Tensor | None = None) -> Tensor:
        """Return the picture that `received` [B,planes,h,w] of unit symbol power describe.

        `power` [B] is what the transmitter divided by.
        """
        row = (received * _amplitude(power)).flatten(1)
        features = torch.unflatten(row, 1, (self.grow * received.shape[2], -1, self.features))
        return self.network(features, snr_db)  # type: ignore[no-any-return]


class ReceiveChosen(nn.Module):
    """The receiver of sa_ra."""

    def __init__(self, network: Decoder, layout: Layout) -> None:
        super().__init__()
        self.network = network
        self.grow = layout.stride // layout.feature_stride

    def forward(self, received: Tensor, power: Tensor, mask: Tensor, snr_db: Tensor) -> Tensor:
        """Return the picture that `received` [B,rate,h,w] of unit symbol power describe.

        `power` [B] is what the transmitter divided by; `mask` [B,C] says which features they are.
        A mask of more features than were received gives those behind the last one's values.
        """
        count = received.shape[1] // QUARTERS
        tokens = torch.unflatten((received * _amplitude(power)).flatten(1), 1, (-1, count))
        taken = (mask > 0.5).to(tokens.dtype)
        place = (taken.cumsum(dim=1) - 1).clamp(min=0, max=count - 1).to(torch.int64)
        index = place[:, None, :].expand(-1, tokens.shape[1], -1)
        features = torch.gather(tokens, 2, index) * taken[:, None, :]
        grid = torch.unflatten(features, 1, (self.grow * received.shape[2], -1))
        return self.network(grid, snr_db)  # type: ignore[no-any-return]


def _amplitude(power: Tensor) -> Tensor:
    """What symbols of unit power are multiplied by; nothing that is sent makes it undefined."""
    return power.clamp(min=0.0).sqrt()[:, None, None, None]


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The parameters of the network that has these names and shapes, or None if it is no SwinJSCC.

    Base and sa have the same names: ``variant`` is then missing, and has to be told.
    """
    columns = None if is_diffjscc(shapes) else columns_of(shapes)
    if columns is None:
        return None
    params: dict[str, Any] = {}
    head = shapes.get("encoder.head_list.weight")
    if head is not None:
        params["C"] = head[0]
    elif any(name.startswith("encoder.bm_list1.") for name in shapes):
        params["variant"] = "sa_ra"
    return {**params, **columns}


def columns_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """What names and shapes say of the stages of both halves, one list per parameter.

    None where this is no codec of shifted windows. The decoder's lists end in ``_d``.
    """
    patches = shapes.get("encoder.patch_embed.proj.weight")
    down, up = (_found_stages(shapes, half) for half in ("encoder", "decoder"))
    if patches is None or not (down and up):
        return None
    params: dict[str, Any] = {"in_chans": patches[1]}
    masked = any(name.endswith("attn_mask") for name in shapes)
    for stages, suffix in ((down, ""), (up, "_d")):
        for key in ("embed_dims", "depths", "num_heads", "windows", "shifted"):
            params[f"{key}{suffix}"] = [stage[key] for stage in stages]
        if not masked:  # somebody took them all out: every stage had one, as at 256 pixels
            params[f"shifted{suffix}"] = [True] * len(stages)
    params["mlp_ratio"] = down[0]["mlp_ratio"]
    return params


def is_diffjscc(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this is DiffJSCC's codec of the same names, which ends in a sigmoid."""
    return "decoder.absolute_pos_embed" in shapes


def _found_stages(shapes: Mapping[str, tuple[int, ...]], half: str) -> list[dict[str, Any]]:
    """What the names and shapes of one half say of each of its stages."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        found = re.match(rf"{half}\.layers\.(\d+)\.blocks\.(\d+)\.", name)
        if found:
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    stages = []
    for level in sorted(blocks):
        first = f"{half}.layers.{level}.blocks.0"
        table = shapes.get(f"{first}.attn.relative_position_bias_table")
        hidden = shapes.get(f"{first}.mlp.fc1.weight")
        if table is None or hidden is None:
            return []
        names = (f"{half}.layers.{level}.blocks.{block}.attn_mask" for block in blocks[level])
        stages.append(
            {
                "embed_dims": hidden[1],
                "depths": len(blocks[level]),
                "num_heads": table[1],
                "windows": (math.isqrt(table[0]) + 1) // 2,
                "shifted": any(name in shapes for name in names),
                "mlp_ratio": hidden[0] / hidden[1],
            }
        )
    return stages


def _variant(params: Mapping[str, Any]) -> str:
    """Which variant it is, in our word or the authors'."""
    model = params.get("model")
    variant = params.get("variant", None if model is None else MODELS.get(model, model))
    if variant in VARIANTS:
        return str(variant)
    if variant is None and "C" in params:
        raise ValueError(
            "swinjscc.variant: got nothing, expected 'base' or 'sa': the weights fit both. Write "
            "'variant: sa' in config.yaml if the network was trained for several SNRs, else "
            "'variant: base'."
        )
    raise ValueError(
        f"swinjscc.variant: got {variant!r}, expected one of {', '.join(VARIANTS)}. "
        "No other variant is implemented."
    )


def _stages(params: Mapping[str, Any], suffix: str) -> tuple[StageConfig, ...]:
    """Read the stages of the encoder (no suffix) or of the decoder (`_d`, by default mirrored)."""
    columns = [
        _column_of(params, name, suffix)
        for name in ("embed_dims", "depths", "num_heads", "windows", "shifted")
    ]
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        raise ValueError(
            f"swinjscc.embed_dims{suffix}: got {[len(column) for column in columns]} entries in "
            "embed_dims, depths, num_heads, windows and shifted, expected equal numbers. "
            "Correct the file."
        )
    ratio = float(params.get("mlp_ratio", 4))
    return tuple(
        StageConfig(width, depth, heads, window, window // 2 if shifted else 0, ratio)
        for width, depth, heads, window, shifted in zip(*columns, strict=True)
    )


def _column_of(params: Mapping[str, Any], name: str, suffix: str) -> list[Any]:
    """One value per stage."""
    if name not in params and name in ("windows", "shifted"):
        windows = _windows(params)
        column: Any = [window if name == "windows" else shifted for window, shifted in windows]
    else:
        column = params.get(name)
    if suffix and f"{name}{suffix}" in params:
        column = params[f"{name}{suffix}"]
    elif suffix and isinstance(column, list | tuple):
        column = list(reversed(column))
    if not isinstance(column, list | tuple):
        raise ValueError(
            f"swinjscc.{name}: got {column!r}, expected a list with one entry per stage. Take the "
            "config.yaml that came with the checkpoint."
        )
    return list(column)


def _windows(params: Mapping[str, Any]) -> list[tuple[int, bool]]:
    """Side of the windows of each stage of the encoder, and whether they shift.

    The network was built for one image size: where a window was not smaller than the plane, windows
    are at most as large as that was, and unshifted at every size.
    """
    sizes = params.get("img_size")
    if not isinstance(sizes, list | tuple) or len(sizes) < 2:
        raise ValueError(
            f"swinjscc.img_size: got {sizes!r}, expected [height, width] of the training images. "
            "Take the config.yaml that came with the checkpoint."
        )
    most = _integer(params, "window_size")
    sides = [
        min(int(side) for side in sizes[-2:]) // (PATCH * 2**level)
        for level in range(len(params["embed_dims"]))
    ]
    return [(min(side, most), side > most) for side in sides]


def _integer(params: Mapping[str, Any], key: str) -> int:
    value = params.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"swinjscc.{key}: got {value!r}, expected a whole number above 0. Take the config.yaml "
            "that came with the checkpoint."
        )
    return value
