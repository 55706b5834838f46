"""Meanwhile: a receiver that serves at once, and goes over to TensorRT when the engines are there.

    here        receiver on the CPU, self-tested ─ serves ────────────────┐ exchanged, dropped
    process     jscc build: engines into the cache ──┐                    │
    thread      (passes its lines on) ───────────────┴ receiver on the ───┴─ serves
                                                       engines, self-tested

`jscc.runtime.backends.tensorrt` alone lets the first images wait: a self-test that the CPU passed
would say nothing of the engine. Here each of the two receivers passes its own, and the Record says
which of them received. Whatever goes wrong leaves the first one, and every Record says so.

NOTE: like the backend, it never met a device; tests have fakes of driver and library.
"""

import functools
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Concatenate, Final, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import Backend, Session
from jscc.runtime.backends.engines import ran_on
from jscc.runtime.backends.tensorrt import TensorRtBackend, find_place
from jscc.runtime.bundle import Bundle
from jscc.runtime.child import Child, command_line, describe_end
from jscc.runtime.engine_names import TENSORRT
from jscc.runtime.errors import JsccError, UnavailableError, UsageError
from jscc.runtime.manifest import Manifest, StageEntry
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.tensorrt.spans import parse_shapes, selftest_size, stage_spans

Pixels = npt.NDArray[np.uint8]
Tell = Callable[[str], None]
Make = Callable[[Bundle, Backend], Receiver]
_P = ParamSpec("_P")
_R = TypeVar("_R", Record, tuple[Record, ...])

_WHERE: Final = f"engine {TENSORRT}"
# A line of ``jscc build`` that says why it fails; some say why it goes on otherwise.
_ERROR: Final = re.compile(
    r"jscc build: (?!built again)(?P<message>.*) \[(?P<code>E_[A-Z0-9_]+)\]$"
)


def make_receiver(bundle: Bundle, backend: Backend) -> Receiver:
    """A receiver with nothing but its backend chosen."""
    return Receiver(bundle, backend=backend)


@dataclass(frozen=True)
class _Serving:
    """What receives, and what each Record says besides.

    Attributes:
        receiver: The one.
        notes: Why it is not the other one.
    """

    receiver: Receiver
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Alone:
    """A backend in whose place nothing else is taken, since another receiver is there already.

    Attributes:
        backend: The one.
        sessions: What it loaded.
    """

    backend: Backend
    sessions: list[Session] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As the backend underneath."""
        return self.backend.name

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load a stage in the backend underneath."""
        self.sessions.append(self.backend.load(stage, entry, graph, external))
        return self.sessions[-1]

    def fallback(self) -> None:
        """Nothing."""


class _Exchange:
    """What serves, and what is done beside it to have another one serve.

    NOTE: it knows nothing of the `MeanwhileReceiver`, whose end is its own.

    Args:
        receiver: Serves at first.
        tell: Hears what comes of it.
    """

    def __init__(self, receiver: Receiver, tell: Tell) -> None:
        self.serving = _Serving(receiver)
        self.settled = threading.Event()
        self._tell = tell
        self._lock = threading.RLock()  # a garbage collection, which may close it, comes anywhere
        self._closed = False
        self._child: Child | None = None
        self._thread: threading.Thread | None = None

    def stay(self, reason: str) -> None:
        """Leave it to the receiver that serves, and say why."""
        receiver = self.serving.receiver
        note = f"{_WHERE}: {receiver.backend} receives, since {reason}"
        self._settle(_Serving(receiver, (note,)), note)

    def start(self, command: Sequence[str], make: Callable[[], Receiver]) -> None:
        """Run `command`, then have what `make` returns serve, all of it beside the receptions."""
        receiver = self.serving.receiver
        note = f"{_WHERE}: being built, {receiver.backend} receives meanwhile"
        self.serving = _Serving(receiver, (note,))
        self._tell(note)
        self._thread = threading.Thread(
            target=self._run, args=(command, make), name="engines", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End what is done beside; what serves then does from now on."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            child.end()
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()

    def _run(self, command: Sequence[str], make: Callable[[], Receiver]) -> None:
        try:
            self._build(command)
            receiver = make()
            with self._lock:
                self._check_open()
        except _Closed:
            self.stay("it was closed before they were ready; those that are complete are kept")
        except JsccError as error:
            self.stay(str(error))
        except Exception as error:  # whatever a library throws, the other receiver goes on
            self.stay(f"{type(error).__name__}: {error}")
        else:
            said = f"{_WHERE}: ready, {receiver.backend} receives from now on"
            self._settle(_Serving(receiver), said)

    def _settle(self, serving: _Serving, said: str) -> None:
        self.serving = serving
        try:
            self._tell(said)
        finally:
            self.settled.set()

    def _build(self, command: Sequence[str]) -> None:
        """Run the build to its end.

        Raises:
            OSError: It does not start.
            UnavailableError: It failed, in its own words; ``E_ENGINE_BUILD``, it said nothing.
        """
        lines: deque[str] = deque(maxlen=1)
        errors: list[re.Match[str]] = []

        def hear(line: str) -> None:
            lines.append(line)
            errors.extend(filter(None, [_ERROR.match(line)]))
            self._tell(line)

        with self._lock:
            self._check_open()
            child = self._child = Child(command)
        with child:
            self._check_open()
            status = child.follow(hear)
        with self._lock:
            self._check_open()
            self._child = None
        if status == 0:
            return
        if errors and status > 0:
            raise UnavailableError(errors[0]["code"], errors[0]["message"])
        last = f", and last {lines[0]!r}" if lines else ""
        raise UnavailableError(
            "E_ENGINE_BUILD",
            f"jscc build: got {describe_end(status)}{last}, expected it to build the engines. "
            "Run it by itself; where memory was short, with other programs closed.",
        )

    def _check_open(self) -> None:
        if self._closed:
            raise _Closed


class _Closed(Exception):
    """Nobody waits for the engines any more."""


def _delegated(
    method: Callable[Concatenate[Receiver, _P], tuple[Pixels, _R]],
    noted: Callable[[_R, tuple[str, ...]], _R],
) -> Callable[Concatenate["MeanwhileReceiver", _P], tuple[Pixels, _R]]:
    """A method of `Receiver`, of the one that serves when it is called; its notes are added."""

    @functools.wraps(method)
    def call(
        self: "MeanwhileReceiver", /, *args: _P.args, **kwargs: _P.kwargs
    ) -> tuple[Pixels, _R]:
        serving = self._serving
        images, records = method(serving.receiver, *args, **kwargs)
        return images, noted(records, serving.notes)

    return call


def _noted(record: Record, notes: tuple[str, ...]) -> Record:
    return replace(record, fallbacks=(*notes, *record.fallbacks))


def _all_noted(records: tuple[Record, ...], notes: tuple[str, ...]) -> tuple[Record, ...]:
    return tuple(_noted(record, notes) for record in records)


class MeanwhileReceiver:
    """Receives at once, and with TensorRT as soon as its engines are built; threads may share it.

    The engines are built by ``jscc build`` in a process of its own, for the stages that receive,
    for the size of the self-test and for `shapes`; those that are kept already are not built again.
    Then a second receiver is made of them, and takes the place of the first between two receptions.
    Until then there is memory for both, and a part of the processor for the build.

    An image of a size that has no engine is received like with `TensorRtBackend` alone: it waits
    until one is built. Have all that are to come in `shapes`.

    Without library or device, without a self-test, where a stage is not built or the self-test
    on the engines does, the first receiver goes on. What receives instead of the engines is in the
    `fallbacks` of every Record, and is told once.

    Args:
        bundle: What to run. It is not held on to once it is known what receives.
        backend: What it goes over to, where its engines are kept and who is told; its `threads` are
            those of the first receiver too.
        meanwhile: Receives at first; by default ONNX Runtime on the CPU. One that needs the device
            disturbs what full TensorRT measures there to choose its kernels.
        shapes: As ``jscc build --shapes`` takes them; by default as it has them without.
        make: Makes either receiver, and says what else they have in common.
        command: What builds, instead of ``jscc build``.

    Raises:
        UsageError: ``E_SHAPES``; ``E_MEANWHILE``, a backend with TF32, for which nothing is built.
        UnavailableError: ``E_HOME``, no `backend` is given and this user has no folder for one.
        JsccError: What `Receiver` raises of the first one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: TensorRtBackend | None = None,
        meanwhile: Backend | None = None,
        shapes: Sequence[str] = (),
        make: Make = make_receiver,
        command: Sequence[str] | None = None,
    ) -> None:
        engines = backend or TensorRtBackend()
        if engines.tf32:
            raise UsageError(
                "E_MEANWHILE",
                "backend: got one with TF32, expected one without, which jscc build builds for. "
                "Leave out tf32.",
            )
        arguments = _build_arguments(bundle, engines, shapes)
        first = make(bundle, meanwhile or engines.fallback())
        self._exchange = exchange = _Exchange(first, engines.tell)
        reason = _obstacle(bundle.manifest, engines)
        if reason:
            exchange.stay(reason)
        else:
            second = functools.partial(_make_on_engines, bundle, engines, make)
            exchange.start(command or command_line(arguments), second)
        self._close = weakref.finalize(self, exchange.close)  # at the process's end, too

    receive = _delegated(Receiver.receive, _noted)
    receive_batch = _delegated(Receiver.receive_batch, _all_noted)

    @property
    def backend(self) -> str:
        """Engine library and version that receives now."""
        return self._serving.receiver.backend

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is known what receives from then on, `seconds` at most.

        Returns:
            Whether it is known.
        """
        return self._exchange.settled.wait(seconds)

    def close(self) -> None:
        """End building; nothing of it is left afterwards but engines that are complete.

        What receives now does so from now on. While the second receiver is just being made, that is
        waited for.
        """
        self._close()

    def __enter__(self) -> "MeanwhileReceiver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _serving(self) -> _Serving:
        return self._exchange.serving


def _build_arguments(
    bundle: Bundle, backend: TensorRtBackend, shapes: Sequence[str]
) -> tuple[str, ...]:
    """Those of ``jscc`` that build what receivers of `bundle` need.

    Raises:
        UsageError: ``E_SHAPES``.
    """
    manifest = bundle.manifest
    images = [span for text in shapes for span in parse_shapes(text)]
    for stage in manifest.receiver_stages:
        stage_spans(images, manifest.stages[stage], manifest)
    tested = selftest_size(manifest)
    if shapes and tested is not None:  # without shapes it is among the usual ones
        shapes = (f"{tested[0]}x{tested[1]}", *shapes)
    return (
        *("build", str(bundle.path.absolute()), "--missing"),
        *("--output", str(backend.folder.absolute())),
        *(part for stage in manifest.receiver_stages for part in ("--stage", stage)),
        *(part for text in shapes for part in ("--shapes", text)),
    )


def _obstacle(manifest: Manifest, backend: TensorRtBackend) -> str:
    """Why nothing needs to be built; empty where nothing is known against it."""
    if manifest.selftest is None:
        return "the bundle has no self-test to hold engines to"
    try:
        find_place(backend.folder)
    except JsccError as error:
        return str(error)
    return ""


def _make_on_engines(bundle: Bundle, backend: TensorRtBackend, make: Make) -> Receiver:
    """A receiver on the engines; its self-test has run on them.

    Raises:
        JsccError: What `Receiver` raises; ``E_SELFTEST``, also where engines ran no stage of it.
    """
    alone = _Alone(backend)
    receiver = make(bundle, alone)
    if not ran_on(TENSORRT, [session.provider for session in alone.sessions]):
        reasons = dict.fromkeys(text for session in alone.sessions for text in session.fallbacks)
        raise UnavailableError(
            "E_SELFTEST",
            f"self-test on {backend.name}: got no stage on the device ({'; '.join(reasons)}), "
            "expected one at least. Use onnxruntime.",
        )
    return receiver
