"""Fake engine: a backend whose stages are Python functions, for faults that no real one shows."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from jscc.runtime.ports import check_ports, resolve


@dataclass(frozen=True)
class FakeSession:
    """Runs `function`, or fills its outputs with a number that depends on nothing."""

    stage: str
    inputs: tuple
    outputs: tuple
    provider: str
    function: Callable | None
    fallbacks: tuple[str, ...] = ()
    calls: list = field(default_factory=list)

    def run(self, arrays):
        sizes = check_ports(self.stage, self.inputs, arrays)
        self.calls.append((threading.get_ident(), sizes))
        if self.function is not None:
            return self.function(arrays)
        return {port.name: np.full(resolve(port, sizes), 0.5, port.dtype) for port in self.outputs}


@dataclass(frozen=True)
class FakeBackend:
    """A backend with `providers` in order of preference.

    `functions` gives a stage's function by its name, or by ``(stage, provider)``.
    """

    functions: Mapping = field(default_factory=dict)
    providers: tuple[str, ...] = ("fake",)
    name: str = "fake 1"
    sessions: dict = field(default_factory=dict)

    def load(self, stage, entry, graph, external):
        provider = self.providers[0]
        function = self.functions.get((stage, provider), self.functions.get(stage))
        session = FakeSession(stage, entry.inputs, entry.outputs, provider, function)
        self.sessions[stage, provider] = session
        return session

    def fallback(self):
        if len(self.providers) == 1:
            return None
        return FakeBackend(self.functions, self.providers[1:], self.name, self.sessions)
