"""Step inputs: what a denoising step is given where only its time and its error count."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jscc.runtime.manifest import Manifest
from jscc.runtime.ports import resolve

Arrays = dict[str, npt.NDArray[np.float32]]

SEED = 1
# Half-way through a schedule of a thousand steps, little noise in what was received.
VALUES: Mapping[str, float] = {"timestep": 500.0, "alpha_bar_next": 0.1, "sigma_y": 0.0}
IMAGES = ("coarse", "mask")  # in [0, 1]; all others are drawn from a normal distribution


def step_inputs(manifest: Manifest, stage: str) -> Arrays:
    """Inputs of `stage`, one of a loop's, at the size of one tile; the same for all its stages."""
    tile = manifest.image.tile or manifest.image.multiple
    sizes = {"batch": 1, "height": tile, "width": tile}
    values = {"snr_db": manifest.signal.snr_db_default, **VALUES}
    for loop in manifest.loops.values():
        values = {**loop.settings, **values}
    arrays = {}
    for port in manifest.stages[stage].inputs:
        shape = resolve(port, sizes)
        rng = np.random.default_rng([SEED, *port.name.encode()])
        if port.name in values:
            array = np.full(shape, values[port.name])
        elif port.name in IMAGES:
            array = rng.uniform(0, 1, shape)
        else:
            array = rng.standard_normal(shape)
        arrays[port.name] = array.astype(np.float32)
    return arrays
