"""Bank: networks of one family, a file each, that a system takes together.

CommIN's invertible networks are an example, one for each SNR; as everywhere, a role is repeated for
each file: ``--checkpoint inn=a.pth --checkpoint inn=b.pth``. The order counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jscc.export.config import read_config
from jscc.export.load import add_prefix, merge, rename
from jscc.export.recognise import find_family, match
from jscc.export.tensor_file import form
from jscc.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jscc.export.checkpoint import Checkpoint
    from jscc.export.load import Tensors

PREFIX = "nets."


def in_bank(files: Sequence[Checkpoint], family: str) -> Tensors | None:
    """The weights of networks of `family`, file i's below ``nets.i.``; None where it is no bank.

    Args:
        files: One network each.
        family: Name of the networks' family.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, some of the files hold networks of `family` and others do
            not, or the networks are not alike.
    """
    parts, known = [], find_family(family, "bank")
    for index, file in enumerate(files):
        shapes = {name: form(file.tensors, name)[0] for name in file.tensors}
        found = match(known, shapes)
        if found is not None:
            parts.append(add_prefix(rename(file.tensors, found.names), f"{PREFIX}{index}."))
    if not parts:
        return None
    first = _shapes(parts[0], f"{PREFIX}0.")
    alike = (_shapes(part, f"{PREFIX}{index}.") == first for index, part in enumerate(parts))
    if len(parts) < len(files) or not all(alike):
        raise CheckpointError(
            "E_CKPT_KEYS",
            f"{', '.join(file.path.name for file in files)}: got networks that are not alike, "
            f"expected as many of the family {family!r}, all of one size. Give one file for each.",
        )
    return merge(parts)


def shared_settings(paths: Sequence[Path | None]) -> dict[str, object]:
    """The settings that lie beside every network of a bank, the family left out.

    Raises:
        CheckpointError: ``E_CONFIG``, they differ.
    """
    each = [{} if path is None else dict(read_config(path)) for path in paths]
    if any(settings != each[0] for settings in each):
        raise CheckpointError(
            "E_CONFIG",
            f"{', '.join(map(str, paths))}: got configurations that differ, expected one for all "
            "networks of the role. Make them alike, or give one with --config.",
        )
    return {key: value for key, value in each[0].items() if key != "family"}


def _shapes(tensors: Tensors, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): form(tensors, name)[0] for name in tensors}
