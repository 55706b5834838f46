"""Extra: what one system alone lets its caller choose, ``--option NAME=VALUE``.

A system names its options (`jscc.export.system.System.options`) and reads them here, typed, with
the default that it documents. A name that the system does not have is refused before any work.
"""

import math
from collections.abc import Mapping, Sequence

from jscc.runtime.errors import UsageError

Extra = Mapping[str, str]


def parse_extra(texts: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """``NAME=VALUE`` texts as a mapping.

    Args:
        texts: What the caller chose.
        known: What the system lets choose: name → values and default, for humans.

    Raises:
        UsageError: ``E_OPTION``, a text is none, or names an option twice or an unknown one.
    """
    extra: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError("E_OPTION", f"--option: got {text!r}, expected NAME=VALUE. Add both.")
        if name in extra:
            raise UsageError(
                "E_OPTION", f"--option: got {name!r} twice, expected it once. Keep one."
            )
        if name not in known:
            at_hand = "; ".join(f"{key}: {text}" for key, text in known.items()) or "none"
            raise UsageError(
                "E_OPTION",
                f"--option: got {name!r}, expected one of this system's ({at_hand}). "
                "Correct it or leave it out.",
            )
        extra[name] = value
    return extra


def number(extra: Extra, name: str, default: float, low: float, high: float) -> float:
    """The option `name` as a number from `low` to `high`.

    Raises:
        UsageError: ``E_OPTION``, it is something else.
    """
    text = extra.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise _refused(name, text, f"a number from {low:g} to {high:g}")
    return value


def whole(extra: Extra, name: str, default: int, low: int, high: int) -> int:
    """The option `name` as a whole number from `low` to `high`.

    Raises:
        UsageError: ``E_OPTION``, it is something else.
    """
    text = extra.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise _refused(name, text, f"a whole number from {low} to {high}")
    return int(text)


def choice(extra: Extra, name: str, allowed: Sequence[str]) -> str:
    """The option `name` as one of the words `allowed`; the first one is the default.

    Raises:
        UsageError: ``E_OPTION``, it is another.
    """
    text = extra.get(name, allowed[0])
    if text not in allowed:
        raise _refused(name, text, f"one of {', '.join(allowed)}")
    return text


def _refused(name: str, got: str, expected: str) -> UsageError:
    return UsageError("E_OPTION", f"--option {name}: got {got!r}, expected {expected}. Correct it.")
