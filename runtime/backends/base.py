"""Backend and Session: an engine library, and one stage loaded in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from jscc.runtime.device.device import DeviceArray
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.station import Station
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port

Bytes = npt.NDArray[np.uint8]


class Session(Protocol):
    """One stage, ready to run; `run` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes."""

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it returns."""

    @property
    def provider(self) -> str:
        """What it really runs on."""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked for and not done, and why."""

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once.

        Raises:
            DataError: ``E_PORT``, an array is not what its port says.
            UnavailableError: ``E_MEMORY``, the device has too little memory; ``E_RUN``, the
                engine failed.
        """


@runtime_checkable
class DeviceSession(Session, Protocol):
    """A session that takes tensors where they are, on its device."""

    @property
    def station(self) -> Station:
        """The device."""

    def reason_for_host(self, sizes: Mapping[str, int]) -> str:
        """Why `run_there` is of no use for images of these sizes; empty where it is.

        Raises:
            BundleError: The graph is not what the manifest says.
            UnavailableError: ``E_MEMORY``, for a batch: its images may fit one by one.
        """

    def run_there(
        self, tensors: Mapping[str, DeviceArray], sizes: Mapping[str, int], flow: Flow
    ) -> dict[str, DeviceArray]:
        """Run the stage once in a flow, which goes on meanwhile.

        Args:
            tensors: By the name of their ports.
            sizes: That the ports' symbols take.
            flow: Where it is its turn.

        Raises:
            DataError: ``E_PORT``, a tensor is not what its port says.
            UnavailableError: ``E_MEMORY``, ``E_RUN``, as far as it is known yet.
        """


@dataclass(frozen=True)
class OnCpu:
    """What a session says of itself that runs on the CPU and leaves nothing undone.

    Attributes:
        stage: Its name.
        entry: What the manifest says of it.
    """

    stage: str
    entry: StageEntry

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What it takes."""
        return self.entry.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What it returns."""
        return self.entry.outputs

    @property
    def provider(self) -> str:
        """What it runs on."""
        return "cpu"

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Nothing."""
        return ()


class Backend(Protocol):
    """An engine library with its settings."""

    @property
    def name(self) -> str:
        """Engine library and version."""

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load one stage.

        Args:
            stage: Its name, for messages.
            entry: What the manifest says of it.
            graph: The ONNX file.
            external: Its weight files by the location that the graph gives them.

        Raises:
            BundleError: ``E_GRAPH_LOAD``, the engine refuses the graph.
            UnavailableError: ``E_EP_MISSING``, none of the wanted providers is there.
        """

    def fallback(self) -> "Backend | None":
        """The same library without its first choice of provider; None where no other is left."""
