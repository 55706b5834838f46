"""Probe: a backend that runs a bundle's stages as they are and tells what flows inside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from jscc.calibration.graph import parse_graph, serialise_graph
from jscc.runtime.backends.base import OnCpu
from jscc.runtime.backends.onnxruntime import (
    OnnxRuntimeBackend,
    session_builder,
    usable_cores,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jscc.runtime.backends.base import Backend, Session
    from jscc.runtime.manifest import StageEntry
    from jscc.runtime.ports import Array

    # Called with the stage, its graph, which it may add to; returns the tensors to tell about.
    Expose = Callable[[str, ir.Model], tuple[str, ...]]
    # Called with the stage, the inputs of one run, and the tensors by name.
    Tell = Callable[[str, Mapping[str, Array], Mapping[str, Array]], None]


@dataclass(frozen=True)
class Probe:
    """A `jscc.runtime.backends.base.Backend` on the CPU.

    Attributes:
        expose: Which tensors of a stage to tell about.
        tell: Where to.
        threads: Per stage; None for every core.
    """

    expose: Expose
    tell: Tell
    threads: int | None

    @property
    def name(self) -> str:
        """Engine library and version."""
        return f"onnxruntime {ort.__version__}, probed"

    def fallback(self) -> Backend | None:
        """There is none."""
        return None

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load one stage; see `jscc.runtime.backends.base.Backend`."""
        plain = OnnxRuntimeBackend(threads=self.threads)
        model = parse_graph(graph, external)
        names = self.expose(stage, model)
        if not names:
            return plain.load(stage, entry, graph, external)
        lay_open(model, names)
        exposed = serialise_graph(model)
        build = session_builder(
            stage,
            exposed,
            external,
            provider="cpu",
            threads=self.threads or usable_cores(),
            in_order=True,
        )
        return ProbedSession(stage, entry, build(), names, self.tell)


@dataclass(frozen=True)
class ProbedSession(OnCpu):
    """One stage, some of its tensors laid open; `jscc.runtime.backends.base.Session`."""

    session: ort.InferenceSession
    names: tuple[str, ...]
    tell: Tell

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once and tell."""
        fed = {port.name: np.ascontiguousarray(arrays[port.name]) for port in self.entry.inputs}
        own = [port.name for port in self.entry.outputs]
        produced = [name for name in dict.fromkeys((*own, *self.names)) if name not in fed]
        results = dict(zip(produced, self.session.run(produced, fed), strict=True))
        there = {**fed, **results}
        self.tell(self.stage, fed, {name: there[name] for name in self.names})
        return {name: results[name] for name in own}


def lay_open(model: ir.Model, names: tuple[str, ...]) -> None:
    """Make outputs of the tensors called `names`, as far as they are neither inputs nor outputs."""
    there = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        if name not in there:
            value = values[name]
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value.shape is not None:  # the tracer's symbols mean nothing at an edge
                value.shape = ir.Shape([None] * value.shape.rank())
            model.graph.outputs.append(value)
