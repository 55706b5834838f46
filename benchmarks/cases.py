"""Case: what every scenario measures alike, and the receiver that is set up for it.

Symbols are noise with the grid and power of an image's, see `jscc.runtime.probe`; what is
received from them says nothing of quality, and takes as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jscc.benchmarks.report import board, instructions
from jscc.runtime import engine_names
from jscc.runtime.backends import engines
from jscc.runtime.backends.base import Backend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.manifest import Manifest
from jscc.runtime.probe import make_sides, make_symbols
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record

Json = object


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        size: Height and width of the image in pixels.
        runs: Measured images, where a scenario counts images and not seconds.
        warmup: Images (or batches) before them that do not count.
        seed: Of the symbols and of the receiver's noise.
        sampler: None for the bundle's.
        steps: None for the bundle's.
        threads: None for all that are available.
        providers: Where to run.
        engine: One of `jscc.runtime.engine_names.ENGINES`.
    """

    size: tuple[int, int]
    runs: int
    warmup: int
    seed: int
    sampler: str | None
    steps: int | None
    threads: int | None
    providers: tuple[str, ...]
    engine: str = engine_names.DEFAULT

    @property
    def megapixels(self) -> float:
        """Size of an image in millions of pixels."""
        return self.size[0] * self.size[1] / 1e6

    @property
    def on_gpu(self) -> bool:
        """Whether a provider is wanted that computes on a device of NVIDIA's."""
        return any(name in ("cuda", "tensorrt") for name in self.providers)


class Setup:
    """A receiver with symbols for it; threads may share one.

    Args:
        bundle: What receives.
        case: How, and images of which size.
        batch: Images that are received together.
    """

    def __init__(self, bundle: Bundle, case: Case, *, batch: int = 1) -> None:
        manifest = bundle.manifest
        self._case = case
        self._receiver = Receiver(bundle, backend=make_backend(case))
        symbols = make_symbols(manifest, case.size, seed=case.seed)
        self._symbols = np.repeat(symbols[None], batch, axis=0)
        self._side = make_sides(manifest, case.size)  # one for all images of a batch
        self._csis = (Csi(manifest.signal.snr_db_default),) * batch

    def receive(self, frame: int) -> Record:
        """Receive a batch whose first image has number `frame`; the record of that image."""
        case = self._case
        _, records = self._receiver.receive_batch(
            self._symbols,
            self._csis,
            seed=case.seed,
            frame=frame,
            sampler=case.sampler,
            steps=case.steps,
            size=case.size,
            side=self._side,
        )
        return records[0]


def make_backend(case: Case) -> Backend:
    """The engine that a case runs on."""
    return engines.make_backend(case.engine, providers=case.providers, threads=case.threads)


def case_from(document: Mapping[str, Any]) -> Case:
    """A case as `dataclasses.asdict` and JSON have it."""
    known = {**document, "size": tuple(document["size"]), "providers": tuple(document["providers"])}
    return Case(**known)


def describe_bundle(bundle: Bundle) -> dict[str, Json]:
    """What a result says of the bundle that was measured."""
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    return {
        "name": bundle.path.name,
        "precision": manifest.precision,
        "sha256": bundle.sha256,
        "size_mib": round(size / 2**20, 3),
        "system": manifest.system,
        "variant": manifest.variant,
    }


def weights_of(manifest: Manifest) -> int:
    """Bytes of the graphs and constants that the receiver's program needs."""
    graphs = {manifest.stages[name].graph for name in manifest.receiver_stages}
    needed = graphs | {f"{graph}.data" for graph in graphs}
    needed |= {entry.file for entry in manifest.tensors.values()}
    return sum(entry.size for name, entry in manifest.files.items() if name in needed)


def heading(document: Mapping[str, Any], how: str) -> dict[str, str]:
    """The first lines of what a scenario prints.

    Args:
        document: What it measured.
        how: Its own words on the case, such as ``20 runs``.
    """
    bundle, case, machine = document["bundle"], document["case"], document["machine"]
    record = document["record"]
    loops = [f"{loop['steps']} steps ({loop['sampler']})" for loop in record["loops"].values()]
    threads = case["threads"] or machine["threads"]
    return {
        "bundle": f"{bundle['name']}, {bundle['system']}, {bundle['precision']}, "
        f"{bundle['size_mib']:.2f} MiB",
        "case": f"{case['scenario']}, {case['size'][0]}x{case['size'][1]}, {how}, "
        + (", ".join(loops) or "no steps"),
        "engine": f"{record['backend']} on {', '.join(sorted(set(record['providers'].values())))}, "
        f"{threads} threads",
        "machine": f"{machine['cpu']}{instructions(machine)}, {machine['threads']} threads"
        + board(machine),
        "commit": str(document["commit"]),
    }
