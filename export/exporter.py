"""Exporter: from weights to a bundle: plan, lower every stage, test the result, write it."""

from __future__ import annotations

import dataclasses
import signal
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jscc.export.lower import Lowered, Sizes, lower, release_memory
from jscc.export.proof import SYMBOLS
from jscc.export.sharing import share_weights
from jscc.runtime.bundle import Bundle, write_bundle
from jscc.runtime.csi import Csi
from jscc.runtime.declared import needed_format
from jscc.runtime.errors import UsageError
from jscc.runtime.manifest import Manifest, Selftest, SelftestCsi, TensorEntry
from jscc.runtime.ports import split_dim
from jscc.runtime.receiver import Receiver
from jscc.runtime.selftest import empty_sides
from jscc.runtime.sides import ENCODE
from jscc.runtime.transmitter import Transmitter
from jscc.runtime.write import check_destination

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from jscc.export.source import WeightSource
    from jscc.export.system import Options, Plan, System

    Progress = Callable[[str, int, int], None]

MADE_BY = f"jscc-edge {metadata.version('jscc-edge')}"
# A healthy engine reproduces the stored image to the last bit or nearly; a wrong kernel or a
# broken half precision lands far below this.
SELFTEST_FLOOR_DB = 30.0
SELFTEST_SEED = 2024
SELFTEST_STEPS = 2


@dataclass(frozen=True)
class Order:
    """What to export and where to.

    Attributes:
        name: The system's name.
        destination: Bundle to write; a folder, or one file when `single_file`.
        precision: ``fp32`` or ``fp16``.
        size: Fixed image height and width in pixels, or None for any size.
        overwrite: Whether an existing bundle may be replaced.
        single_file: Whether to write one uncompressed zip instead of a folder.
        options: What the system itself lets the caller choose.
    """

    name: str
    destination: Path
    precision: str
    size: tuple[int, int] | None
    overwrite: bool
    single_file: bool
    options: Options


def export(system: System, source: WeightSource, order: Order, progress: Progress) -> Bundle:
    """Lower `source` to a bundle at ``order.destination``.

    Every stage is proved against torch, the whole receiver runs once on a small image whose
    outcome is stored as the bundle's self-test, and only then does the bundle appear.

    Raises:
        CheckpointError: The checkpoint does not fit its configuration.
        ParityError: ``E_PARITY``, a graph differs from torch.
        OutputError: ``E_EXISTS``, the destination exists and may not be replaced.
    """
    check_destination(order.destination, overwrite=order.overwrite)  # before the long work
    plan = system.plan(source, order.options)
    sizes = Sizes(plan.image.multiple, _checked_size(order.size, plan))
    with tempfile.TemporaryDirectory(
        prefix=f".{order.destination.name}.export.", dir=order.destination.resolve().parent
    ) as scratch:
        folder = Path(scratch)
        lowered = {}
        for done, spec in enumerate(plan.stages):
            progress(spec.name, done, len(plan.stages) + 1)
            stage_folder = folder / spec.name
            stage_folder.mkdir()
            lowered[spec.name] = lower(spec, stage_folder, sizes, order.precision)
            release_memory(_bytes(lowered[spec.name].files))
        files = share_weights({name: folder / name / f"{name}.onnx" for name in lowered}, folder)
        entries = _store(plan.tensors, folder, files)
        manifest = _manifest(source, order, plan, lowered, entries)
        progress("self-test", len(plan.stages), len(plan.stages) + 1)
        manifest = _add_selftest(manifest, sizes, folder, files)
        return write_bundle(
            order.destination,
            manifest,
            files,
            overwrite=order.overwrite,
            single_file=order.single_file,
        )


def _checked_size(size: tuple[int, int] | None, plan: Plan) -> tuple[int, int] | None:
    """`size`, if every stage of `plan` can be made for it."""
    multiple, tile = plan.image.multiple, plan.image.tile
    if size is None:
        return None
    if any(side <= 0 or side % multiple for side in size):
        raise UsageError(
            "E_SIZE",
            f"--size: got {size[0]}x{size[1]}, expected multiples of {multiple}. "
            "Round up; images are padded to it.",
        )
    if size != (tile, tile) and (stages := _of_one_tile(plan)):
        raise UsageError(
            "E_SIZE",
            f"--size: got {size[0]}x{size[1]}, expected {tile}x{tile} or dynamic: stage "
            f"{stages[0]!r} is made for one tile. Leave it out; larger images run tile by tile.",
        )
    return size


def _of_one_tile(plan: Plan) -> list[str]:
    """Guides' stages that leave neither height nor width open."""
    guides = {guide for loop in plan.loops.values() for guide in loop.guides.values()}
    found = []
    for spec in plan.stages:
        dims = {dim for port in spec.inputs for dim in port.shape if isinstance(dim, str)}
        if spec.name in guides and not any(split_dim(dim)[0] in SYMBOLS for dim in dims):
            found.append(spec.name)
    return found


def _bytes(files: Mapping[str, Path]) -> int:
    return sum(file.stat().st_size for file in files.values())


def _store(
    tensors: Mapping[str, Callable[[], npt.NDArray[np.float32]]],
    folder: Path,
    files: dict[str, Path],
) -> dict[str, TensorEntry]:
    """Compute and save the program's constants; adds them to `files`."""
    return {name: _save(name, make(), folder, files) for name, make in tensors.items()}


def _save(name: str, array: npt.NDArray[Any], folder: Path, files: dict[str, Path]) -> TensorEntry:
    path = folder / f"{name}.npy"
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)
    files[f"tensors/{path.name}"] = path
    return TensorEntry(file=f"tensors/{path.name}", dtype=str(array.dtype), shape=array.shape)


def _manifest(
    source: WeightSource,
    order: Order,
    plan: Plan,
    lowered: Mapping[str, Lowered],
    tensors: Mapping[str, TensorEntry],
) -> Manifest:
    manifest = Manifest(
        system=order.name,
        variant=plan.variant,
        made_by=MADE_BY,
        source=source.describe(),
        files={},
        signal=plan.signal,
        image=plan.image,
        stages={name: stage.entry for name, stage in lowered.items()},
        tensors=tensors,
        program=plan.program,
        loops=plan.loops,
        descents=plan.descents,
        image_output=plan.image_output,
        side_inputs=(*_side_outputs(plan), *plan.side_inputs),
        precision=order.precision,
        calibration=None,
        parity={name: stage.parity for name, stage in lowered.items()},
        selftest=None,
        quality=None,
    )
    return dataclasses.replace(manifest, format=needed_format(manifest))


def _side_outputs(plan: Plan) -> tuple[str, ...]:
    """What the transmitter sends beside the symbols, which is side input of the receiver."""
    encode = next((spec for spec in plan.stages if spec.name == ENCODE), None)
    return () if encode is None else tuple(port.name for port in encode.outputs[1:])


def _add_selftest(
    manifest: Manifest, sizes: Sizes, folder: Path, files: dict[str, Path]
) -> Manifest:
    """Receive a small synthetic image once and store what was sent and what came out."""
    draft = write_bundle(folder / "draft.jscc", manifest, files)
    csi = Csi(snr_db=manifest.signal.snr_db_default)
    image = synthetic_image(*(sizes.fixed or (sizes.proved()["height"], sizes.proved()["width"])))
    symbols, sent = Transmitter(draft).send_with_side(image, csi=csi)
    steps = _selftest_steps(manifest)
    receiver = Receiver(draft, selftest=False)
    del draft  # the engine has a copy of the weights; two are enough while it loads
    release_memory(_bytes(files))
    received, _ = receiver.receive(
        symbols,
        csi,
        seed=SELFTEST_SEED,
        steps=steps or None,
        side={**empty_sides(manifest, image.shape[:2]), **sent},
    )
    del receiver
    release_memory(_bytes(files))
    tensors = dict(manifest.tensors)
    side = {name: f"selftest_side_{name}" for name in sent}
    stored = {side[name]: array for name, array in sent.items()}
    stored |= {"selftest_symbols": symbols, "selftest_image": received}
    for name, array in stored.items():
        tensors[name] = _save(name, array, folder, files)
    selftest = Selftest(
        symbols="selftest_symbols",
        image="selftest_image",
        csi=SelftestCsi(snr_db=csi.snr_db, gain=(csi.gain.real, csi.gain.imag)),
        seed=SELFTEST_SEED,
        steps=steps,
        psnr_floor_db=SELFTEST_FLOOR_DB,
        side=side,
    )
    tested = dataclasses.replace(manifest, tensors=tensors, selftest=selftest)
    return dataclasses.replace(tested, format=needed_format(tested))


def _selftest_steps(manifest: Manifest) -> int:
    """Few, but so many that every part of the program does something; 0 where none counts them."""
    rounds = [len(descent.rounds) for descent in manifest.descents.values()]
    return SELFTEST_STEPS * max(rounds, default=1 if manifest.loops else 0)


def synthetic_image(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A colour gradient with a disc and a grating: structure at every scale, no photograph."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    red, green = rows / height, columns / width
    disc = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (min(height, width) / 4) ** 2
    grating = 0.5 + 0.5 * np.sin(columns * columns / width)
    image = np.stack((red, np.where(disc, 0.9, green), 0.3 + 0.5 * grating * red), axis=-1)
    return (image * 255).astype(np.uint8)


def raise_on_terminate() -> None:
    """Turn SIGTERM into an exception, so that temporary folders are removed on the way out."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, stop)
