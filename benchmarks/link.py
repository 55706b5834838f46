"""Link: one bundle from image to image over a simulated radio channel, with and without repainting.

Everything random is drawn from (seed, image name, SNR), so every bundle, sampler and number of
steps meets the same channel noise, and adding images changes nothing for the others.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jscc.benchmarks.metrics import Image
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.channel import Rayleigh, pass_through
from jscc.runtime.commands.simulate import codec_alone
from jscc.runtime.csi import Csi
from jscc.runtime.loop import Choices
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.transmitter import Transmitter

Symbols = npt.NDArray[np.complex64]

CHANNELS = ("awgn", "rayleigh")


@dataclass(frozen=True)
class Received:
    """What arrived on the air.

    Attributes:
        symbols: As many as were sent.
        csi: What the receiver is told.
        size: Height and width of the image that was sent, in pixels.
        seed: Seed of this transmission.
        frame: Number that the image's name gives it.
    """

    symbols: Symbols
    csi: Csi
    size: tuple[int, int]
    seed: int
    frame: int


class Link:
    """Transmitter, channel and receivers of one bundle.

    Args:
        path: The bundle.
        channel: One of `CHANNELS`.
        threads: Of the engine; None for all.
    """

    def __init__(self, path: Path, channel: str, threads: int | None) -> None:
        self.bundle = Bundle.open(path)
        backend = OnnxRuntimeBackend(threads=threads)
        self._fading = channel == "rayleigh"
        self._transmitter = Transmitter(self.bundle, backend=backend)
        self._receiver = Receiver(self.bundle, backend=backend)
        codec = codec_alone(self.bundle)
        self._codec = None if codec is None else Receiver(codec, backend=backend)

    def transmit(self, image: Image, name: str, snr_db: float, seed: int) -> Received:
        """Send `image` once; a transmitter that uses the channel's state is told it."""
        frame = zlib.crc32(name.encode())
        rng = np.random.default_rng([seed, frame, round(1000 * (snr_db + 1000))])
        csi = Rayleigh().draw(snr_db, rng=rng) if self._fading else Csi(snr_db)
        symbols = self._transmitter.send(image, csi=csi)
        height, width = image.shape[:2]
        return Received(pass_through(symbols, csi, rng=rng), csi, (height, width), seed, frame)

    def codec(self, received: Received) -> Image | None:
        """The image of the codec alone; None where nothing comes after it."""
        if self._codec is None:
            return None
        r = received
        return self._codec.receive(r.symbols, r.csi, seed=r.seed, frame=r.frame, size=r.size)[0]

    def receive(self, received: Received, setting: Choices) -> tuple[Image, Record]:
        """The image that the whole bundle makes of it."""
        return self._receiver.receive(
            received.symbols,
            received.csi,
            seed=received.seed,
            frame=received.frame,
            size=received.size,
            sampler=setting.sampler,
            steps=setting.steps,
            start=setting.start,
            start_level=setting.start_level,
            guidance=setting.guidance,
        )
