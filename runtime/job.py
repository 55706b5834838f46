"""Job: one call of the receiver, checked before any network runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jscc.runtime.admission import Admitted, admit, check_dtype, shape_symbols
from jscc.runtime.csi import Csi
from jscc.runtime.errors import SymbolsError, UsageError
from jscc.runtime.loop import Choices, LoopPlan, plan_loop
from jscc.runtime.manifest import Manifest
from jscc.runtime.ports import Array, describe
from jscc.runtime.preprocess import Geometry, Size, geometry_of
from jscc.runtime.schedule import Schedule

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


@dataclass(frozen=True)
class Job:
    """What the receiver will do.

    Attributes:
        admitted: The images' symbols.
        geometry: Sizes of each image.
        plans: Loops by stage.
        side: Side inputs that the caller gave.
        seed: Of the noise.
        frame: Number of the first image.
    """

    admitted: tuple[Admitted, ...]
    geometry: Geometry
    plans: Mapping[str, LoopPlan]
    side: Mapping[str, Array]
    seed: int
    frame: int

    def only(self, index: int) -> "Job":
        """The job for one of its images."""
        part = slice(index, index + 1)
        plans = {name: replace(plan, paths=plan.paths[part]) for name, plan in self.plans.items()}
        side = {
            name: array[part] if len(array) == len(self.admitted) else array
            for name, array in self.side.items()
        }
        return replace(
            self, admitted=self.admitted[part], plans=plans, side=side, frame=self.frame + index
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
        self._check_sides(request.side)
        admitted = tuple(
            self._admit(request, index, shape) for index in range(len(request.symbols))
        )
        plans = self._plan(request.choices, admitted)
        return Job(admitted, geometry, plans, request.side, request.seed, request.frame)

    def _geometry(self, request: Request) -> tuple[Geometry, Shape]:
        """Sizes of the image, and the shape that its symbols have to have."""
        stride, half = self.manifest.signal.stride, self.manifest.signal.planes // 2
        contract = self.manifest.image
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
        return geometry, (half, geometry.padded[0] // stride, geometry.padded[1] // stride)

    def _admit(self, request: Request, index: int, shape: Shape) -> Admitted:
        where = "symbols" if len(request.symbols) == 1 else f"symbols of image {index}"
        flat = request.size is not None
        symbols = shape_symbols(request.symbols[index], shape, flat=flat, where=where)
        erased = None if request.erased is None else request.erased[index].reshape(shape)
        csi, signal, strict = request.csis[index], self.manifest.signal, self.strict_snr
        return admit(symbols, erased, csi, signal, strict_snr=strict, where=where)

    def _plan(self, choices: Choices, admitted: Sequence[Admitted]) -> dict[str, LoopPlan]:
        loops = self.manifest.loops
        if not loops and choices != Choices():
            raise UsageError(
                "E_NO_LOOP",
                f"sampling: got {choices}, expected nothing: this bundle has no loop. "
                "Leave the sampler's options out.",
            )
        snrs_db = [image.equalised_snr_db for image in admitted]
        return {
            name: plan_loop(loop, self.schedules[name], choices, snrs_db, number)
            for number, (name, loop) in enumerate(sorted(loops.items()))
        }

    def _check_sides(self, side: Mapping[str, Array]) -> None:
        wanted = set(self.manifest.side_inputs)
        given = set(side)
        if given - wanted or (wanted - given and not self.captioned):
            raise UsageError(
                "E_SIDE",
                f"side: got {', '.join(sorted(given)) or 'none'}, expected "
                f"{', '.join(sorted(wanted)) or 'none'}. Give these and no others.",
            )


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
