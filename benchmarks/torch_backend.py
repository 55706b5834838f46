"""Torch backend: a bundle's stages in PyTorch itself, from the weights it was exported from.

It stands behind the same seam as the engines of the runtime, so a receiver on it does exactly what
the bundle's receiver does, on PyTorch in eager mode: with the published sampler and number of
steps, it stands for the research code's loop, without its captioner and with the text's keys and
values computed once.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from jscc.export.gather import Request, gather
from jscc.export.system import Options, StageSpec, find
from jscc.runtime.backends.base import OnCpu
from jscc.runtime.ports import check_ports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from jscc.runtime.backends.base import Backend, Session
    from jscc.runtime.manifest import StageEntry
    from jscc.runtime.ports import Array


@dataclass(frozen=True)
class TorchBackend:
    """PyTorch in eager mode on the CPU, float32.

    Attributes:
        specs: The stages by name.
        threads: Of PyTorch, for all stages.
    """

    specs: Mapping[str, StageSpec]
    threads: int

    @classmethod
    def of(cls, system: str, request: Request, options: Options, threads: int) -> TorchBackend:
        """The stages that an export of `system` would lower.

        Raises:
            CheckpointError: The weights do not fit.
            UsageError: There is no such system.
        """
        method = find(system)
        source, _ = gather(method, request)
        return cls({spec.name: spec for spec in method.plan(source, options).stages}, threads)

    @property
    def name(self) -> str:
        """Engine library and version."""
        return f"torch {torch.__version__}"

    def fallback(self) -> Backend | None:
        """There is none."""
        return None

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Build the stage's module; the graph is not looked at."""
        del graph, external
        torch.set_num_threads(self.threads)
        module = self.specs[stage].build().eval().requires_grad_(False)
        gc.collect()
        return TorchSession(stage, entry, module)


@dataclass(frozen=True)
class TorchSession(OnCpu):
    """One stage as a module; `jscc.runtime.backends.base.Session`."""

    module: nn.Module

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the module once."""
        check_ports(self.stage, self.inputs, arrays)
        fed = [torch.from_numpy(arrays[port.name].copy()) for port in self.inputs]
        with torch.inference_mode():
            results = self.module(*fed)
        made = results if isinstance(results, tuple) else (results,)
        return {port.name: result.numpy() for port, result in zip(self.outputs, made, strict=True)}
