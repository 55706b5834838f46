"""Engine: what the commands that run a bundle set up the same way."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import Backend, DeviceSession, Session
from jscc.runtime.backends.engines import make_backend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.options import providers
from jscc.runtime.device.device import DeviceArray
from jscc.runtime.device.flow import Flow
from jscc.runtime.device.station import Station
from jscc.runtime.engine_choice import circumstances, find, usual_folder
from jscc.runtime.engine_names import AUTO, DEFAULT
from jscc.runtime.errors import ImageError, JsccError
from jscc.runtime.image_files import MAX_BYTES, decode_image
from jscc.runtime.manifest import StageEntry
from jscc.runtime.ports import Array, Port
from jscc.runtime.receiver import Receiver
from jscc.runtime.terminal import Progress, notice
from jscc.runtime.transmitter import Transmitter
from jscc.runtime.trust import Asset, open_regular, read_span, size_of

Pixels = npt.NDArray[np.uint8]

_IMAGES = Asset(ImageError, "E_IMG", "Name an image file")


@dataclass(frozen=True)
class CountedSession:
    """A session that counts its runs."""

    stage: str
    session: Session
    progress: Progress

    @property
    def inputs(self) -> tuple[Port, ...]:
        """As the session underneath."""
        return self.session.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """As the session underneath."""
        return self.session.outputs

    @property
    def provider(self) -> str:
        """As the session underneath."""
        return self.session.provider

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """As the session underneath."""
        return self.session.fallbacks

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Run the stage, then count."""
        outputs = self.session.run(arrays)
        self.progress.advance(self.stage)
        return outputs


@dataclass(frozen=True)
class CountedDeviceSession(CountedSession):
    """The same of a session that also takes tensors on its device: runs count when they start."""

    there: DeviceSession

    @property
    def station(self) -> Station:
        """As the session underneath."""
        return self.there.station

    def reason_for_host(self, sizes: Mapping[str, int]) -> str:
        """As the session underneath."""
        return self.there.reason_for_host(sizes)

    def run_there(
        self, tensors: Mapping[str, DeviceArray], sizes: Mapping[str, int], flow: Flow
    ) -> dict[str, DeviceArray]:
        """Start the stage, then count."""
        outputs = self.there.run_there(tensors, sizes, flow)
        self.progress.advance(self.stage)
        return outputs


@dataclass(frozen=True)
class CountedBackend:
    """A backend whose sessions count their runs, so that steps and tiles show on a terminal."""

    backend: Backend
    progress: Progress

    @property
    def name(self) -> str:
        """As the backend underneath."""
        return self.backend.name

    def load(
        self, stage: str, entry: StageEntry, graph: bytes, external: Mapping[str, memoryview]
    ) -> Session:
        """Load a stage in the backend underneath."""
        session = self.backend.load(stage, entry, graph, external)
        if isinstance(session, DeviceSession):
            return CountedDeviceSession(stage, session, self.progress, session)
        return CountedSession(stage, session, self.progress)

    def fallback(self) -> Backend | None:
        """As the backend underneath, counted too."""
        backend = self.backend.fallback()
        return None if backend is None else CountedBackend(backend, self.progress)


@contextmanager
def counted_backend(
    what: str, names: Sequence[str] | None, threads: int | None, *, engine: str = DEFAULT
) -> Iterator[Backend]:
    """The engine on the providers `names` (default cpu) with a line of progress while it works."""
    progress = Progress(what)
    try:
        backend = make_backend(engine, providers=providers(names), threads=threads)
        yield CountedBackend(backend, progress)
    finally:
        progress.close()


@contextmanager
def load_transmitter(
    bundle: Bundle, names: Sequence[str] | None, threads: int | None
) -> Iterator[Transmitter]:
    """The transmitter of `bundle`, in the default engine: no self-test would see a fault."""
    with counted_backend("send", names, threads) as backend:
        yield Transmitter(bundle, backend=backend)


def choose_engine(bundle: Bundle, names: Sequence[str] | None) -> str:
    """What ``jscc choose`` found for `bundle`; the default engine where it was not asked.

    Providers are those of the default engine, so that whoever names some has chosen it.
    """
    if names:
        return DEFAULT
    try:
        here, folder = circumstances(bundle.sha256), usual_folder()
        engine = find(here, folder)
    except JsccError as error:
        if error.code != "E_HOME":
            notice(f"jscc: {DEFAULT} receives: {error}")
        return DEFAULT
    if engine is None and here.others(folder):
        notice(f"jscc: {DEFAULT} receives: what jscc choose found was elsewhere, or is outdated")
    elif engine not in (None, DEFAULT):
        notice(f"jscc: {engine} receives, as jscc choose found")
    return engine or DEFAULT


@contextmanager
def load_receiver(
    bundle: Bundle,
    names: Sequence[str] | None,
    threads: int | None,
    *,
    strict: bool,
    engine: str = DEFAULT,
) -> Iterator[Receiver]:
    """The receiver of `bundle`, after its self-test; without one in the default engine."""
    if engine == AUTO:
        engine = choose_engine(bundle, names)
    if bundle.manifest.selftest is None and engine != DEFAULT:
        notice(f"jscc: {DEFAULT} receives: {bundle.path} has no self-test to hold {engine} to")
        engine = DEFAULT
    with counted_backend("receive", names, threads, engine=engine) as backend:
        yield Receiver(bundle, backend=backend, strict_snr=strict)


def read_picture(path: Path, max_pixels: int) -> Pixels:
    """Read an image file; what had to be changed is said on stderr.

    Returns:
        uint8[height, width, 3], RGB, upright.

    Raises:
        ImageError: ``E_IMG_MISSING``, ``E_IMG_FILETYPE``; and as `decode_image`.
        StorageError: ``E_IO``, reading failed.
    """
    with open_regular(path.resolve(), asset=_IMAGES) as descriptor:
        size = size_of(descriptor)
        if size > MAX_BYTES:
            raise ImageError(
                "E_IMG_SIZE",
                f"image {str(path)!r}: got {size} bytes, expected at most {MAX_BYTES}. "
                "Compress it.",
            )
        data, _ = read_span(descriptor, str(path), 0, size, asset=_IMAGES)
    picture = decode_image(str(path), data.tobytes(), max_pixels=max_pixels)
    for text in picture.notices:
        notice(text)
    return picture.pixels
