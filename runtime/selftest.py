"""Self-test: a bundle's known symbols, received before the first real ones.

It catches what no hash can: a provider that computes wrongly, and graphs that do not fit together.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from jscc.runtime.errors import BundleError, ImageError, JsccError, UnavailableError
from jscc.runtime.manifest import Manifest
from jscc.runtime.ports import Array, resolve
from jscc.runtime.sides import side_port

Pixels = npt.NDArray[np.uint8]


def failure_of(
    receive: Callable[[], Pixels], expected: Pixels, floor_db: float, where: str
) -> JsccError | None:
    """Why the self-test fails, or None where it passes.

    Args:
        receive: Receives the known symbols.
        expected: The known image.
        floor_db: Least PSNR between the two.
        where: Engine and providers, for messages.

    Returns:
        ``E_SELFTEST``, another image came out or none; ``E_BUNDLE_INCONSISTENT``, the program
        cannot run at all.
    """
    try:
        image = receive()
    except ImageError as error:
        return _failed(where, f"no image ({error.message})", floor_db)
    except JsccError as error:
        return BundleError(
            "E_BUNDLE_INCONSISTENT",
            f"self-test on {where}: got {error}, expected the program to run. "
            "Export the bundle again.",
        )
    psnr = psnr_db(image, expected)
    if psnr >= floor_db:
        return None
    return _failed(where, f"an image {psnr:.1f} dB from the known one", floor_db)


def psnr_db(image: Pixels, expected: Pixels) -> float:
    """Peak signal-to-noise ratio between two images of 0 to 255, in dB."""
    error = float(np.mean((image.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def empty_sides(
    manifest: Manifest, size: tuple[int, int], *, planes: int | None = None
) -> dict[str, Array]:
    """Zeros for the side inputs: what the self-test gives where nothing is known.

    Args:
        manifest: Of the bundle.
        size: (height, width) of the padded image.
        planes: Planes that the image is sent as; by default all.
    """
    sent = manifest.signal.planes if planes is None else planes
    sizes = {"batch": 1, "height": size[0], "width": size[1], "planes": sent}
    ports = (side_port(manifest, name) for name in manifest.side_inputs)
    return {
        port.name: np.zeros(resolve(port, sizes), port.dtype) for port in ports if port is not None
    }


def _failed(where: str, got: str, floor_db: float) -> UnavailableError:
    return UnavailableError(
        "E_SELFTEST",
        f"self-test on {where}: got {got}, expected {floor_db:g} dB or more. "
        "Try another provider, or a bundle of higher precision.",
    )
