"""Load: give a module its weights from named tensors, all of them or none."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from jscc.export.tensor_file import StoredTensors, form
from jscc.runtime.errors import CheckpointError

Module = TypeVar("Module", bound=nn.Module)
Tensors = Mapping[str, torch.Tensor]

MAX_LISTED = 10


def select(tensors: Tensors, prefix: str, *, ignore: tuple[str, ...] = ()) -> Tensors:
    """The tensors below `prefix`, named without it; nothing is read yet.

    Args:
        tensors: Tensors by name.
        prefix: Beginning of the names, its last dot included; empty for all of them.
        ignore: Patterns (``decoder.*``) of names below the prefix that are left out.
    """

    def shorten(name: str) -> str | None:
        short = name.removeprefix(prefix)
        wanted = name.startswith(prefix) and not _matches(short, ignore)
        return short if wanted else None

    return _renamed(tensors, {name: shorten(name) for name in tensors})


def add_prefix(tensors: Tensors, prefix: str) -> Tensors:
    """The same tensors with `prefix` before every name; nothing is read yet."""
    return _renamed(tensors, {name: prefix + name for name in tensors})


def rename(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """The tensors that `names` (old → new) lists, under their new names; nothing is read yet."""
    return _renamed(tensors, {name: names.get(name) for name in tensors})


def merge(parts: Sequence[Tensors]) -> Tensors:
    """All tensors of several files; a name in two of them means the later file's."""
    stored = [part for part in parts if isinstance(part, StoredTensors)]
    if len(stored) == len(parts):
        return StoredTensors({name: part.entries[name] for part in stored for name in part})
    return {name: part[name] for part in parts for name in part}


def is_bare_controlnet(tensors: Iterable[str]) -> bool:
    """Whether these are the names of a ControlNet alone, as DiffBIR publishes it.

    Such a file has ``input_blocks…`` and ``zero_convs…`` where a DiffJSCC one has the same below
    ``control_model.``, and no ``snr_embed``; `add_prefix` makes the names alike.
    """
    names = tuple(tensors)
    return all(
        any(name.startswith(part) for name in names) for part in ("input_blocks.", "zero_convs.")
    ) and not any(name.startswith(("output_blocks.", "control_model.")) for name in names)


def load_into(
    module: Module,
    tensors: Tensors,
    *,
    where: str,
    ignore: tuple[str, ...] = (),
    allow_nonfinite: bool = False,
) -> Module:
    """Give `module` the tensors as its weights, and return it.

    Floating-point weights take the type that the module declares (float32), so half-precision
    checkpoints load as they are. The tensors become the weights without another copy, also where
    the module was built on the meta device.

    Args:
        module: Left as it was when anything is wrong.
        tensors: Weights by the module's own names.
        where: Begins every message.
        ignore: Patterns of names that the module does not have and need not have.
        allow_nonfinite: Take weights that are NaN, infinite or all zero. Record it.

    Raises:
        CheckpointError: ``E_CKPT_KEYS``, weights are missing, extra or misshapen;
            ``E_WEIGHTS_NONFINITE``, some are NaN or infinite, or all of them are zero.
    """
    wanted = module.state_dict()
    names = [name for name in tensors if name in wanted or not _matches(name, ignore)]
    _check_names(where, wanted, names)
    _check_shapes(where, wanted, tensors)
    loaded = {name: _read(tensors, name, wanted[name].dtype) for name in wanted}
    if not allow_nonfinite:
        _check_values(where, loaded)
    module.load_state_dict(loaded, strict=True, assign=True)
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if left:  # the module's fault: such buffers must be made when it runs, or be persistent
        raise ValueError(f"{where}: buffers {left} are on the meta device and in no state dict")
    return module


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _renamed(tensors: Tensors, names: Mapping[str, str | None]) -> Tensors:
    if isinstance(tensors, StoredTensors):
        return tensors.renamed(lambda name: names[name])
    return {new: tensors[old] for old, new in names.items() if new is not None}


def _check_names(where: str, wanted: Tensors, names: list[str]) -> None:
    given = set(names)
    missing = [name for name in wanted if name not in given]
    extra = [name for name in names if name not in wanted]
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} missing ({_listed(missing)})")
    if extra:
        parts.append(f"{len(extra)} extra ({_listed(extra)})")
    raise CheckpointError(
        "E_CKPT_KEYS",
        f"{where}: got {' and '.join(parts)}, expected the {len(wanted)} weights of this model. "
        "Check that checkpoint and configuration belong together.",
    )


def _check_shapes(where: str, wanted: Tensors, tensors: Tensors) -> None:
    wrong = []
    for name, target in wanted.items():
        shape, dtype = form(tensors, name)
        if shape != tuple(target.shape) or _kind(dtype) != _kind(target.dtype):
            got, expected = _shown(shape, dtype), _shown(tuple(target.shape), target.dtype)
            wrong.append(f"{name}: {got} for {expected}")
    if wrong:
        raise CheckpointError(
            "E_CKPT_KEYS",
            f"{where}: got {len(wrong)} weights of another shape ({_listed(wrong)}), expected "
            "those of this model. Check that checkpoint and configuration belong together.",
        )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    return "floating" if dtype.is_floating_point else "whole"


def _shown(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}]"


def _listed(names: list[str]) -> str:
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f", … {rest} more" if rest > 0 else "")


def _read(tensors: Tensors, name: str, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensors[name]
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _check_values(where: str, loaded: Tensors) -> None:
    weights = {
        name: tensor
        for name, tensor in loaded.items()
        if tensor.is_floating_point() and tensor.numel()
    }
    peaks = {name: _peak(tensor) for name, tensor in weights.items()}
    bad = [name for name, peak in peaks.items() if not peak < float("inf")]
    if bad:
        raise CheckpointError(
            "E_WEIGHTS_NONFINITE",
            f"{where}: got NaN or infinity in {len(bad)} of {len(loaded)} weights "
            f"({_listed(bad)}), expected finite numbers. Use a checkpoint from before its "
            "training diverged.",
        )
    matrices = [name for name, tensor in weights.items() if tensor.dim() > 1]
    if matrices and not any(peaks[name] for name in matrices):  # one zero layer is legal
        raise CheckpointError(
            "E_WEIGHTS_NONFINITE",
            f"{where}: got zeros in all {len(matrices)} matrices ({_listed(matrices)}), expected "
            "trained weights. Fetch the checkpoint again.",
        )


def _peak(tensor: torch.Tensor) -> float:
    """Largest magnitude, found without a copy; NaN where an element is NaN."""
    low, high = torch.aminmax(tensor)
    return max(abs(float(low)), abs(float(high)))
