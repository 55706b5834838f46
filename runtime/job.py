"""Job: one call of the receiver, checked before any network runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jscc.runtime.admission import (
    Admitted,
    admit,
    check_dtype,
    planes_received,
    shape_symbols,
)
from jscc.runtime.choices import Choices
from jscc.runtime.csi import Csi
from jscc.runtime.descent import LEARNING_RATE, DescentPlan, plan_descent
from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.loop import LoopPlan, plan_loop
from jscc.runtime.manifest import Manifest
from jscc.runtime.manifest_loops import Regime
from jscc.runtime.ports import Array, describe
from jscc.runtime.preprocess import Geometry, Size, geometry_of
from jscc.runtime.schedule import Schedule
from jscc.runtime.sides import check_sides

Symbols = npt.NDArray[np.complex64]
Mask = npt.NDArray[np.bool_]
Shape = tuple[int, int, int]

_WORDS = 1 << 64  # seeds and frame numbers


@dataclass(frozen=True)
class Request:
    """What a caller of `jscc.runtime.receiver.Receiver.receive_batch` asks."""

    symbols: Symbols
    csis: Sequence[Csi]
    seed: int
    frame: int
    choices: Choices
    size: Size | None
    side: Mapping[str, Array]
    erased: Mask | None

    def only(self, index: int) -> "Request":
        """The request for one of its images."""
        part, count = slice(index, index + 1), len(self.csis)
        return replace(
            self,
            symbols=self.symbols[part],
            csis=self.csis[part],
            frame=self.frame + index,
            side={
                name: array[part] if len(array) == count else array
                for name, array in self.side.items()
            },
            erased=None if self.erased is None else self.erased[part],
        )


@dataclass(frozen=True)
class Job:
    """What the receiver will do.

    Attributes:
        admitted: The images' symbols.
        geometry: Sizes of each image.
        planes: Planes that each was sent as.
        plans: Loops by stage.
        descents: Descents by name.
        side: Side inputs that the caller gave.
        seed: Of the noise.
        frame: Number of the first image.
        regimes: The regime that each image's SNR falls in, by loop; empty where none decides.
    """

    admitted: tuple[Admitted, ...]
    geometry: Geometry
    planes: int
    plans: Mapping[str, LoopPlan]
    descents: Mapping[str, DescentPlan]
    side: Mapping[str, Array]
    seed: int
    frame: int
    regimes: tuple[Mapping[str, Regime], ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether the images' SNRs fall in several regimes, so that nothing is planned for all."""
        return any(each != self.regimes[0] for each in self.regimes[1:])

    @property
    def alone(self) -> bool:
        """Whether the codec's image is left as it is."""
        first = self.regimes[0] if self.regimes else {}
        return any(regime.steps == 0 for regime in first.values())

    def only(self, index: int) -> "Job":
        """The job for one of its images."""
        part = slice(index, index + 1)
        plans = {name: replace(plan, paths=plan.paths[part]) for name, plan in self.plans.items()}
        side = {
            name: array[part] if len(array) == len(self.admitted) else array
            for name, array in self.side.items()
        }
        return replace(
            self,
            admitted=self.admitted[part],
            plans=plans,
            side=side,
            frame=self.frame + index,
            regimes=self.regimes[part],
        )


@dataclass(frozen=True)
class Rules:
    """What requests are held to.

    Attributes:
        manifest: Of the bundle.
        schedules: Of its loops, by stage.
        max_pixels: Largest padded image.
        strict_snr: Refuse an SNR outside the trained range.
        captioned: Whether side inputs may be left out.
    """

    manifest: Manifest
    schedules: Mapping[str, Schedule]
    max_pixels: int
    strict_snr: bool
    captioned: bool

    def check(self, request: Request) -> Job:
        """The job that does what `request` asks.

        Raises:
            JsccError: What `jscc.runtime.receiver.Receiver.receive` lists as refused.
        """
        check_dtype(request.symbols, "symbols")
        _check_numbers(request)
        geometry, shape = self._geometry(request)
        self._check_sides(request, geometry, 2 * shape[0])
        admitted = tuple(
            self._admit(request, index, shape) for index in range(len(request.symbols))
        )
        self._check_settings(request.choices)
        descents = self._plan_descents(request.choices)
        job = Job(
            admitted,
            geometry,
            2 * shape[0],
            {},
            descents,
            request.side,
            request.seed,
            request.frame,
            self._regimes(request.choices, admitted),
        )
        if job.mixed or job.alone:
            self._plan(request.choices, (), admitted)  # what is asked is held to the loop anyway
            return job
        return replace(job, plans=self._plan(request.choices, job.regimes, admitted))

    def _geometry(self, request: Request) -> tuple[Geometry, Shape]:
        """Sizes of the image, and the shape that its symbols have to have."""
        signal, contract = self.manifest.signal, self.manifest.image
        stride, half = signal.stride, signal.planes // 2
        size = request.size
        if size is None:
            if request.symbols.ndim != 4:
                raise SymbolsError(
                    "E_SYM_COUNT",
                    f"symbols: got {list(request.symbols.shape[1:])}, expected "
                    f"[{half},rows,columns]. Give the size of the image that was sent.",
                )
            size = (stride * request.symbols.shape[2], stride * request.symbols.shape[3])
            contract = replace(contract, short_edge=0)
        geometry = geometry_of(size, contract, self.max_pixels)
        grid = (geometry.padded[0] // stride, geometry.padded[1] // stride)
        planes = planes_received(request.symbols.shape[1:], grid, signal, where="symbols")
        return geometry, (planes // 2, *grid)

    def _admit(self, request: Request, index: int, shape: Shape) -> Admitted:
        where = "symbols" if len(request.symbols) == 1 else f"symbols of image {index}"
        flat = request.size is not None
        symbols = shape_symbols(request.symbols[index], shape, flat=flat, where=where)
        erased = None if request.erased is None else request.erased[index].reshape(shape)
        csi, signal, strict = request.csis[index], self.manifest.signal, self.strict_snr
        return admit(symbols, erased, csi, signal, strict_snr=strict, where=where)

    def _regimes(
        self, choices: Choices, admitted: Sequence[Admitted]
    ) -> tuple[Mapping[str, Regime], ...]:
        """What each image's SNR decides, where the caller leaves it open."""
        loops = self.manifest.loops
        if not choices.leave_the_way_open or not any(
            each.sampler.regimes for each in loops.values()
        ):
            return ()
        return tuple(
            {
                name: regime
                for name, loop in loops.items()
                if (regime := loop.sampler.regime_at(image.equalised_snr_db)) is not None
            }
            for image in admitted
        )

    def _plan(
        self,
        choices: Choices,
        regimes: Sequence[Mapping[str, Regime]],
        admitted: Sequence[Admitted],
    ) -> dict[str, LoopPlan]:
        loops, descends = self.manifest.loops, bool(self.manifest.descents)
        steps, settings = choices.steps, choices.settings
        allowed = Choices(steps=steps, settings=settings) if descends else Choices()
        if not loops and choices != allowed:
            expected = "only steps and settings" if descends else "nothing"
            raise UsageError(
                "E_NO_LOOP",
                f"sampling: got {choices}, expected {expected}: this bundle has no loop. "
                "Leave the sampler's options out.",
            )
        snrs_db = [image.equalised_snr_db for image in admitted]
        stages = self.manifest.stages
        return {
            name: plan_loop(
                loop,
                self.schedules[name],
                choices.within(regimes[0][name]) if regimes and name in regimes[0] else choices,
                snrs_db,
                number,
                directed=any(port.name == "direction" for port in stages[name].outputs),
            )
            for number, (name, loop) in enumerate(sorted(loops.items()))
        }

    def _check_settings(self, choices: Choices) -> None:
        known = {name for each in self.manifest.loops.values() for name in each.settings}
        for descent in self.manifest.descents.values():
            known |= {LEARNING_RATE, *descent.settings}
        unknown = sorted(set(choices.settings) - known)
        if unknown:
            raise UsageError(
                "E_SETTING",
                f"settings: got {', '.join(unknown)}, expected {', '.join(sorted(known)) or 'none'}"
                ". Correct the name or leave it out.",
            )

    def _plan_descents(self, choices: Choices) -> dict[str, DescentPlan]:
        loops = len(self.manifest.loops)
        return {
            name: plan_descent(descent, choices, loops + number)
            for number, (name, descent) in enumerate(sorted(self.manifest.descents.items()))
        }

    def _check_sides(self, request: Request, geometry: Geometry, planes: int) -> None:
        height, width = geometry.padded
        sizes = {"batch": len(request.symbols), "height": height, "width": width, "planes": planes}
        check_sides(self.manifest, request.side, sizes, captioned=self.captioned)


def _check_numbers(request: Request) -> None:
    """Hold counts, seed and frame to each other."""
    symbols, erased, seed, frame = request.symbols, request.erased, request.seed, request.frame
    count = len(symbols) if symbols.ndim > 1 else 0
    if not count or len(request.csis) != count:
        raise UsageError(
            "E_BATCH",
            f"csis: got {len(request.csis)} for {count} images, expected one per image, and one "
            "image or more. Give them all.",
        )
    if not (0 <= seed < _WORDS and 0 <= frame <= _WORDS - count):
        raise UsageError(
            "E_SEED",
            f"seed, frame: got {seed}, {frame}, expected 0 to 2**64 - 1 each. Correct them.",
        )
    if erased is not None and (erased.dtype != np.bool_ or erased.shape != symbols.shape):
        raise UsageError(
            "E_ERASED",
            f"erased: got {describe(erased)}, expected bool[{','.join(map(str, symbols.shape))}], "
            "shaped like the symbols. Correct it.",
        )
