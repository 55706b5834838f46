"""Rewrite: a bundle with some of its graphs replaced."""

from __future__ import annotations

import dataclasses
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from jscc.calibration.graph import write_graph
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.declared import needed_format
from jscc.runtime.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir


@dataclass(frozen=True)
class Place:
    """Where a bundle is to appear.

    Attributes:
        path: Folder, or file.
        single_file: Whether it is one uncompressed zip.
        overwrite: Whether a bundle that is there may be replaced.
    """

    path: Path
    single_file: bool = False
    overwrite: bool = False


def rewrite(
    source: Bundle,
    models: Mapping[str, ir.Model],
    place: Place,
    *,
    precision: str,
    calibration: Mapping[str, object] | None,
    threads: int | None = None,
) -> Bundle:
    """Write `source` with the graphs of `models` in place of its own.

    The self-test's known image is received anew, since other arithmetic gives another; what the
    manifest says of parity with torch goes for the stages that are replaced.

    Raises:
        BundleError: The parts do not fit together.
        OutputError: ``E_EXISTS``, ``E_OUTPUT``: the destination cannot be made.
        StorageError: ``E_DISK_FULL``, ``E_IO``.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{place.path.name}.calibrate.", dir=place.path.resolve().parent
    ) as scratch:
        folder = Path(scratch)
        files: dict[str, bytes | Path] = {
            name: source.file(name)
            for name in source.manifest.files
            if name not in _replaced(source, models)
        }
        for stage, model in models.items():
            files |= write_graph(model, stage, folder)
        manifest = dataclasses.replace(
            source.manifest,
            stages={
                name: dataclasses.replace(stage, graph=f"graphs/{name}.onnx")
                if name in models
                else stage
                for name, stage in source.manifest.stages.items()
            },
            precision=precision,
            calibration=calibration,
            quality=source.manifest.quality if precision == source.manifest.precision else None,
            parity={k: v for k, v in source.manifest.parity.items() if k not in models},
            files={},
        )
        manifest = dataclasses.replace(manifest, format=needed_format(manifest))
        test = manifest.selftest
        if test is not None:
            draft = write_bundle(folder / "draft.jscc", manifest, files)
            backend = OnnxRuntimeBackend(threads=threads)
            known = Receiver(draft, backend=backend, selftest=False).receive_known(draft)
            del draft
            files[manifest.tensors[test.image].file] = npy_bytes(known)
        return write_bundle(
            place.path,
            manifest,
            files,
            single_file=place.single_file,
            overwrite=place.overwrite,
        )


def npy_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """A file of a bundle that holds `array`."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    return data.getvalue()


def _replaced(source: Bundle, models: Mapping[str, object]) -> set[str]:
    """The files that no other stage than those of `models` needs."""
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for name, stage in source.manifest.stages.items():
        weights = {f"graphs/{tensor.location}" for tensor in source.summaries[name].external}
        used[name in models] |= {stage.graph, *weights}
    return used[True] - used[False]
