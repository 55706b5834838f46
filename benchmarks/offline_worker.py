"""Offline worker: one process of `jscc.benchmarks.offline`, with a receiver of its own.

It reads a request from stdin, loads and warms up, and says so with a line on stdout. At the next
line of stdin it begins; once the duration is over it says what it did, and goes on without
counting until one more line comes, so that nobody is measured while a neighbour rests.
"""

import json
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jscc.benchmarks.cases import Setup, case_from
from jscc.runtime.bundle import Bundle
from jscc.runtime.machine import peak_rss_mib


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.readline())
    case = case_from(request["case"])
    setup = Setup(Bundle.open(Path(request["bundle"])), case, batch=request["batch"])
    for number in range(case.warmup):
        setup.receive(number * request["batch"])
    _say({"ready": True})
    sys.stdin.readline()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    _say(_measure(setup, request))
    while not stop.is_set():
        setup.receive(0)
    _say({"peak_rss_mib": peak_rss_mib()})


def _measure(setup: Setup, request: Mapping[str, Any]) -> dict[str, Any]:
    """Receive batches for the duration that was asked, and until the last one is done."""
    batch, frame, times = request["batch"], 0, []
    began = time.perf_counter()
    before = began
    while before - began < request["duration_s"]:
        record = setup.receive(frame)
        now = time.perf_counter()
        times.append(1000 * (now - before))
        before = now
        frame += batch
    return {"seconds": before - began, "batches_ms": times, "record": json.loads(record.to_json())}


def _listen(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


def _say(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
