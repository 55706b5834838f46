"""Export cases: the published networks at their real size, as systems that hold them.

Roles that a case leaves out are those of this project's own networks, which are small beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ExportCase:
    """One export.

    Attributes:
        system: Name of the system.
        configs: As ``--config`` takes them.
        title: What it is, in a table.
        heavy: Whether it has to be named: it is several times the work of all others.
        options: Of the system alone.
    """

    system: str
    configs: tuple[str, ...]
    title: str
    heavy: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def _codec(name: str, title: str) -> ExportCase:
    return ExportCase("deepjscc", (f"architecture:{name}",), title)


def _prior(name: str, title: str, *, heavy: bool = False) -> ExportCase:
    return ExportCase("sing_zero", (f"prior=architecture:{name}",), title, heavy)


def _generator(name: str, title: str, *, heavy: bool = False) -> ExportCase:
    return ExportCase("inverse_jscc", (f"generator=architecture:{name}",), title, heavy)


CASES: Mapping[str, ExportCase] = {
    "bourtsoulatze": _codec("bourtsoulatze", "Bourtsoulatze's CNN"),
    "deepwive": _codec("deepwive", "AF network of DeepWiVe"),
    "pdjscc_48": ExportCase("perceptual", ("architecture:pdjscc_48",), "pDJSCC"),
    "swinjscc_base": _codec("swinjscc_base", "SwinJSCC"),
    "swinjscc_sa_ra": _codec("swinjscc_sa_ra", "SwinJSCC with SNR and rate adaptation"),
    "ffhq_10m": _prior("ffhq_10m", "ADM, `ffhq_10m.pt`"),
    "celeba_hq": _prior("celeba_hq", "DDPM, `celeba_hq.ckpt`"),
    "iddpm_ffhq512": _prior("iddpm_ffhq512", "DifFace's `iddpm_ffhq512`"),
    "openai_256": _prior("openai_256", "ADM, `256x256_diffusion_uncond.pt`", heavy=True),
    "stylegan2_256": _generator("stylegan2_256", "StyleGAN2, 256×256"),
    "stylegan2_1024": _generator("stylegan2_1024", "StyleGAN2, 1024×1024", heavy=True),
}
