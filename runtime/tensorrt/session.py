"""TensorRT session: one stage, each run with the narrowest engine that fits, or on the CPU.

NOTE: never executed on a device; see `jscc.runtime.tensorrt.library`.
"""

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from jscc.runtime.backends.base import Session
from jscc.runtime.device.device import DeviceArray, shown
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.station import Station
from jscc.runtime.errors import BundleError, DataError, JsccError, UnavailableError
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port, check_ports, resolve
from jscc.runtime.tensorrt.engine import Engine, EngineError
from jscc.runtime.tensorrt.lane import RunError
from jscc.runtime.tensorrt.shelf import Shelf, Sizes, Slot
from jscc.runtime.tensorrt.spans import symbols_of
from jscc.runtime.tensorrt.supply import Supply

PROVIDER = "cuda"
MOST_SHORT = 3  # runs of one size in a row before the other backend takes it for good
_NO_SIZES: Sizes = ()  # stands for all of them
_Result = TypeVar("_Result")


class TensorRtSession:
    """One stage in TensorRT; thread-safe. `jscc.runtime.backends.base.Session`.

    Engines are loaded when they are first used. Sizes that no engine takes and none can be built
    for are run by another backend, for as long as the session lives; `fallbacks` says so. It also
    takes a single run that finds too little memory, and all runs once the device is lost.

    Args:
        entry: What the manifest says of the stage.
        supply: Finds, builds and keeps its engines.
        spare: Loads the stage in the other backend.
    """

    def __init__(self, entry: StageEntry, supply: Supply, spare: Callable[[], Session]) -> None:
        self.inputs: tuple[Port, ...] = entry.inputs
        self.outputs: tuple[Port, ...] = entry.outputs
        self._supply = supply
        self._spare = spare
        self._spared: Session | None = None
        self._symbols = symbols_of(entry)
        self._shelf = Shelf(supply.listed())
        self._failed: dict[Sizes, JsccError] = {}
        self._short: dict[Sizes, int] = {}  # runs in a row that found too little memory
        self._turns: dict[Sizes, threading.Lock] = {}
        self._ran: set[str] = set()
        self._lock = threading.Lock()

    @property
    def provider(self) -> str:
        """What its runs were on; both where sizes differ in that."""
        return ", ".join(sorted(self._ran.copy(), reverse=True)) or PROVIDER

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """What was asked for and not done so far."""
        spared = self._spared
        return (*self._supply.notes, *(() if spared is None else spared.fallbacks))

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage once; see `jscc.runtime.backends.base.Session`.

        Raises:
            BundleError: ``E_GRAPH_PORTS``, ``E_GRAPH_EXTERNAL``: there is no engine for these
                sizes, and the graph is not what the manifest says.
        """
        resolved = check_ports(self._supply.stage, self.inputs, arrays)
        sizes = self._key(resolved)
        chosen = self._choose(sizes)
        if chosen is not None:
            slot, engine, profile = chosen
            names = engine.names
            fed = {
                port.name: np.require(arrays[port.name], requirements="C")
                for port in self.inputs
                if port.name in names
            }
            results: dict[str, Array] = {
                port.name: np.empty(resolve(port, resolved), port.dtype) for port in self.outputs
            }
            if self._attempt(lambda: engine.run(profile, fed, results), slot, sizes, fed):
                return results
        session = self._spared_session()
        self._ran.add(session.provider)
        return session.run(arrays)

    @property
    def station(self) -> Station:
        """See `jscc.runtime.backends.base.DeviceSession`."""
        return self._supply.station

    def reason_for_host(self, sizes: Mapping[str, int]) -> str:
        """See `jscc.runtime.backends.base.DeviceSession`."""
        chosen = self._choose(self._key(sizes))
        if chosen is None:
            return f"stage {self._supply.stage!r} runs on the CPU"
        hosted = sorted(chosen[1].hosted)
        return f"stage {self._supply.stage!r} reads {hosted[0]!r} on the host" if hosted else ""

    def run_there(
        self, tensors: Mapping[str, DeviceArray], sizes: Mapping[str, int], flow: Flow
    ) -> dict[str, DeviceArray]:
        """See `jscc.runtime.backends.base.DeviceSession`."""
        self._check(tensors, sizes)
        chosen = self._choose(self._key(sizes))
        if chosen is not None:
            slot, engine, profile = chosen
            names = engine.names
            fed = {port.name: tensors[port.name] for port in self.inputs if port.name in names}
            results = {
                port.name: flow.empty(resolve(port, sizes), port.dtype) for port in self.outputs
            }

            def run() -> None:
                engine.run_there(profile, fed, results, flow)

            if self._attempt(run, slot, self._key(sizes), fed):
                if engine.graphs.refused:
                    words = f"runs without a CUDA graph: {engine.graphs.refused}"
                    self._supply.note(f"stage {self._supply.stage!r} {words}")
                return results
        session = self._spared_session()  # not known when it was asked for its reason
        self._ran.add(session.provider)
        arrays = {port.name: flow.bring(tensors[port.name])[0] for port in self.inputs}
        return {name: flow.take(array) for name, array in session.run(arrays).items()}

    def _key(self, sizes: Mapping[str, int]) -> Sizes:
        return tuple((symbol, sizes[symbol]) for symbol in self._symbols)

    def _check(self, tensors: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> None:
        """Hold tensors to their ports.

        Raises:
            DataError: ``E_PORT``.
        """
        for port in self.inputs:
            tensor = tensors[port.name]
            if str(tensor.dtype) != port.dtype or tensor.shape != resolve(port, sizes):
                raise DataError(
                    "E_PORT",
                    f"stage {self._supply.stage!r}, port {port.name!r}: got {shown(tensor)}, "
                    f"expected {port}. Check the caller.",
                )

    def _attempt(
        self,
        run: Callable[[], None],
        slot: Slot,
        sizes: Sizes,
        fed: Mapping[str, Array | DeviceArray],
    ) -> bool:
        """Run an engine, and again with less on the device where memory is short.

        Returns:
            Whether it ran; if not, the other backend has to do.

        Raises:
            UnavailableError: ``E_RUN``; ``E_MEMORY``, for a batch.
        """
        try:
            self._relieved(run, slot)
        except (RunError, UnavailableError) as error:
            failure = self._explain(error, fed)
            if not self._is_passed_on(sizes, failure):
                raise failure from error
            return False
        self._short.pop(sizes, None)
        self._ran.add(PROVIDER)
        return True

    def _is_passed_on(self, sizes: Sizes, failure: UnavailableError) -> bool:
        """Whether the other backend takes a run that failed; so it does from now on if need be."""
        lost = self._supply.lost()
        if lost is not None:
            self._give_up(_NO_SIZES, lost)
            return True
        if failure.code != "E_MEMORY" or _may_fit_singly(sizes, failure):
            return False
        self._short[sizes] = self._short.get(sizes, 0) + 1
        if self._short[sizes] < MOST_SHORT:
            self._supply.note(f"stage {self._supply.stage!r} left a run to the CPU: {failure}")
        else:
            self._give_up(sizes, failure)
        return True

    def _relieved(self, attempt: Callable[[], _Result], slot: Slot | None) -> _Result:
        """Try, and again with less on the device for as long as that is short of memory.

        First what no run is using goes, also of receptions, then other engines than the slot's, one
        by one.
        """
        reliefs = self._shelf.reliefs(slot)
        while True:
            try:
                return attempt()
            except (RunError, EngineError, UnavailableError) as error:
                if not _is_short(error) or not next(reliefs, False):
                    raise
                self.station.shrink()

    def _choose(self, sizes: Sizes) -> tuple[Slot, Engine, int] | None:
        """The narrowest engine for `sizes` and its profile, built if none is there.

        None where the other backend has to do. Whoever comes with the same sizes waits meanwhile;
        others do not.
        """
        with self._lock:
            turn = self._turns.setdefault(sizes, threading.Lock())
        with turn:
            while not self._is_spared(sizes):
                found = self._shelf.find(dict(sizes))
                if found is None:
                    self._build(sizes)
                    continue
                slot, profile = found
                engine = self._open(slot, sizes)
                if engine is not None:
                    return slot, engine, profile
        return None

    def _is_spared(self, sizes: Sizes) -> bool:
        """Whether the other backend runs these sizes.

        Raises:
            UnavailableError: ``E_MEMORY``, for a batch: its images may fit one by one.
        """
        error = self._failed.get(_NO_SIZES) or self._failed.get(sizes)
        if error is not None and _may_fit_singly(sizes, error):
            raise error
        return error is not None

    def _open(self, slot: Slot, sizes: Sizes) -> Engine | None:
        """The engine in a slot, loaded if it is not; None where there is none after all."""
        with slot.lock:
            engine = slot.engine
            if engine is None:
                try:
                    engine = self._relieved(lambda: self._supply.load(slot.name), slot)
                except (EngineError, JsccError) as error:
                    self._leave(slot, sizes, error)
                    return None
                slot.engine = engine
        self._shelf.touch(slot)
        return engine

    def _leave(self, slot: Slot, sizes: Sizes, error: EngineError | JsccError) -> None:
        """Do without an engine that did not load."""
        if (lost := self._supply.lost()) is not None:
            self._give_up(_NO_SIZES, lost)
        elif _is_short(error):
            self._give_up(sizes, self._supply.too_little(error))
        elif isinstance(error, JsccError) and error.code in ("E_CUDA", "E_ENGINE_CRASH"):
            self._give_up(_NO_SIZES, error)
        else:
            self._shelf.remove(slot)
            self._supply.refuse(slot.name, error)

    def _build(self, sizes: Sizes) -> None:
        """Put an engine for exactly `sizes` on the shelf, or remember that there is none."""
        try:
            try:
                fresh = self._supply.build(sizes)
            except UnavailableError as error:
                if error.code != "E_MEMORY" or not self._shelf.clear():
                    raise
                fresh = self._supply.build(sizes)
            engine = self._relieved(lambda: self._supply.load_fresh(fresh), None)
        except EngineError as error:
            self._give_up(sizes, self._supply.too_little(error))
        except BundleError as error:
            if error.code != "E_GRAPH_LOAD":
                raise
            self._give_up(_NO_SIZES, error)
        except JsccError as error:
            lost = self._supply.lost()
            everything = lost is not None or error.code == "E_CUDA"
            self._give_up(_NO_SIZES if everything else sizes, lost or error)
        else:
            self._shelf.add(Slot(fresh.name, fresh.spans, engine))

    def _give_up(self, sizes: Sizes, error: JsccError) -> None:
        """Leave `sizes` to the other backend from now on."""
        self._failed[sizes] = error
        what = "has no engine" if _may_fit_singly(sizes, error) else "runs on the CPU"
        if sizes:
            what += f" for {', '.join(f'{name} {size}' for name, size in sizes)}"
        self._supply.note(f"stage {self._supply.stage!r} {what}: {error}")

    def _spared_session(self) -> Session:
        with self._lock:
            if self._spared is None:
                self._spared = self._spare()
            return self._spared

    def _explain(
        self, error: RunError | UnavailableError, fed: Mapping[str, Array | DeviceArray]
    ) -> UnavailableError:
        if isinstance(error, UnavailableError):
            if error.code == "E_MEMORY":
                return error
            error = RunError(error.message.partition(", expected")[0].replace(": got ", " "))
        where = f"stage {self._supply.stage!r} in {self._supply.named}"
        listed = ", ".join(f"{name} {shown(array)}" for name, array in fed.items())
        if error.memory:
            return UnavailableError(
                "E_MEMORY",
                f"{where}: got {error} for {listed}, expected enough memory. "
                "Receive fewer or smaller images at once, or use a bundle with a smaller tile.",
            )
        return UnavailableError(
            "E_RUN",
            f"{where}: got {error} for {listed}, expected it to run. "
            "Try onnxruntime; if it stays, export the bundle again.",
        )


def _may_fit_singly(sizes: Sizes, error: JsccError) -> bool:
    """Whether memory ran out for a batch, whose images a receiver tries one by one."""
    return error.code == "E_MEMORY" and dict(sizes).get("batch", 1) > 1


def _is_short(error: Exception) -> bool:
    """Whether memory ran out."""
    if isinstance(error, RunError | EngineError):
        return error.memory
    return isinstance(error, JsccError) and error.code == "E_MEMORY"
