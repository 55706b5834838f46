"""Engine choice: which engine receives a bundle fastest on this machine, as it was measured here.

Kept in a folder of this user's own, a file for each bundle and its circumstances: processor, cores,
NVIDIA device or none, and versions. Under others there is no choice: the default engine receives.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jscc.runtime.declared import Json
from jscc.runtime.engine_names import DEFAULT, ENGINES
from jscc.runtime.errors import DataError
from jscc.runtime.machine import describe_machine, software, version_of
from jscc.runtime.output_files import write_file
from jscc.runtime.private_folder import cache_folder, make_private, read_private
from jscc.runtime.trust import Asset, strict_json

FORMAT: Final = 1
WORTH: Final = 0.95  # of the default engine's time: less gain is no reason to leave it
CHOICE: Final = Asset(DataError, "E_CHOICE", "Delete it, and run jscc choose again")
_LARGEST = 1 << 16  # bytes of a file
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Circumstances:
    """What a choice holds for.

    Attributes:
        bundle: sha256 of the bundle.
        processor: Its model name.
        features: Its instruction sets, of those that matter.
        cores: Of it that the process may use.
        nvidia: Whether an NVIDIA device is visible.
        versions: Of this package and of every engine library.
    """

    bundle: str
    processor: str
    features: tuple[str, ...]
    cores: int
    nvidia: bool
    versions: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Where the choice is kept."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self._stem}{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def others(self, folder: Path) -> bool:
        """Whether a choice is kept for this bundle under other circumstances."""
        return any(path.name != self.file_name for path in folder.glob(f"{self._stem}*.json"))

    @property
    def _stem(self) -> str:
        return f"{self.bundle[:40]}-"


@dataclass(frozen=True)
class Trial:
    """How one engine received, in turns with the default one.

    Attributes:
        engine: Its name, see `jscc.runtime.engine_names.ENGINES`.
        seconds: Least time of one image; None where it does not receive this bundle.
        ratios: Of its time to the default engine's, turn by turn; none where that does not receive.
        psnr_db: Of the self-test's image, to the one that the bundle knows; None where they are
            equal.
        reason: Why it does not receive; or what of the request it did not do.
    """

    engine: str
    seconds: float | None
    ratios: tuple[float, ...] = ()
    psnr_db: float | None = None
    reason: str = ""


def usual_folder() -> Path:
    """Where choices are kept; see `jscc.runtime.private_folder.cache_folder`."""
    return cache_folder("choices")


def circumstances(bundle: str) -> Circumstances:
    """Those of this machine for a bundle of this sha256."""
    machine = describe_machine()
    versions = [f"{name} {version_of(name)}" for name in _LIBRARIES if version_of(name)]
    return Circumstances(
        bundle,
        machine.cpu,
        machine.features,
        machine.threads,
        machine.nvidia,
        (software(), *versions),
    )


def best_of(trials: Sequence[Trial]) -> str:
    """The fastest engine; the default one unless another is faster by `WORTH` in every turn."""
    times = {trial.engine: trial.seconds for trial in trials if trial.seconds is not None}
    gains = {trial.engine: max(trial.ratios) for trial in trials if trial.ratios}
    if DEFAULT not in times:
        return min(times, key=lambda engine: times[engine], default=DEFAULT)
    best = min(gains, key=lambda engine: gains[engine], default=DEFAULT)
    return best if best in gains and gains[best] <= WORTH else DEFAULT


def keep(
    engine: str, here: Circumstances, folder: Path, measured: Mapping[str, Json] | None = None
) -> Path:
    """Write down that `engine` receives here; returns the file.

    Args:
        engine: The fastest.
        here: What it holds for.
        folder: Where choices are kept.
        measured: How it was found, for whoever reads the file.

    Raises:
        DataError: ``E_CHOICE_…``, the folder is not this user's alone.
        JsccError: What writing raises.
    """
    make_private(folder, CHOICE)
    path = folder / here.file_name
    document = {"format": FORMAT, "engine": engine, "for": asdict(here), "measured": measured}
    write_file(path, json.dumps(document, indent=1).encode() + b"\n", force=True)
    return path


def find(here: Circumstances, folder: Path) -> str | None:
    """The engine that was chosen, None where none was for these circumstances.

    Raises:
        DataError: ``E_CHOICE_…``, the file or the folder is not as `keep` left it.
        StorageError: ``E_IO``.
    """
    where = f"choice of engine {str(folder / here.file_name)!r}"
    try:
        if not (folder / here.file_name).is_file():
            return None
    except OSError:  # a home that this user may not enter
        return None
    data = read_private(folder / here.file_name, where, _LARGEST, CHOICE)
    return _engine(data, here, where)


def _engine(data: bytes, here: Circumstances, where: str) -> str:
    """What a file says, if it is for these circumstances."""

    def refuse(pointer: str, got: str, expected: str) -> DataError:
        return CHOICE.refuse("FORMAT", f"{where}, {pointer or '/'}", got, expected)

    document: Json = strict_json(data, limit=_LARGEST, refuse=refuse)
    if not isinstance(document, dict):
        raise refuse("", "another value", "an object")
    if document.get("for") != json.loads(json.dumps(asdict(here))):
        raise refuse("/for", "other circumstances", "those that it is named after")
    engine = document.get("engine")
    if document.get("format") != FORMAT or engine not in ENGINES:
        raise refuse("/engine", repr(engine), f"format {FORMAT} and one of {', '.join(ENGINES)}")
    return str(engine)
