"""Diffusers receiver: DiffJSCC as a pipeline of diffusers would run it, with our weights.

    symbols ─ decode ─ condition ─▶ ControlNetModel ─ UNet2DConditionModel ┐ × steps ─▶ render
                                    └──────── scheduler.step ◀─────────────┘

Both networks, the scheduler and the loop between them are diffusers'; the stages around the loop
are our modules in PyTorch, as in `jscc.benchmarks.torch_backend`. Admission, padding, tiles and
noise are the runtime's, so that with a scheduler that does what our sampler does both receive the
same picture. Unlike there, the networks compute keys and values of the text in every step.

NOTE: diffusers is no dependency. It is imported when a receiver is made.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jscc.benchmarks.diffusers_schedulers import (
    SCHEDULERS,
    drawing,
    make_scheduler,
    spacing_for,
)
from jscc.benchmarks.peer_diffusers import convert, find_noise
from jscc.benchmarks.torch_backend import TorchBackend
from jscc.runtime.arithmetic import HostArithmetic, Mix
from jscc.runtime.backends.base import OnCpu
from jscc.runtime.choices import Choices
from jscc.runtime.errors import UnavailableError, UsageError
from jscc.runtime.job import Request, Rules
from jscc.runtime.manifest_loops import LoopStep
from jscc.runtime.noise import PhiloxNoise
from jscc.runtime.ports import check_ports, resolve
from jscc.runtime.preprocess import check_drawn, drawn, restore
from jscc.runtime.program import Program, Run, load_stages
from jscc.runtime.schedule import schedule_from
from jscc.runtime.stage import Stage, Trace
from jscc.runtime.tiling import tile_image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jscc.export import gather
    from jscc.export.models.unet import Control, Unet
    from jscc.runtime.bundle import Bundle
    from jscc.runtime.csi import Csi
    from jscc.runtime.job import Job
    from jscc.runtime.loop import LoopPlan
    from jscc.runtime.manifest import Manifest
    from jscc.runtime.ports import Array
    from jscc.runtime.receiver import Pixels, Symbols

SYSTEM, STAGE, CONTEXT, NOISE = "diffjscc", "denoise", "context_kv", "noise"
_FAR = 1e-2  # of keys and values: further off, they are of other weights


@dataclass(frozen=True)
class Told:
    """What ran for one image; the fields are those of `jscc.runtime.record.Record`."""

    backend: str
    steps: int
    times_ms: Mapping[str, float]
    providers: Mapping[str, str] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()


class DiffusersReceiver:
    """The receiver's side of a DiffJSCC bundle on diffusers, on the CPU in float32.

    Args:
        bundle: What is received with; of its graphs none is run.
        request: The weights that it was exported from.
        threads: Of PyTorch.

    Raises:
        CheckpointError: The weights do not fit.
        UnavailableError: ``E_MODULE``, diffusers is not installed.
        UsageError: ``E_USAGE``, the bundle is of another system, is given its text at run time,
            or is of other weights; or diffusers has no such network.
    """

    def __init__(self, bundle: Bundle, request: gather.Request, threads: int) -> None:
        manifest = bundle.manifest
        _check_bundle(manifest)
        self._name = f"diffusers {_diffusers().__version__}"
        modules = TorchBackend.of_bundle(bundle, request, threads)
        self._manifest = manifest
        self._rules = Rules(
            manifest,
            {name: schedule_from(loop.schedule) for name, loop in manifest.loops.items()},
            manifest.image.max_pixels,
            strict_snr=False,
            captioned=False,
        )
        place = manifest.program.index(LoopStep(STAGE))
        names = [name for name in manifest.receiver_stages if name != STAGE]
        stages = load_stages(bundle, names, modules)
        self._before = Program(manifest.program[:place], stages, {}, {}, {})
        self._after = Program(manifest.program[place + 1 :], stages, {}, {}, {})
        self._stage = _stage(bundle, modules)

    def receive(
        self,
        symbols: Symbols,
        csi: Csi,
        *,
        seed: int,
        frame: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        size: tuple[int, int] | None = None,
        side: Mapping[str, Array] | None = None,
    ) -> tuple[Pixels, Told]:
        """Receive one image; see `jscc.runtime.receiver.Receiver.receive`.

        A bundle's regimes are not followed: nothing but sampler and steps says what is run.

        Raises:
            JsccError: As there, and UsageError: ``E_SAMPLER``, ``E_SPACING``, see
                `jscc.benchmarks.diffusers_schedulers`; ``E_USAGE``, the bundle asks for a guide.
        """
        begun = time.perf_counter()
        sampler = sampler or self._manifest.loops[STAGE].sampler.name
        choices = Choices(sampler, steps, spacing=spacing_for(sampler, spacing))
        given = {} if side is None else side
        request = Request(symbols[None], (csi,), seed, frame, choices, size, given, None)
        job, trace = self._rules.check(request), Trace()
        plan = job.plans[STAGE]
        _check_plan(plan)
        image = self._carry(job, trace)
        pixels, flags = drawn(image[0].astype(np.float32), self._manifest.image.rounding)
        check_drawn(flags, frame)
        shown = restore(pixels, job.geometry)
        trace.add("total", begun)
        return shown, Told(self._name, plan.paths[0].table.evaluations, dict(trace.times_ms))

    def _carry(self, job: Job, trace: Trace) -> Array:
        """Run what lies before the loop, the loop, and what lies behind it."""
        manifest, (admitted,) = self._manifest, job.admitted
        height, width = job.geometry.padded
        contract = manifest.image
        run = Run(
            sizes={"batch": 1, "height": height, "width": width, "planes": job.planes},
            tiling=tile_image(
                height,
                width,
                tile=contract.tile,
                overlap=contract.overlap,
                multiple=contract.multiple,
            ),
            plans={},
            descents={},
            noise=PhiloxNoise(),
            seed=job.seed,
            frame=job.frame,
            supply=_supply_nothing,
        )
        given: dict[str, Array] = {
            "received": admitted.planes[None],
            "snr_db": np.array([admitted.snr_db], np.float32),
            "gain": np.array([[admitted.csi.gain.real, admitted.csi.gain.imag]], np.float32),
            **job.side,
        }
        tensors = {**given, **self._before.execute(given, run, trace)}
        tensors[manifest.loops[STAGE].state] = self._loop(job.plans[STAGE], tensors, run, trace)
        return self._after.execute(tensors, run, trace)[manifest.image_output]

    def _loop(self, plan: LoopPlan, tensors: Mapping[str, Array], run: Run, trace: Trace) -> Array:
        """Start as our loops do, and let diffusers go on from there."""
        (path,) = plan.paths
        loop, ports = self._manifest.loops[STAGE], self._stage.entry.inputs
        shape = resolve(next(port for port in ports if port.name == loop.state), run.sizes)
        levels = [row.t for row in path.table.rows if row.t is not None]
        scheduler = make_scheduler(plan.sampler, loop.schedule, levels)
        draws = SCHEDULERS[plan.sampler].draws
        arithmetic = HostArithmetic(run.noise, run.seed, run.frame)
        start = None if plan.start_tensor is None else tensors[plan.start_tensor]
        mix = Mix(path.signal, path.noise)
        state = torch.from_numpy(arithmetic.start(shape, start, [mix], plan.first_draw))
        for number, level in enumerate(scheduler.timesteps, plan.first_draw + 1):
            own = {loop.state: state.numpy(), "timestep": np.array([level], np.float32)}
            fed = {port.name: {**tensors, **own}[port.name] for port in ports}
            noise = torch.from_numpy(self._stage.run(fed, run.tiling, trace)[NOISE])
            draw = partial(arithmetic.noise, shape, number) if draws else None
            with drawing(scheduler, draw):
                state = scheduler.step(noise, level, state, return_dict=False)[0]
        return state.numpy()


@dataclass(frozen=True)
class Networks(OnCpu):
    """Both networks of diffusers as a stage that answers with the noise in the latent.

    Attributes:
        control: ``ControlNetModel``.
        unet: ``UNet2DConditionModel``.
        context: What they attend to, float32[1, tokens, width].
        snr_scale: The SNR in dB is multiplied by this …
        min_snr: … and then this is subtracted.
    """

    control: Any
    unet: Any
    context: Tensor
    snr_scale: float
    min_snr: float

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Ask once."""
        check_ports(self.stage, self.inputs, arrays)
        fed = {port.name: torch.from_numpy(arrays[port.name].copy()) for port in self.inputs}
        latent, timestep, context = fed["latent"], fed["timestep"], self.context
        label = self.snr_scale * fed["snr_db"] - self.min_snr if "snr_db" in fed else None
        with torch.inference_mode():
            noise = find_noise(
                self.control, self.unet, latent, timestep, context, fed["hint"], label
            )
        return {NOISE: noise.numpy()}


def context_of(context_kv: Array, control: Control, unet: Unet) -> Tensor:
    """The context that keys and values were made of, by least squares.

    Keys and values are linear in the context, and many more than it has numbers. So the text of any
    bundle is found without its tower, whatever the prompt was, and it is seen whether the
    bundle is of these weights.

    Args:
        context_kv: float32[1, tokens, S], as `jscc.export.systems.diffjscc.Prompt` makes them.
        control: Ours, with weights.
        unet: Likewise.

    Returns:
        float32[1, tokens, width].

    Raises:
        UsageError: ``E_USAGE``, no context makes these keys and values.
    """
    unit = torch.eye(unet.config.context_dim)[None]
    with torch.no_grad():
        made = torch.cat([unet.project_context(unit), control.project_context(unit)], dim=-1)
        rows, wanted = made[0].double(), torch.tensor(context_kv[0]).double()
        solved = torch.linalg.lstsq(rows @ rows.T, rows @ wanted.T, driver="gelsd").solution.T
        gap = float((solved @ rows - wanted).norm()), float(wanted.norm())
    if gap[0] > _FAR * gap[1]:
        raise UsageError(
            "E_USAGE",
            f"weights: got some that miss the bundle's keys and values by {gap[0] / gap[1]:.0%}, "
            "expected those that it was exported from. Name them with --checkpoint, or with "
            "--config and --random-weights.",
        )
    context: Tensor = solved.float()[None].contiguous()
    return context


def _stage(bundle: Bundle, modules: TorchBackend) -> Stage:
    """diffusers' networks in the place of the bundle's denoiser."""
    entry = bundle.manifest.stages[STAGE]
    entry = replace(
        entry,
        inputs=tuple(port for port in entry.inputs if port.name != CONTEXT),
        outputs=(replace(entry.outputs[0], name=NOISE),),
    )
    module: Any = modules.specs[STAGE].build()
    config = module.control.config
    try:
        control, unet = convert(module.control, module.unet)
    except ValueError as error:
        raise UsageError("E_USAGE", str(error)) from error
    context = context_of(bundle.tensor(CONTEXT), module.control, module.unet)
    networks = Networks(STAGE, entry, control, unet, context, config.snr_scale, config.min_snr)
    return Stage(STAGE, entry, networks)


def _diffusers() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "E_MODULE",
            f"engine 'diffusers': got no module {error.name!r}, expected it installed. "
            "Run: pip install 'jscc-edge[peers]', or leave it out.",
        ) from error


def _check_bundle(manifest: Manifest) -> None:
    if manifest.system != SYSTEM:
        raise UsageError(
            "E_USAGE",
            f"engine 'diffusers': got a bundle of {manifest.system!r}, expected {SYSTEM!r}, whose "
            "networks diffusers has. Run it on another engine.",
        )
    if CONTEXT not in manifest.tensors:
        raise UsageError(
            "E_USAGE",
            "engine 'diffusers': got a bundle that is given its text at run time, expected one "
            "with --text none or fixed. Export it so, or run it on another engine.",
        )


def _check_plan(plan: LoopPlan) -> None:
    if any(path.guidance for path in plan.paths) or plan.travel[1] > 1:
        raise UsageError(
            "E_USAGE",
            "engine 'diffusers': got a bundle whose loop is guided or runs stretches again, "
            "expected neither: its schedulers do not. Run it on another engine.",
        )


def _supply_nothing(name: str, tensors: Mapping[str, Array]) -> None:
    del name, tensors
