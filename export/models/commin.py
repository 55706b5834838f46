"""Commin: one unconditional invertible network per SNR, the nearest one chosen inside the graph.

Jiakang Chen, Di You, Deniz Gündüz, Pier Luigi Dragotti, "CommIN: Semantic Image Communications as
an Inverse Problem with INN-Guided Diffusion Models", arXiv 2310.01130.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jscc.export.models import inn
from jscc.export.models.inn import Details, Inn, InnConfig, Shapes
from jscc.export.models.params import integer, required

_NET = re.compile(r"nets\.(\d+)\.(.+)")


class Inverse(nn.Module):
    """An `Inn` whose ``forward`` merges."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, coarse: Tensor, details: Details) -> Tensor:
        merged: Tensor = self.net.inverse(coarse, details, None)  # type: ignore[operator]
        return merged


class Commin(nn.Module):
    """Splits and merges like `Inn`, with the network whose SNR is nearest to that of the image.

    NOTE: a batch is one image: the weights are gathered by its SNR, so that one network is run and
    not all of them.

    Args:
        config: Of every network.
        snrs_db: The SNR that each was trained at.
    """

    def __init__(self, config: InnConfig, snrs_db: tuple[float, ...]) -> None:
        super().__init__()
        self.config = config
        self.nets = nn.ModuleList(Inn(config) for _ in snrs_db)
        self.snrs_db = snrs_db

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Self:
        """Build the networks of `params`.

        Raises:
            ValueError: A value is missing, unknown or unsupported.
        """
        count = integer(params, "nets", "commin")
        snrs_db = required(params, "snrs_db", "commin")
        if not isinstance(snrs_db, list | tuple) or len(snrs_db) != count:
            raise ValueError(
                f"commin.snrs_db: got {snrs_db!r}, expected the {count} SNRs in dB that the "
                "networks were trained at. Correct the file."
            )
        rest = {key: value for key, value in params.items() if key not in ("nets", "snrs_db")}
        return cls(InnConfig.from_params(rest), tuple(map(float, snrs_db)))

    @property
    def stride(self) -> int:
        """Height and width of images must be multiples of this; the coarse part's are 1/stride."""
        return 1 << self.config.levels

    def forward(self, image: Tensor, snr_db: Tensor) -> tuple[Tensor, Details]:
        """Split one image [1, 3, H, W] received at `snr_db` [1]; see `Inn.forward`."""
        weights = self._weights(snr_db)
        parts: tuple[Tensor, Details] = functional_call(self.nets[0], weights, (image, None))
        return parts

    def inverse(self, coarse: Tensor, details: Details, snr_db: Tensor) -> Tensor:
        """Merge what `forward` returned at the same `snr_db`; see `Inn.inverse`."""
        weights = {f"net.{name}": weight for name, weight in self._weights(snr_db).items()}
        merged: Tensor = functional_call(Inverse(self.nets[0]), weights, (coarse, details))
        return merged

    def _weights(self, snr_db: Tensor) -> dict[str, Tensor]:
        """The weights of the network whose SNR is nearest."""
        known = snr_db.new_tensor(self.snrs_db)
        nearest = (known - snr_db).abs().argmin(dim=0, keepdim=True)
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
    if params is None or params["condition"]:
        return None
    return {**params, "nets": 1 + max(int(match[1]) for match in found)}
