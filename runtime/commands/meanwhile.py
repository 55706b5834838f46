"""Meanwhile: the option with which a command receives while TensorRT's engines are being built."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from jscc.runtime.backends.base import Backend
from jscc.runtime.backends.engines import make_backend
from jscc.runtime.backends.tensorrt import TensorRtBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.commands.engine import CountedBackend, choose_engine
from jscc.runtime.commands.options import providers
from jscc.runtime.engine_names import AUTO, TENSORRT
from jscc.runtime.errors import ImageError, UsageError
from jscc.runtime.frame import Frame
from jscc.runtime.manifest import Manifest
from jscc.runtime.meanwhile import MeanwhileReceiver
from jscc.runtime.preprocess import geometry_of
from jscc.runtime.receiver import Receiver
from jscc.runtime.terminal import Parser, Progress

MOST_SHAPES: Final = 8  # that engines are built for beforehand


def add_meanwhile(parser: Parser) -> None:
    """``--meanwhile``."""
    parser.add_argument(
        "--meanwhile",
        choices=("cpu", "cuda"),
        help=f"what receives while engines of --engine {TENSORRT} are being built, by ONNX Runtime "
        "(default: nothing, the first images wait)",
    )


@contextmanager
def load_meanwhile(
    bundle: Bundle,
    names: Sequence[str] | None,
    threads: int | None,
    *,
    strict: bool,
    engine: str,
    meanwhile: str,
    shapes: Sequence[str],
) -> Iterator[MeanwhileReceiver]:
    """As `load_receiver`, with a receiver on the provider `meanwhile` at first.

    Raises:
        UsageError: ``E_MEANWHILE``, the engine is one for which nothing is built.
    """
    if engine == AUTO:
        engine = choose_engine(bundle, names)
    if engine != TENSORRT:
        raise UsageError(
            "E_MEANWHILE",
            f"--meanwhile: got {meanwhile} for {engine}, expected engine {TENSORRT}, for which "
            f"something is built. Leave it out, or add --engine {TENSORRT}.",
        )
    backend = make_backend(engine, providers=providers(names), threads=threads)
    assert isinstance(backend, TensorRtBackend)
    first = make_backend(providers=(meanwhile,), threads=threads)
    progress = Progress("receive")

    def make(made_of: Bundle, chosen: Backend) -> Receiver:
        return Receiver(made_of, backend=CountedBackend(chosen, progress), strict_snr=strict)

    try:
        with MeanwhileReceiver(
            bundle, backend=backend, meanwhile=first, shapes=shapes, make=make
        ) as receiver:
            yield receiver
    finally:
        progress.close()


def shapes_of(
    frames: Sequence[Frame], size: tuple[int, int] | None, manifest: Manifest
) -> tuple[str, ...]:
    """The images to build engines for: those of the frames, the most frequent `MOST_SHAPES`.

    Args:
        frames: To receive; those of no known or of an impossible size do not count.
        size: (height, width) of all of them, whatever they say.
        manifest: Of the bundle.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for frame in frames:
        wanted = size or frame.size
        if wanted is None and frame.symbols.ndim == 3:
            rows, columns = frame.symbols.shape[1:]
            wanted = manifest.signal.stride * rows, manifest.signal.stride * columns
        if wanted is not None:
            with suppress(ImageError):  # receiving that frame will say so
                counts[geometry_of(wanted, manifest.image, manifest.image.max_pixels).padded] += 1
    return tuple(f"{height}x{width}" for (height, width), _ in counts.most_common(MOST_SHAPES))
