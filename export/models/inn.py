"""Inn: an invertible network that splits an image into a coarse part and details, and merges them.

Di You, Andreas Floros, Pier Luigi Dragotti, "INDIGO: An INN-Guided Probabilistic Diffusion
Algorithm for Inverse Problems", arXiv 2306.02949; conditional blocks as in Chen, Yilmaz, You,
Dragotti, Gündüz, "SING: Semantic Image Communications using Null-Space and INN-Guided Diffusion
Models", arXiv 2503.12484, eq. 14 and 15. Written from a description of the published checkpoints;
only the names of the parameters are theirs.

    image ─ −½ ─ polyphase ─┬─ c ──┬──── + ──┬── … ── c ─▶ next level … ─ +½ ─▶ coarse
                            │      P     U   │
                            └─ d ── + ──┴────┴── … ── d ─▶ details of this level

Whatever P and U compute, each step is undone by subtracting the same again, so `forward` and
`inverse` share their weights and are exact inverses up to rounding. All levels share them too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.models.params import integer, number

Shapes = Mapping[str, tuple[int, ...]]
Details = tuple[Tensor, ...]
Factors = list[Tensor | None]

COLORS: Final = 3
BANDS: Final = 3
OFFSET: Final = 0.5
LEVELS: Final = 2
SNR_DB: Final = (0.0, 14.0)
SNR_WIDTH: Final = 64
SLICINGS: Final = ("clean", "overlapping")
SHELL: Final = "transform_net.inn."
KNOWN: Final = frozenset(
    {
        "SNR_high",
        "SNR_low",
        "blocks",
        "condition",
        "degradation",
        "family",
        "hidden",
        "levels",
        "lifts",
        "slicing",
        "snr",
        "width",
    }
)


@dataclass(frozen=True)
class InnConfig:
    """Shape of the network.

    Attributes:
        lifts: Lifting steps of one level, each a P and a U.
        blocks: Residual blocks of each P and U.
        width: Features of the blocks.
        condition: Width of the condition vector; 0 for none.
        hidden: Features between the two layers that turn it into factors.
        levels: Times the image is halved; no weight depends on it.
        slicing: What P's nine outputs mean: ``clean``, three per band; ``overlapping``, band b
            takes outputs b, b+1 and b+2 of nine, as the published weights were trained.
        snr_db_range: Where the condition is made of the SNR inside the network, the range that
            it was trained on; None where the condition is given from outside.
    """

    lifts: int
    blocks: int
    width: int
    condition: int
    hidden: int
    levels: int = LEVELS
    slicing: str = "clean"
    snr_db_range: tuple[float, float] | None = None

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Read `params`.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        for key in params:
            if key not in KNOWN:
                raise ValueError(
                    f"inn: got unknown key {key!r}, expected some of {sorted(KNOWN)}. Remove it."
                )
        slicing = params.get("slicing", "clean")
        if slicing not in SLICINGS:
            raise ValueError(
                f"inn.slicing: got {slicing!r}, expected one of {', '.join(SLICINGS)}. Published "
                "weights want 'overlapping'."
            )
        condition = params.get("condition", 0)
        return cls(
            lifts=integer(params, "lifts", "inn"),
            blocks=integer(params, "blocks", "inn"),
            width=integer(params, "width", "inn"),
            condition=integer(params, "condition", "inn") if condition else 0,
            hidden=integer(params, "hidden", "inn") if condition else 0,
            levels=integer(params, "levels", "inn", default=LEVELS),
            slicing=slicing,
            snr_db_range=_snr_range(params) if params.get("snr") else None,
        )


def _snr_range(params: Mapping[str, Any]) -> tuple[float, float]:
    given = {"SNR_low": SNR_DB[0], "SNR_high": SNR_DB[1], **params}
    low, high = number(given, "SNR_low", "inn"), number(given, "SNR_high", "inn")
    if not low < high:
        raise ValueError(f"inn: got SNRs from {low} to {high} dB, expected low < high. Correct it.")
    return low, high


class ConditionalBlock(nn.Module):
    """x + o·f: two convolutions o beside a shortcut, scaled by factors f of the condition."""

    def __init__(self, config: InnConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.conv2 = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.fc = None
        if config.condition:
            self.fc = nn.Sequential(
                nn.Linear(config.condition, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, config.width),
            )

    def factors(self, condition: Tensor | None) -> Tensor | None:
        """f [B, width, 1, 1], or None where there is no condition."""
        if self.fc is None:
            return None
        factors: Tensor = self.fc(condition)[:, :, None, None]
        return factors

    def forward(self, x: Tensor, factors: Tensor | None) -> Tensor:
        o: Tensor = self.conv2(functional.relu(self.conv1(x)))
        return x + (o if factors is None else o * factors)


class Chain(nn.Module):
    """The convolutions of a P or a U.

    Args:
        before: Planes that come in.
        after: Planes that the last convolution has in the checkpoint.
        config: Of the network.
        rows: Which of them go out, in this order.
    """

    def __init__(self, before: int, after: int, config: InnConfig, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.convin = nn.Conv2d(before, config.width, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(ConditionalBlock(config) for _ in range(config.blocks))
        self.convout = nn.Conv2d(config.width, after, 3, padding=1, bias=False)
        nn.init.zeros_(self.convout.weight)  # at first the coarse part is every other pixel
        self.rows = list(rows) if rows != tuple(range(after)) else None

    def factors(self, condition: Tensor | None) -> Factors:
        """What each block scales by."""
        return [block.factors(condition) for block in self.blocks]  # type: ignore[operator]

    def forward(self, x: Tensor, factors: Factors) -> Tensor:
        x = self.convin(x)
        for block, scale in zip(self.blocks, factors, strict=True):
            x = block(x, scale)
        weight = self.convout.weight if self.rows is None else self.convout.weight[self.rows]
        return functional.conv2d(x, weight, padding=1)


class Net(nn.Module):
    """Holds a `Chain` under the name that checkpoints give it."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.net = chain

    def forward(self, x: Tensor, factors: Factors) -> Tensor:
        out: Tensor = self.net(x, factors)
        return out


class Lift(nn.Module):
    """d += P(c), c += U(d), and back."""

    def __init__(self, config: InnConfig) -> None:
        super().__init__()
        details = BANDS * COLORS
        rows = [
            band + color if config.slicing == "overlapping" else COLORS * band + color
            for band in range(BANDS)
            for color in range(COLORS)
        ]
        self.p = Net(Chain(COLORS, details, config, tuple(rows)))
        self.u = Net(Chain(details, COLORS, config, tuple(range(COLORS))))

    def factors(self, condition: Tensor | None) -> tuple[Factors, Factors]:
        """What the blocks of P and U scale by."""
        return self.p.net.factors(condition), self.u.net.factors(condition)

    def forward(
        self, c: Tensor, d: Tensor, factors: tuple[Factors, Factors]
    ) -> tuple[Tensor, Tensor]:
        d = d + self.p(c, factors[0])
        return c + self.u(d, factors[1]), d

    def inverse(
        self, c: Tensor, d: Tensor, factors: tuple[Factors, Factors]
    ) -> tuple[Tensor, Tensor]:
        """Undo `forward`."""
        c = c - self.u(d, factors[1])
        return c, d - self.p(c, factors[0])


class Inn(nn.Module):
    """Splits an image in [0,1] into a coarse part in [0,1] and details, and merges them again.

    The condition of both directions is one vector per image [B, condition]; the SNR in dB [B] where
    the network makes its vector itself; None where it has none.
    """

    def __init__(self, config: InnConfig) -> None:
        super().__init__()
        self.config = config
        self.lifts = nn.ModuleList(Lift(config) for _ in range(config.lifts))
        self.snr = None
        if config.snr_db_range is not None:
            self.snr = nn.Sequential(
                nn.Linear(1, SNR_WIDTH), nn.SiLU(), nn.Linear(SNR_WIDTH, config.condition)
            )

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the network of `params`.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        return cls(InnConfig.from_params(params))

    @property
    def stride(self) -> int:
        """Height and width of images must be multiples of this; the coarse part's are 1/stride."""
        return 1 << self.config.levels

    def forward(self, image: Tensor, condition: Tensor | None) -> tuple[Tensor, Details]:
        """Split.

        Args:
            image: [B, 3, H, W] in [0, 1].
            condition: See the class.

        Returns:
            Coarse part [B, 3, H/stride, W/stride] and the details of every level
            [B, 9, H/2, W/2] …, coarsest first; planes of a level: odd rows, odd columns, both.
        """
        steps = self._steps(condition)
        coarse, details = image - OFFSET, []
        for _ in range(self.config.levels):
            coarse, detail = _apart(coarse)
            for lift, factors in steps:
                coarse, detail = lift(coarse, detail, factors)
            details.append(detail)
        return coarse + OFFSET, tuple(reversed(details))

    def inverse(self, coarse: Tensor, details: Details, condition: Tensor | None) -> Tensor:
        """Merge what `forward` returned, or another coarse part with these details."""
        steps = self._steps(condition)
        image = coarse - OFFSET
        for level in details:
            detail = level
            for lift, factors in reversed(steps):
                image, detail = lift.inverse(image, detail, factors)
            image = _together(image, detail)
        return image + OFFSET

    def _steps(self, condition: Tensor | None) -> list[tuple[Lift, tuple[Factors, Factors]]]:
        """The lifting steps with what their blocks scale by, which all levels share."""
        if self.snr is not None and self.config.snr_db_range is not None and condition is not None:
            low, high = self.config.snr_db_range
            condition = self.snr(((2 * condition - low - high) / (high - low)).unsqueeze(1))
        lifts: list[Lift] = list(self.lifts)  # type: ignore[arg-type]
        return [(lift, lift.factors(condition)) for lift in lifts]


def _apart(image: Tensor) -> tuple[Tensor, Tensor]:
    """Every pixel of even row and column, and the other three quarters as planes."""
    rows = torch.unflatten(torch.unflatten(image, 3, (-1, 2)), 2, (-1, 2))
    # [B, color, row, odd row, column, odd column]: quarters even, odd rows, odd columns, both.
    quarters = rows.permute(0, 5, 3, 1, 2, 4).flatten(1, 3)
    return quarters[:, :COLORS], quarters[:, COLORS:]


def _together(coarse: Tensor, detail: Tensor) -> Tensor:
    quarters = torch.cat((coarse, detail), dim=1)
    rows = torch.unflatten(quarters, 1, (2, 2, COLORS)).permute(0, 3, 4, 2, 5, 1)
    return rows.flatten(4, 5).flatten(2, 3)


def canonical(name: str) -> str | None:
    """The module's name of a checkpoint's tensor; the degradation's estimator is left out."""
    return None if name.startswith("net_kdsr.") else name.removeprefix(SHELL)


def config_of(shapes: Shapes) -> dict[str, Any] | None:
    """The parameters of the network that tensors of these shapes belong to, None for another.

    Nothing tells how P's outputs are sliced: networks conditioned by a given vector are taken for
    published ones (``overlapping``), this project's own for ``clean``.

    Args:
        shapes: Shape by key, in the module's names.
    """
    first = shapes.get("lifts.0.p.net.convin.weight")
    if first is None or first[1] != COLORS:
        return None
    condition = shapes.get("lifts.0.p.net.blocks.0.fc.0.weight", (0, 0))
    return {
        "lifts": _count(shapes, r"lifts\.(\d+)\."),
        "blocks": _count(shapes, r"lifts\.0\.p\.net\.blocks\.(\d+)\."),
        "width": first[0],
        "condition": condition[1],
        "hidden": condition[0],
        "levels": LEVELS,
        "slicing": "overlapping" if condition[1] and "snr.0.weight" not in shapes else "clean",
        "snr": "snr.0.weight" in shapes,
    }


def _count(shapes: Shapes, pattern: str) -> int:
    found = (re.match(pattern, key) for key in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
