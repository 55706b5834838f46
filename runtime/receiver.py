"""Receiver: symbols to images.

Signal flow, with a program of a latent diffusion system as the example::

    symbols, Csi ─ admit, equalise ─▶ received, snr_db, gain
                                         │  the bundle's program
                                         ▼
                    decode ─ condition ─ loop(denoise) ─ render ─▶ image ─ crop, shrink ─▶ pixels
"""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from jscc.runtime.admission import check_dtype
from jscc.runtime.backends.base import Backend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.choices import Choices
from jscc.runtime.csi import Csi
from jscc.runtime.device.reception import WHAT, find_reception
from jscc.runtime.errors import JsccError, UnavailableError
from jscc.runtime.job import Job, Request, Rules
from jscc.runtime.noise import NoiseSource, PhiloxNoise
from jscc.runtime.ports import Array
from jscc.runtime.preprocess import Flags, check_drawn, drawn, from_network, restore
from jscc.runtime.program import Run, load_program
from jscc.runtime.record import DescentRecord, LoopRecord, Record
from jscc.runtime.schedule import schedule_from
from jscc.runtime.selftest import empty_sides, failure_of
from jscc.runtime.stage import Trace
from jscc.runtime.tiling import tile_image

Pixels = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.complex64]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Captioner(Protocol):
    """Describes an image in the system's own text space."""

    def __call__(self, image: Pixels) -> Floats:
        """float32[1, tokens, width] of uint8[height, width, 3]."""


class Receiver:
    """The receiver's side of a bundle; immutable, so that threads may share it.

    It does not hold on to the bundle: on the CPU, dropping that frees its copy of the weights.

    Args:
        bundle: What to run.
        backend: Engine; by default ONNX Runtime on the CPU.
        captioner: Asked for the bundle's side input where a call does not give it.
        noise: Source of the samplers' noise; by default `PhiloxNoise`.
        selftest: Decode the bundle's known symbols first.
        strict_snr: Refuse an SNR outside the trained range instead of clamping it.
        max_pixels: Largest padded image; by default what the bundle says.

    Raises:
        BundleError: ``E_GRAPH_LOAD``, the engine refuses a graph; ``E_BUNDLE_INCONSISTENT``, the
            self-test cannot run.
        UnavailableError: ``E_EP_MISSING``; ``E_SELFTEST``, the known image comes out wrong on
            every provider that the backend may use.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: Backend | None = None,
        captioner: Captioner | None = None,
        noise: NoiseSource | None = None,
        selftest: bool = True,
        strict_snr: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._bundle_sha256 = bundle.sha256
        self._captioner = captioner
        self._noise = noise or PhiloxNoise()
        self._rules = Rules(
            manifest,
            {name: schedule_from(loop.schedule) for name, loop in manifest.loops.items()},
            manifest.image.max_pixels if max_pixels is None else max_pixels,
            strict_snr=strict_snr,
            captioned=captioner is not None,
        )
        refusals: list[str] = []
        chosen: Backend | None = backend or OnnxRuntimeBackend()
        while chosen is not None:
            self._backend_name = chosen.name
            self._program = load_program(bundle, chosen)
            self._refusals = tuple(refusals)
            failure = self._selftest_failure(bundle) if selftest else None
            if failure is None:
                return
            refusals.append(failure.message)
            chosen = chosen.fallback()
            if chosen is None:
                raise failure

    def receive(
        self,
        symbols: Symbols,
        csi: Csi,
        *,
        seed: int,
        frame: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        start: str | None = None,
        start_level: float | None = None,
        guidance: float | None = None,
        guide: str | None = None,
        guide_every: int | None = None,
        travel: tuple[int, int] | None = None,
        settings: Mapping[str, float] | None = None,
        spacing: str | None = None,
        size: tuple[int, int] | None = None,
        side: Mapping[str, Array] | None = None,
        erased: Mask | None = None,
    ) -> tuple[Pixels, Record]:
        """Receive one image.

        Args:
            symbols: complex64[planes / 2, rows, columns], as the radio delivers them, not yet
                equalised; or all of them in a row when `size` is given.
            csi: What is known of the channel.
            seed: Of the sampler's noise, 0 to 2**64 - 1.
            frame: Number of the image, 0 to 2**64 - 1; other numbers, other noise.
            sampler: Instead of the bundle's.
            steps: Instead of the bundle's; of a descent, those of all rounds together.
            start: ``noise`` or ``received``, instead of the bundle's.
            start_level: Share of the schedule that a ``received`` start runs, in (0, 1].
            guidance: Weight of the guide, instead of the bundle's.
            guide: One of the bundle's guides, or ``none``.
            guide_every: Of so many steps one is guided, instead of the bundle's.
            travel: Length of a stretch in steps and how often each is run ("time travel"),
                instead of the bundle's.
            settings: Values of the bundle's knobs by name, instead of its own.
            spacing: Of the noise levels, one of `jscc.runtime.spacing.SPACINGS`, instead of the
                sampler's own.
            size: (height, width) of the image that was sent; by default the whole padded grid.
            side: The bundle's side inputs by name: what `Transmitter.send_with_side` returned, and
                the host's own.
            erased: True where a symbol never arrived, shaped like `symbols`.

        Returns:
            uint8[height, width, 3] of `size`, and what really ran.

        Raises:
            SymbolsError: ``E_SYM_DTYPE``, ``E_SYM_COUNT``, ``E_SYM_NONFINITE``, ``E_SYM_POWER``.
            CsiError: ``E_CSI``, ``E_CSI_RANGE``.
            ImageError: ``E_IMG_SIZE``; ``E_DECODE_NONFINITE``, the networks return no image.
            UsageError: ``E_SAMPLER``, ``E_STEPS``, ``E_SPACING``, ``E_START``, ``E_GUIDANCE``,
                ``E_GUIDE``, ``E_TRAVEL``, ``E_SETTING``, ``E_SEED``, ``E_SIDE``, ``E_NO_LOOP``.
            UnavailableError: ``E_MEMORY``, ``E_RUN``.
        """
        check_dtype(symbols, "symbols")
        images, records = self.receive_batch(
            symbols[None],
            (csi,),
            seed=seed,
            frame=frame,
            sampler=sampler,
            steps=steps,
            start=start,
            start_level=start_level,
            guidance=guidance,
            guide=guide,
            guide_every=guide_every,
            travel=travel,
            settings=settings,
            spacing=spacing,
            size=size,
            side=side,
            erased=None if erased is None else erased[None],
        )
        return images[0], records[0]

    def receive_batch(
        self,
        symbols: Symbols,
        csis: Sequence[Csi],
        *,
        seed: int,
        frame: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        start: str | None = None,
        start_level: float | None = None,
        guidance: float | None = None,
        guide: str | None = None,
        guide_every: int | None = None,
        travel: tuple[int, int] | None = None,
        settings: Mapping[str, float] | None = None,
        spacing: str | None = None,
        size: tuple[int, int] | None = None,
        side: Mapping[str, Array] | None = None,
        erased: Mask | None = None,
    ) -> tuple[Pixels, tuple[Record, ...]]:
        """Receive images of one size together; image i has number ``frame + i``.

        Args and errors as in `receive`, with a batch axis in front. Where one image is refused
        none is received, and the message says which.

        Returns:
            uint8[batch, height, width, 3] and one record each.
        """
        begun = time.perf_counter()
        choices = Choices(
            sampler,
            steps,
            start,
            start_level,
            guidance,
            guide,
            guide_every,
            travel,
            {} if settings is None else settings,
            spacing,
        )
        request = Request(
            symbols, csis, seed, frame, choices, size, {} if side is None else side, erased
        )
        job = self._rules.check(request)
        if job.mixed:
            return self._one_by_one(request)
        return self._attempt(job, begun)

    def _attempt(self, job: Job, begun: float) -> tuple[Pixels, tuple[Record, ...]]:
        """Run the program, once more in smaller parts where memory ran out."""
        try:
            return self._run(job, begun, ())
        except UnavailableError as error:
            if error.code != "E_MEMORY":
                raise
        # What nobody uses has been given back; images one by one need less.
        count = len(job.admitted)
        notes = ("ran out of memory: tried again" + ", images one by one" * (count > 1),)
        results = [self._run(job.only(index), begun, notes) for index in range(count)]
        images = np.concatenate([pixels for pixels, _ in results])
        return images, tuple(record for _, records in results for record in records)

    def _one_by_one(self, request: Request) -> tuple[Pixels, tuple[Record, ...]]:
        """Receive images whose SNRs ask for different ways."""
        results = []
        for index in range(len(request.csis)):
            begun = time.perf_counter()
            results.append(self._attempt(self._rules.check(request.only(index)), begun))
        images = np.concatenate([pixels for pixels, _ in results])
        return images, tuple(record for _, records in results for record in records)

    def _run(
        self, job: Job, begun: float, notes: tuple[str, ...]
    ) -> tuple[Pixels, tuple[Record, ...]]:
        """Run the program on what was admitted."""
        manifest, admitted = self._manifest, job.admitted
        height, width = job.geometry.padded
        contract = manifest.image
        tiling = tile_image(
            height,
            width,
            tile=contract.tile,
            overlap=contract.overlap,
            multiple=contract.multiple,
        )
        gains = [(image.csi.gain.real, image.csi.gain.imag) for image in admitted]
        given: dict[str, Array] = {
            "snr_db": np.array([image.snr_db for image in admitted], np.float32),
            "gain": np.array(gains, np.float32),
            **job.side,
        }
        run = Run(
            sizes={
                "batch": len(admitted),
                "height": height,
                "width": width,
                "planes": job.planes,
            },
            tiling=tiling,
            plans=job.plans,
            descents=job.descents,
            noise=self._noise,
            seed=job.seed,
            frame=job.frame,
            supply=self._caption,
        )
        trace = Trace()
        shown, said = self._carry(job, run, given, trace, again=bool(notes))
        for index, (_, flags) in enumerate(shown):
            check_drawn(flags, job.frame + index)
        images = np.stack([restore(pixels, job.geometry) for pixels, _ in shown])
        trace.add("total", begun)
        notes = (*notes, *said)
        records = [self._record(job, index, trace, notes) for index in range(len(admitted))]
        return images, tuple(records)

    def _carry(
        self, job: Job, run: Run, given: dict[str, Array], trace: Trace, *, again: bool
    ) -> tuple[list[tuple[Pixels, Flags]], tuple[str, ...]]:
        """Run the program, where it runs; padded pixels with their flags, and what is to be said.

        What fails on the device goes by way of the host, `again` also what finds too little memory.
        For the flags see `jscc.kernels.to_uint8.reference.flags_of`.
        """
        manifest, program = self._manifest, self._program
        wanted = manifest.codec_output if job.alone else None
        image, rounding = wanted or manifest.image_output, manifest.image.rounding
        said: tuple[str, ...] = ()
        reception = find_reception(program, run, image)
        if reception is not None:
            reason = reception.reason_for_host()
            if not reason:
                symbols = [(each.symbols, each.divisor) for each in job.admitted]
                there = Trace()
                try:
                    received = reception.receive(symbols, given, rounding, there)
                except UnavailableError as error:
                    if error.code == "E_MEMORY" and not again:
                        raise  # once more, with less at once
                    reason = str(error)
                else:
                    trace.join(there)
                    shown = list(zip(received.pixels, received.flags, strict=True))
                    return shown, reception.station.notes
            said = (f"{WHAT} stays on the host: {reason}",)
        given["received"] = np.stack([image.planes for image in job.admitted])
        tensors = program.execute(given, run, trace, wanted)
        outputs = tensors[image].astype(np.float32, copy=False)
        return [drawn(each, rounding) for each in outputs], said

    def _caption(self, name: str, tensors: Mapping[str, Array]) -> Array | None:
        """What the captioner says of each image that was decoded so far."""
        if self._captioner is None or name not in self._manifest.side_inputs:
            return None
        decoded = self._decoded(tensors)
        if decoded is None:
            return None
        pictures = [from_network(image, "truncate") for image in decoded]
        return np.concatenate([self._captioner(picture) for picture in pictures])

    def _decoded(self, tensors: Mapping[str, Array]) -> Floats | None:
        """The first stage output that is an image."""
        for stage in self._program.stages.values():
            for port in stage.entry.outputs:
                if port.shape[1:] == (3, "height", "width") and port.name in tensors:
                    return tensors[port.name].astype(np.float32, copy=False)
        return None

    def _record(self, job: Job, index: int, trace: Trace, notes: tuple[str, ...]) -> Record:
        manifest, image = self._manifest, job.admitted[index]
        loops = {
            name: LoopRecord(
                plan.sampler,
                plan.paths[index].table.evaluations,
                plan.start,
                plan.paths[index].level,
                plan.paths[index].guidance,
                plan.guide,
                plan.guide_every,
                plan.travel,
                plan.settings,
                plan.spacing,
            )
            for name, plan in job.plans.items()
        }
        descents = {
            name: DescentRecord(
                plan.steps, plan.learning_rates, plan.settings, trace.losses[name][index]
            )
            for name, plan in job.descents.items()
        }
        return Record(
            bundle=self._bundle_sha256,
            system=manifest.system,
            precision=manifest.precision,
            backend=self._backend_name,
            providers=self._program.providers,
            seed=job.seed,
            frame=job.frame + index,
            batch=len(job.admitted),
            loops=loops,
            snr_db_declared=float(image.csi.snr_db),
            snr_db_used=float(image.snr_db),
            snr_clamped=image.clamped,
            snr_db_measured=image.snr_db_measured,
            snr_suspect=image.suspect,
            symbols=image.symbols.size,
            missing=image.missing,
            power=image.power,
            fallbacks=(*self._refusals, *self._program.fallbacks, *notes),
            tiles=dict(trace.tiles),
            times_ms=dict(trace.times_ms),
            descents=descents,
            rate=job.planes if manifest.signal.rates else None,
            regime=next(iter(job.regimes[index].values())).snr_db if job.regimes else None,
        )

    @property
    def backend(self) -> str:
        """Engine library and version that receives."""
        return self._backend_name

    @property
    def where(self) -> str:
        """`backend`, and what the stages really run on, as ``openvino 2026.1.0 (cpu)``."""
        providers = ", ".join(sorted(set(self._program.providers.values())))
        return f"{self._backend_name} ({providers})"

    def receive_known(self, bundle: Bundle) -> Pixels:
        """Receive the symbols of the bundle's self-test.

        Args:
            bundle: The one that this receiver was made of.

        Returns:
            uint8[height, width, 3].

        Raises:
            LookupError: The bundle has no self-test.
            JsccError: What `receive` raises.
        """
        manifest, test = bundle.manifest, bundle.manifest.selftest
        if test is None:
            raise LookupError(f"{bundle.path} has no self-test")
        symbols, expected = bundle.tensor(test.symbols), bundle.tensor(test.image)
        stride = manifest.signal.stride
        size = (stride * symbols.shape[1], stride * symbols.shape[2])
        side = empty_sides(manifest, size, planes=2 * symbols.shape[0])
        side |= {name: bundle.tensor(tensor) for name, tensor in test.side.items()}
        return self.receive(
            symbols,
            Csi(test.csi.snr_db, complex(*test.csi.gain)),
            seed=test.seed,
            steps=test.steps if manifest.loops or manifest.descents else None,
            size=(expected.shape[0], expected.shape[1]),
            side=side,
        )[0]

    def _selftest_failure(self, bundle: Bundle) -> JsccError | None:
        """Why the bundle's self-test fails on the program just loaded, or None."""
        test = bundle.manifest.selftest
        if test is None:
            return None
        expected = bundle.tensor(test.image)
        floor = test.psnr_floor_db
        return failure_of(lambda: self.receive_known(bundle), expected, floor, self.where)
