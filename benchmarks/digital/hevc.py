"""HEVC-intra: the still-picture coder inside BPG, through PyAV's libx265, within a byte budget.

One frame, constant QP, preset slow, tune psnr, YCbCr 4:2:0 of full range. What a receiver would be
told once and for all is not charged: the three parameter sets (81 bytes) depend on the picture's
size alone, so both ends have them; the budget is for the coded slice.

NOTE: x265 is GPL-2.0-or-later and comes with PyAV's wheels. It is a peer in benchmarks, nothing
that this package ships, and no other folder may import it.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from PIL import Image as Pillow

from jscc.calibration.metrics import Image, psnr_db
from jscc.runtime.errors import DataError

Planes = tuple[npt.NDArray[np.uint8], ...]
Floats = npt.NDArray[np.float64]

QPS = range(52)
SCALES = (1, 2, 4, 8)
MIN_SIDE = 16
OPTIONS = {"preset": "slow", "tune": "psnr"}
# One frame, no text about the encoder in the stream, one thread: the bytes depend on nothing else.
X265 = "keyint=1:info=0:log-level=none:pools=none:frame-threads=1:no-wpp=1"
_START = b"\x00\x00\x01"
_PARAMETER_SETS = (32, 33, 34)  # VPS, SPS, PPS
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Coded:
    """An image as bytes.

    Attributes:
        data: The coded slice.
        size: Height and width of the whole image.
        scale: By how much it was made smaller before it was coded.
        qp: Quantisation parameter.
    """

    data: bytes
    size: tuple[int, int]
    scale: int
    qp: int


class Still:
    """One image, coded within one budget after the other; what was encoded once is kept.

    Args:
        image: uint8[height, width, 3], RGB.
        scales: Sizes to choose from; where bytes are few, a smaller picture is often the better
            one. `SCALES` that leave less than `MIN_SIDE` pixels are left out.
    """

    def __init__(self, image: Image, scales: tuple[int, ...] = SCALES) -> None:
        self._image = image
        self._size = (image.shape[0], image.shape[1])
        least = min(self._size)
        self._scales = tuple(scale for scale in scales if least // scale >= MIN_SIDE)
        self._planes: dict[int, Planes] = {}
        self._coded: dict[tuple[int, int], Coded] = {}
        self._quality: dict[Coded, float] = {}

    def within(self, budget: int) -> Coded | None:
        """The best that fits into `budget` bytes, by PSNR; None where nothing does.

        For each scale that is the smallest QP that fits. Scales are tried from the whole image
        down, until one is worse than the one before it.
        """
        best: Coded | None = None
        for scale in self._scales:
            coded = self._finest(scale, budget)
            if coded is None:
                continue
            if best is not None and self._psnr(coded) <= self._psnr(best):
                break
            best = coded
        return best

    def _finest(self, scale: int, budget: int) -> Coded | None:
        """The smallest QP that fits, by bisection."""
        low, high = QPS.start, QPS.stop
        while low < high:
            middle = (low + high) // 2
            if len(self._encode(scale, middle).data) <= budget:
                high = middle
            else:
                low = middle + 1
        return self._encode(scale, low) if low in QPS else None

    def _encode(self, scale: int, qp: int) -> Coded:
        if scale not in self._planes:
            self._planes[scale] = to_planes(_resized(self._image, _shrunk(self._size, scale)))
        if (scale, qp) not in self._coded:
            data = encode(self._planes[scale], qp)
            self._coded[scale, qp] = Coded(data, self._size, scale, qp)
        return self._coded[scale, qp]

    def _psnr(self, coded: Coded) -> float:
        if coded not in self._quality:
            self._quality[coded] = psnr_db(self._image, restore(coded))
        return self._quality[coded]


def restore(coded: Coded) -> Image:
    """The image that `coded` decodes to, in the size of the one that was sent."""
    size = _shrunk(coded.size, coded.scale)
    planes = decode(coded.data, _even(size))
    return _resized(to_image(planes, size), coded.size)


def encode(planes: Planes, qp: int) -> bytes:
    """The coded slice of one frame, its start code left out."""
    units = _units(_stream(planes, qp))
    (data,) = (data for kind, data in units if kind not in _PARAMETER_SETS)
    return data


def decode(data: bytes, size: tuple[int, int]) -> Planes:
    """The planes of a coded slice of `size` (even height, even width).

    Raises:
        DataError: ``E_HEVC``, these bytes are no slice of this size.
    """
    decoder = av.CodecContext.create("hevc", "r")
    decoder.thread_count = 1
    frames = []
    try:
        packet = av.Packet(b"".join((*_parameter_sets(size), _START, data)))
        frames = [*_video(decoder).decode(packet), *_video(decoder).decode(None)]
    except av.FFmpegError as error:
        raise _unreadable(str(error), size) from error
    if len(frames) != 1 or (frames[0].height, frames[0].width) != size:
        raise _unreadable(f"{len(frames)} pictures", size)
    wide = np.asarray(frames[0].to_ndarray(), np.uint8)
    height, width = size
    chroma = wide[height:].reshape(2, height // 2, width // 2)
    return wide[:height], chroma[0], chroma[1]


def to_planes(image: Image) -> Planes:
    """Luma and the two halved chroma planes, full range; sides are made even by repetition."""
    height, width = image.shape[:2]
    pixels = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(float)
    luma = pixels @ _LUMA
    chroma = (128 + (pixels[..., 2] - luma) / 1.772, 128 + (pixels[..., 0] - luma) / 1.402)
    halves = (
        plane.reshape(plane.shape[0] // 2, 2, plane.shape[1] // 2, 2).mean(axis=(1, 3))
        for plane in chroma
    )
    return tuple(_bytes(plane) for plane in (luma, *halves))


def to_image(planes: Planes, size: tuple[int, int]) -> Image:
    """RGB of `size` from what `to_planes` makes."""
    luma = planes[0].astype(float)
    blue, red = (_doubled(plane.astype(float)) - 128 for plane in planes[1:])
    green = luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587
    pixels = np.stack((luma + 1.402 * red, green, luma + 1.772 * blue), axis=2)
    return _bytes(pixels[: size[0], : size[1]])


def _stream(planes: Planes, qp: int) -> bytes:
    """The whole stream of one frame."""
    height, width = planes[0].shape
    encoder = _video(av.CodecContext.create("libx265", "w"))
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1), Fraction(1)
    encoder.options = {**OPTIONS, "x265-params": f"qp={qp}:{X265}"}
    frame = av.VideoFrame.from_ndarray(
        np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, width), "yuv420p"
    )
    frame.pts = 0
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))


@cache
def _parameter_sets(size: tuple[int, int]) -> tuple[bytes, ...]:
    """What the two ends have agreed on for pictures of `size`, with start codes."""
    height, width = size
    shapes = ((height, width), (height // 2, width // 2), (height // 2, width // 2))
    grey = tuple(np.full(shape, 128, np.uint8) for shape in shapes)
    units = _units(_stream(grey, QPS[-1]))
    return tuple(_START + data for kind, data in units if kind in _PARAMETER_SETS)


def _units(stream: bytes) -> list[tuple[int, bytes]]:
    """Type and bytes of each unit between start codes."""
    parts = [part.removesuffix(b"\x00") for part in stream.split(_START)[1:]]
    return [((part[0] >> 1) & 63, part) for part in parts]


def _video(context: av.CodecContext) -> VideoCodecContext:
    assert isinstance(context, VideoCodecContext)
    return context


def _unreadable(got: str, size: tuple[int, int]) -> DataError:
    return DataError(
        "E_HEVC",
        f"HEVC slice: got {got}, expected one picture of {size[0]}x{size[1]}. "
        "Decode what was encoded, at its own size.",
    )


def _shrunk(size: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-size[0] // scale), -(-size[1] // scale)


def _even(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _resized(image: Image, size: tuple[int, int]) -> Image:
    if image.shape[:2] == size:
        return image
    resample = Pillow.Resampling.LANCZOS
    return np.asarray(Pillow.fromarray(image).resize((size[1], size[0]), resample))


def _doubled(plane: Floats) -> Floats:
    """Twice as many rows and columns, by the straight line between centres of samples."""
    for _ in range(2):
        padded = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
        above, below = padded[:-2], padded[2:]
        both = np.stack((0.75 * plane + 0.25 * above, 0.75 * plane + 0.25 * below), axis=1)
        plane = both.reshape(-1, plane.shape[1]).T
    return plane


def _bytes(values: Floats) -> npt.NDArray[np.uint8]:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
