"""Params: one value at a time out of a network's configuration, checked and typed.

Every function takes the mapping, the key and `where`, the mapping's place in the file for messages,
and raises ValueError if the value is missing or of another kind.
"""

from collections.abc import Mapping
from typing import Any


def required(params: Mapping[str, Any], key: str, where: str) -> Any:
    """The value, whatever it is."""
    if key not in params:
        raise ValueError(
            f"{where}.{key}: got nothing, expected a value. Take the config.yaml that came "
            "with the checkpoint."
        )
    return params[key]


def positive(value: Any, place: str) -> int:
    """`value` itself, found at `place`, if it is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{place}: got {value!r}, expected a positive integer. Correct the file.")
    return value


def integer(params: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """An integer above 0; `default`, if there is one, where the key is missing."""
    if default is not None and key not in params:
        return default
    return positive(required(params, key, where), f"{where}.{key}")


def integers(
    params: Mapping[str, Any], key: str, where: str, default: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """A list of integers above 0; `default`, if there is one, where the key is missing."""
    if default is not None and key not in params:
        return default
    value = required(params, key, where)
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{where}.{key}: got {value!r}, expected a list of integers. Correct the file."
        )
    return tuple(positive(item, f"{where}.{key}") for item in value)


def counts(params: Mapping[str, Any], where: str, levels: int) -> tuple[int, ...]:
    """Residual blocks per level: one number for all or a list."""
    if not isinstance(params.get("num_res_blocks"), list | tuple):
        return (integer(params, "num_res_blocks", where),) * levels
    listed = integers(params, "num_res_blocks", where)
    if len(listed) != levels:
        raise ValueError(
            f"{where}.num_res_blocks: got {len(listed)} numbers, expected {levels}, one per entry "
            "of channel_mult. Correct the file."
        )
    return listed


def flag(params: Mapping[str, Any], key: str, where: str) -> bool:
    """True or false; a missing key is false."""
    value = params.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{where}.{key}: got {value!r}, expected true or false. Correct the file.")
    return value


def number(params: Mapping[str, Any], key: str, where: str) -> float:
    """A number."""
    value = required(params, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}.{key}: got {value!r}, expected a number. Correct the file.")
    return float(value)
