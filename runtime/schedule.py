"""Schedule: how much of the clean latent is left at each noise level that a network knows."""

import bisect
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jscc.runtime.csi import Csi
from jscc.runtime.errors import BundleError
from jscc.runtime.manifest_loops import ScheduleSpec


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of a variance-preserving diffusion.

    At level t a latent is ``sqrt(abar_t) * clean + sqrt(1 - abar_t) * noise``.

    Attributes:
        alphas_cumprod: abar, float64[level], strictly falling inside (0, 1).
    """

    alphas_cumprod: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what no sampler can divide by.

        Raises:
            BundleError: ``E_SCHEDULE``, abar leaves (0, 1) or does not fall.
        """
        abar = self.alphas_cumprod
        fine = abar.ndim == 1 and abar.size > 0 and abar.dtype == np.float64
        if not (fine and abar[0] < 1.0 and abar[-1] > 0.0 and bool(np.all(np.diff(abar) < 0.0))):
            raise BundleError(
                "E_SCHEDULE",
                f"schedule: got abar {_ends(abar)}, expected numbers that fall strictly inside "
                "(0, 1). Export the bundle again.",
            )

    @property
    def last(self) -> int:
        """The noisiest level."""
        return int(self.alphas_cumprod.size) - 1

    def level_of_snr(self, snr_db: float) -> int:
        """The first level at which a latent is at least as noisy as a signal at `snr_db`."""
        share = 1.0 / (1.0 + Csi(snr_db).noise_power)  # abar / (1 - abar) = SNR
        return min(bisect.bisect_left(-self.alphas_cumprod, -share), self.last)


def schedule_from(spec: ScheduleSpec) -> Schedule:
    """The schedule that a manifest describes.

    ``linear``: betas equally spaced (Ho et al., "Denoising Diffusion Probabilistic Models",
    arXiv:2006.11239); ``scaled_linear``: their square roots are (Rombach et al., "High-Resolution
    Image Synthesis with Latent Diffusion Models", arXiv:2112.10752, code).

    Raises:
        BundleError: ``E_SCHEDULE``, an unknown kind, or betas outside (0, 1).
    """
    if spec.kind == "linear":
        betas = np.linspace(spec.first, spec.last, spec.timesteps, dtype=np.float64)
    elif spec.kind == "scaled_linear":
        roots = np.linspace(spec.first**0.5, spec.last**0.5, spec.timesteps, dtype=np.float64)
        betas = roots * roots
    else:
        raise BundleError(
            "E_SCHEDULE",
            f"schedule: got kind {spec.kind!r}, expected linear or scaled_linear. "
            "Update jscc-edge or export the bundle again.",
        )
    return Schedule(np.cumprod(1.0 - betas, dtype=np.float64))


def _ends(abar: npt.NDArray[np.float64]) -> str:
    """First and last of `abar` for a message."""
    if abar.ndim != 1 or abar.size == 0:
        return f"{abar.dtype}{list(abar.shape)}"
    return f"from {abar[0]:.6g} to {abar[-1]:.6g} in {abar.size} levels of {abar.dtype}"
