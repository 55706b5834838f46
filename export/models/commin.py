"""Commin: one invertible network per SNR, the nearest one chosen inside the graph.

Jiakang Chen, Di You, Deniz Gündüz, Pier Luigi Dragotti, "CommIN: Semantic Image Communications as
an Inverse Problem with INN-Guided Diffusion Models", arXiv 2310.01130.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jscc.export.models import inn
from jscc.export.models.inn import Details, Inn, InnConfig, Shapes
from jscc.export.models.params import integer

_NET = re.compile(r"nets\.(\d+)\.(.+)")


class Inverse(nn.Module):
    """An `Inn` whose ``forward`` merges."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, coarse: Tensor, details: Details, condition: Tensor | None) -> Tensor:
        merged: Tensor = self.net.inverse(coarse, details, condition)  # type: ignore[operator]
        return merged


class Commin(nn.Module):
    """Splits and merges like `Inn`, with the network whose SNR is nearest to that of the image.

    NOTE: a batch is one image: the weights are gathered by its SNR, so that one network is run and
    not all of them.

    Args:
        config: Of every network.
        snrs_db: The SNR that each was trained at.
        degradation: Where the networks are conditioned by a vector, as INDIGO+'s are, what it
            always is; else nothing.
    """

    def __init__(
        self,
        config: InnConfig,
        snrs_db: tuple[float, ...],
        degradation: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(Inn(config) for _ in snrs_db)
        self.snrs_db = snrs_db
        self.degradation = degradation

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the networks of `params`.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        count = integer(params, "nets", "commin")
        snrs_db = params.get("snrs_db")
        if not _are_numbers(snrs_db) or len(set(snrs_db)) != len(snrs_db) or len(snrs_db) != count:
            raise ValueError(
                f"commin.snrs_db: got {snrs_db!r}, expected {count} different numbers, the SNRs in "
                "dB that the networks were trained at, in their order. Add --option snrs_db=1,7,… "
                "or correct the file."
            )
        rest = {key: value for key, value in params.items() if key not in ("nets", "snrs_db")}
        config = InnConfig.from_params(rest)
        if config.snr_db_range is not None:
            raise ValueError(
                "commin.snr: got networks that are told the SNR, expected one for each SNR. Use "
                "--model sing_inn with one of them."
            )
        degradation = params.get("degradation", [0.0] * config.condition)
        if not _are_numbers(degradation) or len(degradation) != config.condition:
            raise ValueError(
                f"commin.degradation: got {str(degradation)[:60]!r}, expected {config.condition} "
                "numbers. Correct the file."
            )
        return cls(config, tuple(map(float, snrs_db)), tuple(map(float, degradation)))

    @property
    def stride(self) -> int:
        """Height and width of images must be multiples of this; the coarse part's are 1/stride."""
        return 1 << self.config.levels

    def forward(self, image: Tensor, snr_db: Tensor) -> tuple[Tensor, Details]:
        """Split one image [1, 3, H, W] received at `snr_db` [1]; see `Inn.forward`."""
        weights = self._weights(snr_db)
        given = (image, self._condition(snr_db))
        parts: tuple[Tensor, Details] = functional_call(self.nets[0], weights, given)
        return parts

    def inverse(self, coarse: Tensor, details: Details, snr_db: Tensor) -> Tensor:
        """Merge what `forward` returned at the same `snr_db`; see `Inn.inverse`."""
        weights = {f"net.{name}": weight for name, weight in self._weights(snr_db).items()}
        given = (coarse, details, self._condition(snr_db))
        merged: Tensor = functional_call(Inverse(self.nets[0]), weights, given)
        return merged

    def _condition(self, snr_db: Tensor) -> Tensor | None:
        """What the networks are conditioned by beside the SNR."""
        return snr_db.new_tensor([self.degradation]) if self.degradation else None

    def _weights(self, snr_db: Tensor) -> dict[str, Tensor]:
        """The weights of the network whose SNR is nearest."""
        known = snr_db.new_tensor(self.snrs_db)
        nearest = (known - snr_db[:, None]).abs().argmin(dim=1)  # TensorRT asks for two axes
        each = [dict(net.named_parameters()) for net in self.nets]
        return {
            name: torch.stack([weights[name] for weights in each])
            .index_select(0, nearest)
            .squeeze(0)
            for name in each[0]
        }


def config_of(shapes: Shapes) -> dict[str, Any] | None:
    """The parameters of the networks that tensors of these shapes belong to, None for others.

    The SNRs are not in the weights: a configuration beside them must say them.

    Args:
        shapes: Shape by key, in the module's names.
    """
    found = [match for match in map(_NET.fullmatch, shapes) if match]
    if not found or len(found) != len(shapes):
        return None
    params = inn.config_of({match[2]: shapes[match[0]] for match in found if match[1] == "0"})
    if params is None:
        return None
    return {**params, "nets": 1 + max(int(match[1]) for match in found)}


def _are_numbers(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
        for each in value
    )
