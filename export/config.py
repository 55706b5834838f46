"""Config: the ``config.yaml`` beside a checkpoint, read as data."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jscc.export.tensor_file import OpenFile
from jscc.runtime.errors import CheckpointError

Config = Mapping[str, Any]

MAX_SIZE = 1 << 17  # bytes; the published ones have 3000
MAX_LISTED = 20
MAX_DEPTH = 32
MAX_VALUES = 20_000


def read_config(path: Path) -> Config:
    """Read a configuration in YAML; ``1e-4`` is a number, as YAML 1.2 and OmegaConf have it.

    Args:
        path: The file, or the folder of its ``config.yaml``.

    Raises:
        CheckpointError: ``E_CKPT_NOT_FOUND``, there is no such file; ``E_CONFIG``, it is no plain
            YAML (tags, duplicate keys and more than 128 KiB are refused).
    """
    file = OpenFile(path / "config.yaml" if os.path.isdir(path) else path)
    if file.size > MAX_SIZE:
        raise _invalid(file.path, f"{file.size} bytes", f"at most {MAX_SIZE}")
    try:
        content = yaml.load(file.read(0, file.size), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _invalid(file.path, f"{error.problem or 'no YAML'}{line}", "plain YAML") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise _invalid(file.path, f"no YAML ({type(error).__name__})", "plain YAML") from None
    if not isinstance(content, dict):
        raise _invalid(file.path, f"a {type(content).__name__}", "keys and values")
    if _count(content, MAX_DEPTH) > MAX_VALUES:
        expected = f"at most {MAX_VALUES} values, nested at most {MAX_DEPTH} deep"
        raise _invalid(file.path, "aliases or nesting that grow beyond it", expected)
    return content


def _count(tree: Any, depth: int) -> int:
    """How many values `tree` holds, an aliased one at each place; more than the limit is enough.

    A dumper writes an alias wherever two places share a list, so aliases are read; what they can
    be made to multiply to, or to contain of themselves, is counted before anybody walks it.
    """
    if not isinstance(tree, dict | list):
        return 1
    if depth == 0:
        return MAX_VALUES + 1
    total = 1
    for part in tree.values() if isinstance(tree, dict) else tree:
        total += _count(part, depth - 1)
        if total > MAX_VALUES:
            break
    return total


def section(config: Config, path: str) -> Config:
    """The part of `config` below the dotted `path`.

    Raises:
        CheckpointError: ``E_CONFIG``, there is none, or it is a single value.
    """
    found: Any = config
    names = path.split(".")
    for depth, name in enumerate(names):
        above = ".".join(names[:depth]) or "the top level"
        if not isinstance(found, Mapping) or name not in found:
            keys = ", ".join(list(found)[:MAX_LISTED]) if isinstance(found, Mapping) else "a value"
            raise CheckpointError(
                "E_CONFIG",
                f"config, {path!r}: got {keys or 'nothing'} in {above}, expected {name!r}. "
                "Give the configuration that the checkpoint was trained with.",
            )
        found = found[name]
    if not isinstance(found, Mapping):
        raise CheckpointError(
            "E_CONFIG",
            f"config, {path!r}: got {found!r}, expected keys and values. "
            "Give the configuration that the checkpoint was trained with.",
        )
    return found


def _invalid(path: Path, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        "E_CONFIG",
        f"{str(path)!r}: got {got}, expected {expected}. "
        "Give the config.yaml that belongs to the checkpoint.",
    )


class _Loader(yaml.SafeLoader):
    """Plain data only: no tags, no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem="an explicit tag", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: Any = None) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag != f"{_TAG}str":
                raise yaml.MarkedYAMLError(
                    problem="a key that is no text", problem_mark=key_node.start_mark
                )
            if key_node.value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r} twice", problem_mark=key_node.start_mark
                )
            keys.add(key_node.value)
        return super().construct_mapping(node, deep=bool(deep))


_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (  # YAML 1.1 has more of them than 1.2; so has OmegaConf, for which these are written
        r"true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF",
        "tTfFyYnNoO",
    ),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(
        _TAG + _name,
        re.compile(f"(?:{_pattern})$"),
        ["" if first == "\0" else first for first in _first],
    )
