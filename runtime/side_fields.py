"""Side fields: an image's side values as JSON, written short and read with suspicion."""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from jscc.runtime.place import Json, Place
from jscc.runtime.sides import MAX_SIDE_OUTPUTS, MAX_SIDE_VALUES

Floats = npt.NDArray[np.float32]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def side_to_json(side: Mapping[str, Floats]) -> dict[str, Json]:
    """Lists of numbers by name; whole numbers without a fraction."""
    return {name: [_short(float(value)) for value in row] for name, row in sorted(side.items())}


def _short(value: float) -> float | int:
    return int(value) if value.is_integer() and abs(value) < 2**24 else value


def side_from_json(place: Place) -> dict[str, Floats]:
    """The values at `place`, an object of lists of finite numbers.

    Raises:
        SymbolsError: ``E_SIGMF_META``, it is not that; ``E_SIDE_SIZE``, there are more than
            `MAX_SIDE_OUTPUTS` names or `MAX_SIDE_VALUES` values.
    """
    lists = place.object()
    if len(lists) > MAX_SIDE_OUTPUTS:
        raise place.fail("E_SIDE_SIZE", f"{len(lists)} names", f"at most {MAX_SIDE_OUTPUTS}")
    count = sum(len(row) for row in lists.values() if isinstance(row, list))
    if count > MAX_SIDE_VALUES:
        raise place.fail("E_SIDE_SIZE", f"{count} values", f"at most {MAX_SIDE_VALUES}")
    side = {}
    for name, row in lists.items():
        below = place.at(name, row)
        if not _NAME.fullmatch(name):
            raise place.fail("E_SIGMF_META", name, "names of small letters, digits and _")
        if not isinstance(row, list) or not row:
            raise below.fail("E_SIGMF_META", row, "a list of numbers")
        values = [below.at(index, value).as_number() for index, value in enumerate(row)]
        side[name] = np.array(values, np.float32)
    return side
