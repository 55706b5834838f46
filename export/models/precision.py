"""Precision: turns a float32 network into half precision with islands of float32.

Weights of convolutions, linear layers and embeddings become float16, and so do the activations
between them. These stay in float32, with casts at their edges:

- normalisation layers: their sums of squares leave the range of float16;
- scores and softmax of attention, in `jscc.export.models.attention`;
- modules with a true attribute `keep_float32`: the embeddings of timestep and SNR.

Nothing is asked of a network but to attend through that function. One with bare parameters that
should shrink too names them in `float16_parameters`.
"""

import copy
from typing import Any, Final

import torch
from torch import Tensor, nn

COMPUTE: Final = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
NORMS: Final = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d, nn.InstanceNorm2d)
LARGEST: Final = torch.finfo(torch.float16).max


class Float32Island(nn.Module):
    """Runs `inner` in float32 and returns the dtype that came in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x.float())
        return out.to(x.dtype)


def halve(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that computes in half precision and still returns float32.

    Type and methods are those of `module`; methods other than `forward` return whatever dtype
    comes out.

    Raises:
        ValueError: A weight is not finite in float16.
    """
    half = _convert(copy.deepcopy(module).eval(), "")
    half.register_forward_hook(_return_float32)
    return half


def _convert(module: nn.Module, name: str) -> nn.Module:
    """Convert `module`, called `name`, in place, or return what takes its place."""
    if getattr(module, "keep_float32", False):
        module.register_forward_pre_hook(_take_float32)
        return module
    if isinstance(module, NORMS):
        return Float32Island(module)
    if isinstance(module, COMPUTE):
        module.register_forward_pre_hook(_take_float16)
    if isinstance(module, (*COMPUTE, nn.Embedding)):
        names = [key for key, _ in module.named_parameters(recurse=False)]
    else:
        names = list(getattr(module, "float16_parameters", ()))
    for key in names:
        _halve_parameter(getattr(module, key), f"{name}.{key}".lstrip("."))
    for key, child in module.named_children():
        setattr(module, key, _convert(child, f"{name}.{key}".lstrip(".")))
    return module


def _halve_parameter(parameter: nn.Parameter, name: str) -> None:
    peak = float(parameter.detach().abs().max())
    if not peak <= LARGEST:
        raise ValueError(
            f"halve: parameter {name!r}: got a value of {peak:.3g}, expected at most "
            f"{LARGEST:.0f}. Keep this network in float32."
        )
    parameter.data = parameter.data.half()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast the floating tensors in `value`, which may be a tuple or a list of them."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _take_float16(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return _cast(inputs, torch.float16)


def _take_float32(_: nn.Module, inputs: tuple[Any, ...]) -> Any:
    return _cast(inputs, torch.float32)


def _return_float32(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    return _cast(output, torch.float32)
