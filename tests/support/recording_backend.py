"""A backend that keeps what went into every stage and what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from jscc.runtime.backends.base import Session
    from jscc.runtime.manifest import StageEntry
    from jscc.runtime.ports import Port

    Arrays = Mapping[str, npt.NDArray[Any]]


class RecordingSession:
    """Passes every call on and remembers it."""

    def __init__(self, stage: str, inner: Session, calls: list[tuple[str, Arrays, Arrays]]) -> None:
        self._stage = stage
        self._inner = inner
        self._calls = calls
        self.inputs: tuple[Port, ...] = inner.inputs
        self.outputs: tuple[Port, ...] = inner.outputs
        self.provider = inner.provider
        self.fallbacks = inner.fallbacks

    def run(self, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        results = self._inner.run(arrays)
        fed = {name: array.copy() for name, array in arrays.items()}
        self._calls.append((self._stage, fed, dict(results)))
        return results


class RecordingBackend:
    """ONNX Runtime on one thread, listened to."""

    name = "recording"

    def __init__(self) -> None:
        self._backend = OnnxRuntimeBackend(threads=1)
        self.calls: list[tuple[str, Arrays, Arrays]] = []

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> RecordingSession:
        return RecordingSession(
            stage, self._backend.load(stage, entry, graph, external), self.calls
        )

    def fallback(self) -> None:
        return None

    def outputs(self, stage: str) -> list[Arrays]:
        """What each call of `stage` returned, in order."""
        return [results for name, _, results in self.calls if name == stage]

    def inputs(self, stage: str) -> list[Arrays]:
        """What each call of `stage` was given, in order."""
        return [fed for name, fed, _ in self.calls if name == stage]
