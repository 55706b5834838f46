"""Transmitter: images to symbols.

image ─ enlarge, pad ─ encode ─ unit mean power ─ pack ─▶ symbols
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jscc.runtime.backends.base import Backend
from jscc.runtime.backends.onnxruntime import OnnxRuntimeBackend
from jscc.runtime.bundle import Bundle
from jscc.runtime.csi import Csi
from jscc.runtime.errors import BundleError, CsiError, ImageError, UsageError
from jscc.runtime.ports import Array, describe
from jscc.runtime.preprocess import check_image, enlarge, geometry_of, pad, to_network
from jscc.runtime.program import load_stages
from jscc.runtime.sides import ENCODE, side_outputs
from jscc.runtime.stage import Trace
from jscc.runtime.tiling import tile_image

Pixels = npt.NDArray[np.uint8]
Symbols = npt.NDArray[np.complex64]
Floats = npt.NDArray[np.float32]


class Transmitter:
    """The sender's side of a bundle; immutable, so that threads may share it.

    Args:
        bundle: Has an ``encode`` stage.
        backend: Engine; by default ONNX Runtime on the CPU.
        max_pixels: Largest padded image; by default what the bundle says.

    Raises:
        BundleError: ``E_NO_ENCODER``, the bundle is a receiver's only; or what the backend raises.
        UnavailableError: What the backend raises.
    """

    def __init__(
        self, bundle: Bundle, *, backend: Backend | None = None, max_pixels: int | None = None
    ) -> None:
        if ENCODE not in bundle.manifest.stages:
            raise BundleError(
                "E_NO_ENCODER",
                f"bundle {str(bundle.path)!r}: got no {ENCODE!r} stage, expected one. "
                "Send with a bundle that has the transmitter's half.",
            )
        self._manifest = bundle.manifest
        stages = load_stages(bundle, (ENCODE,), backend or OnnxRuntimeBackend())
        self._encode = stages[ENCODE]
        self._side = side_outputs(bundle.manifest)
        image = bundle.manifest.image
        self._max_pixels = image.max_pixels if max_pixels is None else max_pixels

    def send(self, image: Pixels, *, csi: Csi | None = None, rate: int | None = None) -> Symbols:
        """Encode one image.

        Args:
            image: uint8[height, width, 3], RGB.
            csi: What the transmitter knows of the channel; by default the bundle's own SNR. An
                SNR outside the trained range is clamped to it.
            rate: Planes to send, one of the manifest's ``signal.rates``; by default all.

        Returns:
            complex64[planes / 2, rows, columns] of unit mean power.

        Raises:
            ImageError: ``E_IMG_TYPE``, ``E_IMG_SIZE``; ``E_IMG_FLAT``, the encoder's output has no
                power to be scaled; ``E_SIDE_NONFINITE``, a side output is not finite.
            CsiError: ``E_CSI_NEEDED``, this system's transmitter has to know the gain.
            UsageError: ``E_RATE``, no rate of this bundle; ``E_SIDE_OUTPUT``, the receiver needs
                more than the symbols: see `send_with_side`.
            UnavailableError: ``E_RUN``, ``E_MEMORY``.
        """
        check_image(image)
        csis = None if csi is None else (csi,)
        symbols: Symbols = self.send_batch(image[None], csis=csis, rate=rate)[0]
        return symbols

    def send_batch(
        self, images: Pixels, *, csis: Sequence[Csi] | None = None, rate: int | None = None
    ) -> Symbols:
        """Encode images of one size.

        Args:
            images: uint8[batch, height, width, 3], RGB.
            csis: One per image; see `send`.
            rate: Of all images; see `send`.

        Returns:
            complex64[batch, planes / 2, rows, columns], each image of unit mean power.
        """
        if self._side:
            names = ", ".join(port.name for port in self._side)
            raise UsageError(
                "E_SIDE_OUTPUT",
                f"send: got a bundle whose receiver is also given {names}, expected one that sends "
                "symbols only. Call send_with_side.",
            )
        return self.send_batch_with_side(images, csis=csis, rate=rate)[0]

    def send_with_side(
        self, image: Pixels, *, csi: Csi | None = None, rate: int | None = None
    ) -> tuple[Symbols, dict[str, Array]]:
        """Encode one image; args and errors as in `send`, but for ``E_SIDE_OUTPUT``.

        Returns:
            The symbols, and what the receiver is to be given as `side` with them: float32[1, …]
            by name, nothing for a bundle that sends symbols only.
        """
        check_image(image)
        csis = None if csi is None else (csi,)
        symbols, side = self.send_batch_with_side(image[None], csis=csis, rate=rate)
        return symbols[0], side

    def send_batch_with_side(
        self, images: Pixels, *, csis: Sequence[Csi] | None = None, rate: int | None = None
    ) -> tuple[Symbols, dict[str, Array]]:
        """Encode images of one size; args as in `send_batch`, the result as in `send_with_side`."""
        size = _check_batch(images)
        sent = self._rate(rate)
        known = self._known(len(images), csis)
        geometry = geometry_of(size, self._manifest.image, self._max_pixels)
        padded = [to_network(pad(enlarge(image, geometry), geometry)) for image in images]
        contract = self._manifest.image
        tiling = tile_image(
            *geometry.padded,
            tile=contract.tile,
            overlap=contract.overlap,
            multiple=contract.multiple,
        )
        arrays: dict[str, Array] = {
            "image": np.stack(padded),
            "snr_db": np.array([self._clamped(csi) for csi in known], np.float32),
            "gain": np.array([(csi.gain.real, csi.gain.imag) for csi in known], np.float32),
            "rate": np.full(len(images), sent, np.float32),
        }
        fed = {port.name: arrays[port.name] for port in self._encode.entry.inputs}
        outputs = self._encode.run(fed, tiling, Trace())
        planes = outputs[self._encode.entry.outputs[0].name].astype(np.float32, copy=False)
        side = {port.name: _finite(outputs[port.name], port.name) for port in self._side}
        return np.stack([_pack(plane, index) for index, plane in enumerate(planes)]), side

    def _rate(self, rate: int | None) -> int:
        """The number of planes to send."""
        signal = self._manifest.signal
        if rate is None:
            return signal.planes
        if rate not in signal.rates:
            expected = f"one of {', '.join(map(str, signal.rates))}" if signal.rates else "none"
            why = "" if signal.rates else ", this bundle has one rate only"
            raise UsageError(
                "E_RATE",
                f"rate: got {rate}, expected {expected}{why}. Leave it out to send all "
                f"{signal.planes} planes.",
            )
        return rate

    def _known(self, count: int, csis: Sequence[Csi] | None) -> Sequence[Csi]:
        signal = self._manifest.signal
        if csis is None:
            if signal.transmitter_csi and "gain" in signal.csi_inputs:
                raise CsiError(
                    "E_CSI_NEEDED",
                    "csi: got None, expected the channel's SNR and gain, which this system's "
                    "transmitter uses. Give csi.",
                )
            return (Csi(signal.snr_db_default),) * count
        if len(csis) != count:
            raise UsageError(
                "E_BATCH", f"csis: got {len(csis)}, expected {count}, one per image. Give them all."
            )
        return csis

    def _clamped(self, csi: Csi) -> float:
        low, high = self._manifest.signal.snr_db_range
        return min(max(csi.snr_db, low), high)


def _check_batch(images: Pixels) -> tuple[int, int]:
    """The (height, width) of `images`."""
    if not describe(images).startswith("uint8[") or images.ndim != 4 or not len(images):
        raise ImageError(
            "E_IMG_TYPE",
            f"images: got {describe(images)}, expected uint8[batch,height,width,3], RGB. "
            "Stack images of one size.",
        )
    return check_image(images[0])


def _finite(values: Array, name: str) -> Array:
    if not np.isfinite(values).all():
        raise ImageError(
            "E_SIDE_NONFINITE",
            f"side {name!r}: got values that are not finite, expected finite ones. The encoder "
            "cannot send this image.",
        )
    return values


def _pack(planes: Floats, index: int) -> Symbols:
    """Planes in halves, real parts first, to symbols of unit mean power."""
    half = len(planes) // 2
    wide = planes.astype(np.float64)
    power = float(np.sum(wide * wide)) / (wide.size // 2)
    if not (np.isfinite(power) and power > 0.0):
        raise ImageError(
            "E_IMG_FLAT",
            f"image {index}: got symbols of mean power {power:g}, expected a positive one. "
            "The encoder cannot send this image.",
        )
    symbols = np.empty((half, *planes.shape[1:]), np.complex64)
    scale = np.float32(power**0.5)
    symbols.real, symbols.imag = planes[:half] / scale, planes[half:] / scale
    return symbols
