"""Link: one bundle from image to image over a simulated radio channel, with and without repainting.

What is drawn is drawn as in `jscc.calibration.air`.
"""

from collections.abc import Sequence
from pathlib import Path

from jscc.calibration.air import Received, frame_of, meet_channel
from jscc.calibration.metrics import Image
from jscc.runtime.backends.engines import check_machine, make_backend, ran_on
from jscc.runtime.bundle import Bundle
from jscc.runtime.channel import pass_through
from jscc.runtime.choices import Choices
from jscc.runtime.commands.host_sides import read_sides
from jscc.runtime.commands.simulate import codec_alone
from jscc.runtime.engine_names import DEFAULT
from jscc.runtime.errors import UnavailableError
from jscc.runtime.receiver import Receiver
from jscc.runtime.record import Record
from jscc.runtime.transmitter import Transmitter


class Link:
    """Transmitter, channel and receivers of one bundle.

    Args:
        path: The bundle.
        channel: One of `CHANNELS`.
        threads: Of the engine; None for all.
        sides: Names and files of side inputs that the host gives.
        engine: Of the receiver; what no self-test covers runs in the default one.

    Raises:
        UnavailableError: What `check_machine` raises; ``E_MODULE``, the engine is not installed.
    """

    def __init__(
        self,
        path: Path,
        channel: str,
        threads: int | None,
        sides: Sequence[tuple[str, Path]] = (),
        engine: str = DEFAULT,
    ) -> None:
        check_machine(engine)
        self.bundle = Bundle.open(path)
        self._sides = read_sides(self.bundle.manifest, None, sides)
        backend = make_backend(threads=threads)
        self._channel = channel
        self._transmitter = Transmitter(self.bundle, backend=backend)
        wanted = make_backend(engine, threads=threads)
        self._engine, self._named = engine, wanted.name
        self._receiver = Receiver(self.bundle, backend=wanted)
        codec = codec_alone(self.bundle)
        self._codec = None if codec is None else Receiver(codec, backend=backend)
        self._codec_sides = () if codec is None else codec.manifest.side_inputs

    def transmit(
        self, image: Image, name: str, snr_db: float, seed: int, rate: int | None = None
    ) -> Received:
        """Send `image` once; a transmitter that uses the channel's state is told it.

        Args:
            image: uint8[height, width, 3], RGB.
            name: Of its file; other names, other noise.
            snr_db: Of the channel.
            seed: Of this transmission.
            rate: Planes on the air; None for the bundle's own.
        """
        csi, rng = meet_channel(self._channel, name, snr_db, seed)
        symbols, side = self._transmitter.send_with_side(image, csi=csi, rate=rate)
        arrived = pass_through(symbols, csi, rng=rng)
        size = (image.shape[0], image.shape[1])
        return Received(arrived, csi, size, seed, frame_of(name), side)

    def codec(self, received: Received) -> Image | None:
        """The image of the codec alone; None where nothing comes after it."""
        if self._codec is None:
            return None
        r = received
        side = {name: array for name, array in r.side.items() if name in self._codec_sides}
        return self._codec.receive(
            r.symbols, r.csi, seed=r.seed, frame=r.frame, size=r.size, side=side
        )[0]

    def receive(self, received: Received, setting: Choices) -> tuple[Image, Record]:
        """The image that the whole bundle makes of it.

        Raises:
            UnavailableError: ``E_ENGINE_UNUSED``, the engine that was asked for has run no stage
                so far.
        """
        image, record = self._receiver.receive(
            received.symbols,
            received.csi,
            seed=received.seed,
            frame=received.frame,
            size=received.size,
            side={**self._sides.of(self.bundle.manifest, received.size), **received.side},
            sampler=setting.sampler,
            steps=setting.steps,
            start=setting.start,
            start_level=setting.start_level,
            guidance=setting.guidance,
            guide=setting.guide,
            guide_every=setting.guide_every,
            travel=setting.travel,
            settings=setting.settings,
            spacing=setting.spacing,
        )
        own = ran_on(self._engine, record.providers.values())
        if self._receiver.backend != self._named or not own:
            raise UnavailableError(
                "E_ENGINE_UNUSED",
                f"engine {self._engine!r}: got a reception without it ({record.fallbacks[0]}), "
                f"expected it to run a stage. Take {DEFAULT}.",
            )
        return image, record
