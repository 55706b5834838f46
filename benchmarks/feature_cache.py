"""Feature cache: does reusing a denoiser's inner features pay, against simply fewer steps?

Xinyin Ma et al., "DeepCache: Accelerating Diffusion Models for Free", arXiv 2312.00858, section
3.2: of N consecutive steps the first runs the whole UNet; the others run its outermost blocks only,
and take what comes from below as the first left it. The control module, which reads the same
features, rests with them.

    jscc bench feature-cache BUNDLE --images DIR --steps 10,6,5 --every 1,2

The modules run in PyTorch, as the exporter would lower them. What a step costs is the time of its
kind over the time of a whole one, both measured here.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jscc.benchmarks.feature_cache_table import table
from jscc.benchmarks.report import provenance, write_result
from jscc.benchmarks.torch_backend import TorchBackend, TorchSession
from jscc.calibration.collect import Grid, receive, send_all
from jscc.calibration.images import describe_images, find_images, read_image
from jscc.calibration.lpips import load_lpips
from jscc.calibration.metrics import psnr_db
from jscc.export.gather import Request
from jscc.export.system import Options
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import decibels, positive, seed
from jscc.runtime.errors import UsageError
from jscc.runtime.machine import available_threads
from jscc.runtime.output_files import check_destination
from jscc.runtime.receiver import Receiver
from jscc.runtime.terminal import Progress, say
from jscc.runtime.transmitter import Transmitter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from jscc.calibration.lpips import Lpips
    from jscc.export.system import StageSpec
    from jscc.runtime.backends.base import Backend, Session
    from jscc.runtime.manifest import StageEntry

SYSTEM, STAGE = "diffjscc", "denoise"


@dataclass
class Cache:
    """What a denoiser keeps between steps.

    Attributes:
        every: Of so many steps one is whole.
        depth: Outermost blocks, on each side, that every step runs.
        seconds: Of each step, by whether it was whole.
    """

    every: int
    depth: int
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    _step: int = 0
    _before: float = -1.0
    _inner: Tensor | None = None
    _residuals: tuple[Tensor, ...] = ()

    def denoise(
        self,
        module: Any,
        latent: Tensor,
        timestep: Tensor,
        hint: Tensor,
        context_kv: Tensor,
        snr_db: Tensor | None = None,
    ) -> Tensor:
        """As `module` does, `jscc.export.systems.diffjscc.Denoise`, from time to time in part."""
        now = float(timestep[0])
        self._step = 0 if now >= self._before else self._step + 1  # time goes down in an image
        self._before = now
        whole = self._step % self.every == 0
        begun = time.perf_counter()
        unet_kv, control_kv = torch.split(context_kv, module.split, dim=-1)
        if whole:
            self._residuals = module.control(latent, hint, timestep, snr_db, control_kv)
        eps = self._unet(module.unet, latent, timestep, unet_kv, whole=whole)
        self.seconds[whole].append(time.perf_counter() - begun)
        index = timestep.to(torch.int64)
        recip, recipm1 = (
            factors[index].reshape(-1, 1, 1, 1) for factors in (module.recip, module.recipm1)
        )
        clean: Tensor = recip * latent - recipm1 * eps
        return clean

    def _unet(self, unet: Any, x: Tensor, timestep: Tensor, kv: Tensor, *, whole: bool) -> Tensor:
        """Section 3.2: the inner blocks' output, of this step or of the last whole one."""
        widths = [w for block in _blocks(unet) for w in [block.attn2.to_k.out_features] * 2]
        pieces = torch.split(kv, widths, dim=-1)
        embedding = unet.time_embed(unet.sinusoid(timestep))
        skips, h = [], x
        for block in unet.input_blocks if whole else unet.input_blocks[: self.depth]:
            h = block(h, embedding, pieces)
            skips.append(h)
        if whole:
            h = unet.middle_block(h, embedding, pieces) + self._residuals[-1]
        skips = [skip + more for skip, more in zip(skips, self._residuals, strict=False)]
        if whole:
            for block in unet.output_blocks[: -self.depth]:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, pieces)
            self._inner = h
        assert self._inner is not None
        h = self._inner
        for block in unet.output_blocks[-self.depth :]:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, pieces)
        eps: Tensor = unet.out(h).float()
        return eps


def _blocks(unet: Any) -> list[Any]:
    """The transformer blocks in the order of their keys and values."""
    found = [module for module in unet.modules() if hasattr(module, "slot")]
    return sorted(found, key=lambda block: block.slot)


@dataclass(frozen=True)
class CachingBackend:
    """PyTorch whose denoise stage goes through a `Cache`; `jscc.runtime.backends.base.Backend`."""

    inner: TorchBackend
    cache: Cache

    @property
    def name(self) -> str:
        """Engine library and version."""
        return self.inner.name

    def fallback(self) -> Backend | None:
        """There is none."""
        return None

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Build the stage's module."""
        session = self.inner.load(stage, entry, graph, external)
        if stage != STAGE:
            return session
        assert isinstance(session, TorchSession)
        cached: Any = _Cached(session.module, self.cache)
        return TorchSession(stage, entry, cached)


class _Cached(torch.nn.Module):
    def __init__(self, module: torch.nn.Module, cache: Cache) -> None:
        super().__init__()
        self.module = module
        self.cache = cache

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.cache.denoise(self.module, *tensors)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``jscc bench feature-cache``."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="of diffjscc, fp32")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to send")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N of them")
    parser.add_argument("--snr", type=decibels, default=7.0, metavar="DB", help="default 7")
    parser.add_argument("--steps", type=_numbers, default=(10, 6, 5), help="by commas")
    parser.add_argument("--every", type=_numbers, default=(1, 2), help="by commas; 1: no cache")
    parser.add_argument("--depth", type=positive, default=1, help="blocks that every step runs")
    parser.add_argument("--lpips-weights", type=Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: all available")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default 0")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurement here")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(word) for word in text.split(","))


def run(options: argparse.Namespace) -> int:
    """Run ``jscc bench feature-cache``."""
    if options.json is not None:
        check_destination(options.json, force=options.force)
    lpips = load_lpips(options.lpips_weights)
    bundle = Bundle.open(options.bundle)
    if bundle.manifest.system != SYSTEM:
        raise UsageError(
            "E_USAGE",
            f"bundle: got one of {bundle.manifest.system!r}, expected {SYSTEM!r}, whose UNet has "
            "features to keep. Give another.",
        )
    threads = options.threads or available_threads()
    files = find_images(options.images, options.limit)
    inner = TorchBackend.of(SYSTEM, Request(), Options(), threads)
    _check_depth(options.depth, inner.specs)
    images = {file.name: read_image(file) for file in files}
    for name, image in images.items():
        tile = bundle.manifest.image.tile
        if 0 < tile < max(image.shape[:2]):
            raise UsageError(
                "E_USAGE",
                f"{name}: got {image.shape[0]}x{image.shape[1]}, expected sides of at most {tile}: "
                "tiles would share one cache. Give smaller images.",
            )
    grid = Grid((options.snr,), seed=options.seed)
    airings = send_all(Transmitter(bundle, backend=OnnxRuntimeBackend()), images, grid)
    progress = Progress("jscc bench feature-cache")
    rows = []
    try:
        for steps, every in itertools.product(options.steps, options.every):
            cache = Cache(every, options.depth)
            receiver = Receiver(bundle, backend=CachingBackend(inner, cache), selftest=False)
            rows.append(_row(receiver, airings, grid, steps, cache, lpips, progress.advance))
            del receiver  # the next has a network of its own
    finally:
        progress.close()
    document = {
        **provenance(),
        "threads": threads,
        "seed": options.seed,
        "snr_db": options.snr,
        "depth": options.depth,
        "images": describe_images(files),
        "rows": rows,
    }
    say(table(document))
    if options.json is not None:
        write_result(options.json, "feature-cache", document)
    return 0


def _check_depth(depth: int, specs: Mapping[str, StageSpec]) -> None:
    blocks = len(_module(specs).unet.input_blocks)
    if depth >= blocks:
        raise UsageError(
            "E_USAGE", f"--depth: got {depth}, expected 1 to {blocks - 1}. Correct it."
        )


def _module(specs: Mapping[str, StageSpec]) -> Any:
    return specs[STAGE].build()


def _row(
    receiver: Receiver,
    airings: Sequence[Any],
    grid: Grid,
    steps: int,
    cache: Cache,
    lpips: Lpips,
    progress: Callable[[str], None],
) -> dict[str, object]:
    """Quality of one setting, and what its steps cost in whole ones."""
    asked = Grid(grid.snrs_db, steps=steps, seed=grid.seed)
    figures = []
    for airing in airings:
        image = receive(receiver, airing, asked)
        figures.append((psnr_db(airing.image, image), lpips(airing.image, image)))
        progress(f"{steps} steps, every {cache.every}")
    whole = statistics.median(cache.seconds[True])
    part = statistics.median(cache.seconds[False]) if cache.seconds[False] else 0.0
    counts = [len(cache.seconds[kind]) / len(airings) for kind in (True, False)]
    return {
        "steps": steps,
        "every": cache.every,
        "whole_steps": counts[0],
        "part_steps": counts[1],
        "part_cost": part / whole,
        "cost": counts[0] + counts[1] * part / whole,
        "psnr_db": statistics.fmean(psnr for psnr, _ in figures),
        "lpips": statistics.fmean(distance for _, distance in figures),
    }
