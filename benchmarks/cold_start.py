"""Cold start: a fresh process from nothing to its first image, each part timed.

`jscc.benchmarks.latency` runs it as ``python -m jscc.benchmarks.cold_start`` with a request on
stdin. It imports nothing early that a receiving program imports, so that the clock sees it all.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from jscc.runtime.machine import peak_rss_mib

_READY = time.monotonic()
_RUNTIME = (
    *("backends.onnxruntime", "bundle", "csi", "manifest", "preprocess", "receiver"),
    *("record", "transmitter"),
)


def main() -> None:
    """Read the request, receive one image, write the figures as JSON to stdout."""
    request = json.load(sys.stdin)
    figures: dict[str, float | None] = {
        "interpreter_ms": _ms(_READY - request["spawned"]),
        "interpreter_rss_mib": peak_rss_mib(),
    }

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        figures[f"{name}_ms"] = _ms(time.monotonic() - started)
        figures[f"{name}_rss_mib"] = peak_rss_mib()
        return result

    timed("import", lambda: [import_module(f"jscc.runtime.{name}") for name in _RUNTIME])
    bundle = timed("open", lambda: _open(request["bundle"]))
    receiver = timed("load", lambda: _load(bundle, request["case"]))
    timed("first_image", lambda: _receive(bundle, receiver, request["case"]))
    figures["total_ms"] = _ms(time.monotonic() - request["spawned"])
    figures["peak_rss_mib"] = peak_rss_mib()
    json.dump(figures, sys.stdout, allow_nan=False)


def _open(path: str) -> Any:
    """Read and verify the bundle."""
    return import_module("jscc.runtime.bundle").Bundle.open(Path(path))


def _load(bundle: Any, case: Mapping[str, Any]) -> Any:
    """Load every stage and run the self-test."""
    backend = import_module("jscc.runtime.backends.engines").make_backend(
        case["engine"], providers=tuple(case["providers"]), threads=case["threads"]
    )
    return import_module("jscc.runtime.receiver").Receiver(bundle, backend=backend)


def _receive(bundle: Any, receiver: Any, case: Mapping[str, Any]) -> None:
    """Receive one image."""
    probe = import_module("jscc.runtime.probe")
    csi = import_module("jscc.runtime.csi").Csi(bundle.manifest.signal.snr_db_default)
    size = tuple(case["size"])
    receiver.receive(
        probe.make_symbols(bundle.manifest, size, seed=case["seed"]),
        csi,
        seed=case["seed"],
        sampler=case["sampler"],
        steps=case["steps"],
        size=size,
        side=probe.make_sides(bundle.manifest, size),
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


if __name__ == "__main__":
    main()
