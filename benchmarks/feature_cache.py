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
from torch import Tensor, nn

from jscc.benchmarks.feature_cache_table import table
from jscc.benchmarks.report import provenance, write_result
from jscc.benchmarks.torch_backend import TorchBackend, TorchSession
from jscc.calibration.collect import Grid, receive, send_all
from jscc.calibration.images import describe_images, find_images, read_image
from jscc.calibration.lpips import load_lpips
from jscc.calibration.metrics import psnr_db
from jscc.export.gather import Request
from jscc.export.models.unet import Unet, kv_widths
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
    whole: bool = True
    _step: int = 0
    _before: float = -1.0

    def wrap(self, module: Any) -> nn.Module:
        """Let a `jscc.export.systems.diffjscc.Denoise` keep its features; it is changed itself."""
        module.control = _Control(module.control, self)
        module.unet = _Unet(module.unet, self)
        return _Steps(module, self)

    def begin(self, timestep: float) -> None:
        """Say which step comes; within an image they go down."""
        self._step = 0 if timestep >= self._before else self._step + 1
        self._before = timestep
        self.whole = self._step % self.every == 0


class _Steps(nn.Module):
    """The denoiser, each step counted and timed."""

    def __init__(self, module: nn.Module, cache: Cache) -> None:
        super().__init__()
        self.module = module
        self.cache = cache

    def forward(self, latent: Tensor, timestep: Tensor, *others: Tensor) -> Tensor:
        self.cache.begin(float(timestep[0]))
        begun = time.perf_counter()
        clean: Tensor = self.module(latent, timestep, *others)
        self.cache.seconds[self.cache.whole].append(time.perf_counter() - begun)
        return clean


class _Control(nn.Module):
    """What it said in the last whole step."""

    def __init__(self, control: nn.Module, cache: Cache) -> None:
        super().__init__()
        self.control = control
        self.cache = cache
        self._said: tuple[Tensor, ...] = ()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.cache.whole:
            self._said = self.control(*inputs)
        return self._said


class _Unet(nn.Module):
    """Section 3.2: its outermost blocks around what those inside made in the last whole step."""

    def __init__(self, unet: Unet, cache: Cache) -> None:
        super().__init__()
        self.unet = unet
        self.cache = cache
        self._inner: Tensor | None = None

    def forward(
        self, x: Tensor, timestep: Tensor, kv: Tensor, residuals: Sequence[Tensor]
    ) -> Tensor:
        unet, depth = self.unet, self.cache.depth
        pieces = torch.split(kv, kv_widths(unet), dim=-1)
        embedding = unet.time_embed(unet.sinusoid(timestep))
        skips, h = [], x
        for block in unet.input_blocks if self.cache.whole else unet.input_blocks[:depth]:
            h = block(h, embedding, pieces)
            skips.append(h)
        if self.cache.whole:
            h = unet.middle_block(h, embedding, pieces) + residuals[-1]
        skips = [skip + more for skip, more in zip(skips, residuals, strict=False)]
        if self.cache.whole:
            for block in unet.output_blocks[:-depth]:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding, pieces)
            self._inner = h
        assert self._inner is not None
        h = self._inner
        for block in unet.output_blocks[-depth:]:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding, pieces)
        eps: Tensor = unet.out(h).float()
        return eps


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
        return TorchSession(stage, entry, self.cache.wrap(session.module))


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
        for steps, every in settings(options.steps, options.every):
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


def settings(steps: Sequence[int], every: Sequence[int]) -> list[tuple[int, int]]:
    """Every number of steps with every "one whole of so many"; of more than all, all."""
    pairs = ((count, min(each, count)) for count, each in itertools.product(steps, every))
    return list(dict.fromkeys(pairs))


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
