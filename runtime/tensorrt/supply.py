"""TensorRT supply: finds, builds, keeps and loads the engines of one stage."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jscc.runtime.errors import JsccError, UnavailableError
from jscc.runtime.private_folder import make_private
from jscc.runtime.tensorrt.build import Plan
from jscc.runtime.tensorrt.cache import DAMAGED, ENGINE, EngineCache, EngineKey
from jscc.runtime.tensorrt.engine import Engine, EngineError, load_engine
from jscc.runtime.tensorrt.lane import Place
from jscc.runtime.tensorrt.progress import Announcer
from jscc.runtime.tensorrt.shelf import Sizes
from jscc.runtime.tensorrt.spans import Span
from jscc.runtime.tensorrt.timings import build_timed

Tell = Callable[[str], None]
_MOST_NOTES = 16  # of a session; the latest stay


@dataclass(frozen=True)
class Fresh:
    """An engine that was just built.

    Attributes:
        name: Of its file in the cache; empty where it could not be kept.
        trace: What its file is called, be it there or not.
        spans: Sizes of its profiles.
        data: What the library deserialises.
    """

    name: str
    trace: str
    spans: tuple[Span, ...]
    data: memoryview


class Supply:
    """The engines of one stage.

    Args:
        place: Where they run.
        plan: What they are built of; its spans are those that are asked for.
        cache: Keeps them.
        key: What they are called there.
        tell: Hears what takes long, and each note.
    """

    def __init__(
        self, place: Place, plan: Plan, cache: EngineCache, key: EngineKey, tell: Tell
    ) -> None:
        self.stage = plan.stage
        self.station = place.station
        self.named = f"{place.library.named} on {place.device.name}"
        self._place = place
        self._plan = plan
        self._cache = cache
        self._key = key
        self._tell = tell
        self._notes: deque[str] = deque(maxlen=_MOST_NOTES)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was asked for and not done so far, and why."""
        return tuple(self._notes.copy())

    def note(self, text: str) -> None:
        """Say once what is not done."""
        if text not in self.notes:
            self._notes.append(text)
            self._tell(text)

    def listed(self) -> Mapping[str, tuple[Span, ...]]:
        """Spans of the engines in the cache, by file; a note for what is wrong with others."""
        found, errors = self._cache.listed(self._key)
        for error in errors:
            self._note_refused(error)
        return found

    def load(self, name: str) -> Engine:
        """An engine of the cache.

        Raises:
            EngineError: The library refuses it.
            JsccError: ``E_CUDA``; what `EngineCache.read` raises.
        """
        kept = self._cache.read(self._key, name)
        with self._cache.loading(name):
            return load_engine(self._place, kept.plan, kept.spans, self._plan.entry)

    def refuse(self, name: str, error: EngineError | JsccError) -> None:
        """Note that an engine does not load; it is removed if that is its own fault."""
        if isinstance(error, JsccError) and error.code == "E_ENGINE_MISSING":
            return  # somebody emptied the cache
        if isinstance(error, EngineError) or error.code in DAMAGED:
            self._cache.discard(name)
        self._note_refused(error)

    def build(self, sizes: Sizes) -> Fresh:
        """Build an engine for exactly `sizes` and keep it.

        Raises:
            DataError: ``E_ENGINE_KILLED``, building it ended other processes.
            JsccError: What `build_engine` raises.
        """
        library = self._place.library
        spans = (Span.exactly(dict(sizes)),) if sizes else ()
        file = self._key.file_name(spans)
        self._cache.check_buildable(file)
        target = self._key.target if self._key.target in library.targets() else None
        wanted = replace(self._plan, spans=spans, target=target, scratch=self._scratch())
        if others := self._cache.others(self._key):
            kept = "; ".join(others)
            self._tell(
                f"stage {self.stage!r}: engines that are kept are of {kept}; here is "
                f"{self._key.named}"
            )
        begun = time.monotonic()
        what = f"stage {self.stage!r}: building an engine for {', '.join(map(str, spans))}"
        announcer = Announcer(self._tell, what)
        with self._cache.building(file):
            built = build_timed(library, wanted, announcer.advance, self._cache.folder, self._key)
        announcer.finish()
        name = ""
        try:
            name = self._cache.keep(self._key, spans, built.data, time.monotonic() - begun).name
        except JsccError as error:
            self.note(f"stage {self.stage!r}: its engine is not kept: {error}")
        return Fresh(name, file, spans, built.data)

    def lost(self) -> JsccError | None:
        """Why nothing runs on the device any more, whatever is done; None where it may."""
        try:
            self._place.device.check()
        except UnavailableError as error:
            return error
        return None

    def load_fresh(self, fresh: Fresh) -> Engine:
        """An engine just built.

        Raises:
            EngineError: The device has too little memory for it.
            UnavailableError: ``E_CUDA``; ``E_ENGINE_LOAD``, the library refuses it.
        """
        try:
            with self._cache.loading(fresh.trace):
                return load_engine(self._place, fresh.data, fresh.spans, self._plan.entry)
        except EngineError as error:
            if error.memory:
                raise
            self._cache.discard(fresh.trace)
            raise UnavailableError(
                "E_ENGINE_LOAD",
                f"stage {self.stage!r}: got {error} from an engine just built, expected "
                f"{self._place.library.named} to load it. Use onnxruntime, or update the library.",
            ) from error

    def too_little(self, error: EngineError | JsccError) -> JsccError:
        """The error for an engine that the device has too little memory for."""
        if isinstance(error, JsccError):
            return error
        return UnavailableError(
            "E_MEMORY",
            f"stage {self.stage!r} in {self.named}: got {error} from its engine, expected enough "
            "memory to load it. Close other programs, or receive smaller images.",
        )

    def _note_refused(self, error: EngineError | JsccError) -> None:
        own = isinstance(error, EngineError) or error.code in DAMAGED
        what = "an engine is built again" if own else "kept engines are not used"
        self.note(f"stage {self.stage!r}: {what}, since {error}")

    def _scratch(self) -> Path | None:
        """The folder of the cache, where weights may be written; None where it cannot be used."""
        try:
            make_private(self._cache.folder, ENGINE)
        except JsccError:
            return None
        return self._cache.folder
