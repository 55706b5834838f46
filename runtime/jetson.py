"""Jetson: what such a board says of itself, as far as it changes what runs there and how fast.

    /proc/device-tree/model       the board; hidden in most containers
    /proc/sys/kernel/osrelease    kernels of Jetson Linux (L4T) end in ``-tegra``, in containers too
    /etc/nv_tegra_release         release of Jetson Linux
    /usr/local/cuda/version.json  release of CUDA
    /var/lib/nvpmodel/status      number of the power mode, which /etc/nvpmodel.conf names
    cpufreq, devfreq below /sys   between which clocks the kernel chooses; ``jetson_clocks`` makes
                                  the lowest the highest

Nothing here needs root, and what cannot be read is None.

NOTE: nothing in this file was ever run on a Jetson; tests have what such boards were seen to say.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jscc.runtime.terminal import INSTALL

ROOT = Path("/")
# JetPack by the first number of Jetson Linux.
_JETPACKS = {"32": 4, "34": 5, "35": 5, "36": 6, "38": 7, "39": 7}
# Folders of devfreq that are the GPU, of Nano, TX2, Xavier, Orin and Thor; others are engines.
_GPU = re.compile(r".*\.(gpu|gm20b|gp10b|gv11b|ga10b)|gpu-gpc-\d+")
_VERSION = re.compile(r'"cuda"\s*:\s*\{[^{}]*"version"\s*:\s*"(\d+\.\d+)')
_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s([^<>]*)>", re.MULTILINE)

# Of JetPack 5, and of 6.1 and 6.2.
_CUDA = {5: "11.4", 6: "12.6"}
# The first release of cuda-python for each CUDA that is whole: PyPI has none before 11.6 for these
# boards and Python 3.10, and before 11.8.4 and 12.6.1 they have no ``cuda.bindings``. Within one
# major number of CUDA a later one fits, but for functions that the board's libraries lack.
_WHOLE_SINCE = {11: 8, 12: 6}

# JetPack's bindings are a Debian package, built for the system's Python and found only from there.
TENSORRT = (
    "sudo apt install python3-libnvinfer, and make the environment with "
    "/usr/bin/python3 -m venv --system-site-packages"
)


@dataclass(frozen=True)
class Jetson:
    """A board, and what it is set to.

    Attributes:
        model: Its name.
        l4t: Release of Jetson Linux, such as ``36.4.3``.
        jetpack: The JetPack that this belongs to, such as 6.
        cuda: Release of the CUDA toolkit, such as ``12.6``.
        power_mode: As `nvpmodel` calls it, such as ``MAXN_SUPER``.
        clocks_mhz: Lowest and highest of each part's clock that the kernel may choose.
        clocks_pinned: Whether it has no choice.
    """

    model: str | None
    l4t: str | None
    jetpack: int | None
    cuda: str | None
    power_mode: str | None
    clocks_mhz: dict[str, tuple[float, float]]
    clocks_pinned: bool | None


def describe_jetson(root: Path | None = None) -> Jetson | None:
    """The board at hand; None where there is no sign of one.

    Args:
        root: Where its files are; `ROOT` by default.
    """
    root = ROOT if root is None else root
    model = _text(root / "proc/device-tree/model").strip("\0 \n")
    release = _text(root / "etc/nv_tegra_release")
    kernel = _text(root / "proc/sys/kernel/osrelease").strip()
    if not ("Jetson" in model or release or kernel.endswith("-tegra")):
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    cuda = _VERSION.search(_text(root / "usr/local/cuda/version.json"))
    clocks = dict(_clocks(root / "sys"))
    return Jetson(
        model=model or None,
        l4t=f"{found[1]}.{found[2]}" if found else None,
        jetpack=_JETPACKS.get(found[1]) if found else None,
        cuda=cuda[1] if cuda else None,
        power_mode=_power_mode(root),
        clocks_mhz=clocks,
        clocks_pinned=all(low == high for low, high in clocks.values()) if clocks else None,
    )


def cuda_bindings() -> str | None:
    """What pip is to install for the CUDA of the Jetson at hand; None elsewhere, or if unknown."""
    jetson = describe_jetson()
    release = None if jetson is None else jetson.cuda or _CUDA.get(jetson.jetpack or 0)
    if release is None:
        return None
    major, minor = map(int, release.split("."))
    return f"'cuda-python=={major}.{max(minor, _WHOLE_SINCE.get(major, 0))}.*'"


def install_cuda() -> str:
    """The command that adds cuda-python here."""
    own = cuda_bindings()
    return INSTALL["cuda"] if own is None else f"pip install {own}"


def _power_mode(root: Path) -> str | None:
    """Name of the power mode, or its number where it has none."""
    status = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if status is None:
        return None
    for mode in _MODE.findall(_text(root / "etc/nvpmodel.conf")):
        fields = dict(re.findall(r"(\w+)=(\S+)", mode))
        if fields.get("ID") == status[1] and "NAME" in fields:
            return str(fields["NAME"])
    return f"mode {status[1]}"


def _clocks(sys: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Range of each group of processor cores, and of the GPU, in MHz."""
    for folder in sorted((sys / "devices/system/cpu/cpufreq").glob("policy*")):
        kilohertz = _range(folder / "scaling_min_freq", folder / "scaling_max_freq")
        if kilohertz is not None:
            yield folder.name.replace("policy", "cpu"), (kilohertz[0] / 1e3, kilohertz[1] / 1e3)
    for folder in sorted((sys / "class/devfreq").glob("*")):
        hertz = _range(folder / "min_freq", folder / "max_freq")
        if hertz is not None and _GPU.fullmatch(folder.name):
            yield folder.name, (hertz[0] / 1e6, hertz[1] / 1e6)


def _range(lowest: Path, highest: Path) -> tuple[int, int] | None:
    low, high = _text(lowest).strip(), _text(highest).strip()
    return (int(low), int(high)) if low.isdecimal() and high.isdecimal() else None


def _text(path: Path) -> str:
    """A file of the system, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
