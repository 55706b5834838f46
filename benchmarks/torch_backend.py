"""Torch backend: a bundle's stages in PyTorch itself, from the weights it was exported from.

It stands behind the same seam as the engines of the runtime, so a receiver on it does exactly what
the bundle's receiver does, on PyTorch in eager mode: with the published sampler and number of
steps, it stands for the research code's loop, without its captioner and with the text's keys and
values computed once. Compiled, it stands for what PyTorch itself has for speed.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from jscc.export.gather import Request, gather
from jscc.export.system import Options, StageSpec, find
from jscc.runtime.backends.base import OnCpu
from jscc.runtime.errors import UsageError
from jscc.runtime.ports import check_ports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from jscc.runtime.backends.base import Backend, Session
    from jscc.runtime.bundle import Bundle
    from jscc.runtime.manifest import StageEntry
    from jscc.runtime.ports import Array


@dataclass(frozen=True)
class TorchBackend:
    """PyTorch on the CPU, float32.

    Attributes:
        specs: The stages by name.
        threads: Of PyTorch, for all stages.
        compiled: Whether ``torch.compile`` makes of every stage what it can, with weights frozen;
            otherwise they run in eager mode.
    """

    specs: Mapping[str, StageSpec]
    threads: int
    compiled: bool = False

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

    @classmethod
    def of_bundle(cls, bundle: Bundle, request: Request, threads: int) -> TorchBackend:
        """The stages that `bundle` was exported from.

        Raises:
            CheckpointError: The weights do not fit.
            UsageError: ``E_USAGE``, they are not those of the bundle.
        """
        manifest = bundle.manifest
        source, _ = gather(find(manifest.system), request)
        got, expected = source.describe(), manifest.source
        drawn = got.sha256 == expected.sha256 == "0" * 64  # of a seed, which is in the name
        if got.sha256 != expected.sha256 or (drawn and got.name != expected.name):
            raise UsageError(
                "E_USAGE",
                f"{bundle.path.name}: got the weights {got.name!r} ({got.sha256[:12]}), expected "
                f"{expected.name!r} ({expected.sha256[:12]}), which it was exported from. Name "
                "them with --checkpoint, or leave this engine to a bundle of one checkpoint.",
            )
        return cls.of(manifest.system, request, Options(), threads)

    def compiling(self) -> TorchBackend:
        """The same, compiled."""
        return replace(self, compiled=True)

    @property
    def name(self) -> str:
        """Engine library and version."""
        return f"torch {torch.__version__}{' compiled' * self.compiled}"

    def fallback(self) -> Backend | None:
        """There is none."""
        return None

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Build the stage's module; the graph is not looked at."""
        del graph, external
        torch.set_num_threads(self.threads)
        module: nn.Module = self.specs[stage].build().eval().requires_grad_(False)
        gc.collect()
        if self.compiled:
            from torch._inductor import config

            config.freezing = True
            module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
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
