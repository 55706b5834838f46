"""Gradient: any loss through any network, as a stage that needs no automatic differentiation.

A stage that contains a `Gradient` is traced through PyTorch's reverse mode; what comes out is a
graph of ordinary operations, forward and backward in one, which lowers like any other stage.

    inputs ─ loss ─▶ loss per image ─ reverse mode ─▶ gradients
               └───▶ further outputs
"""

from __future__ import annotations

import inspect
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    statically_known_true,
    sym_eq,
)
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from jscc.export.gradient_resize import bilinear, nearest, restore
from jscc.export.gradient_rules import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.fx import GraphModule


class Gradient(nn.Module):
    """A loss turned into its gradients.

    ``forward`` takes what the loss takes and returns the loss module's further outputs, then one
    gradient per name in `wrt`.

    Args:
        loss: Returns the loss, a scalar or one value per image [batch]; with `has_aux` a tuple of
            it and further tensors. Values of different images must not depend on each other.
        wrt: Arguments of the loss's ``forward`` to differentiate by, by name.
        has_aux: Whether the loss returns further tensors.
        names: Of the arguments, where ``forward`` takes any number of them; else its own.
    """

    keep_float32 = True  # a gradient has no bounded range

    def __init__(
        self,
        loss: nn.Module,
        wrt: Sequence[str],
        *,
        has_aux: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        names = list(names or inspect.signature(loss.forward).parameters)
        missing = [name for name in wrt if name not in names]
        if missing or not wrt:
            raise ValueError(
                f"Gradient: got wrt {list(wrt)}, expected names among {names}. "
                f"Name arguments of {type(loss).__name__}.forward."
            )
        self.loss = loss
        self.places = tuple(names.index(name) for name in wrt)
        self.has_aux = has_aux

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            given = [
                each.detach().requires_grad_() if place in self.places else each
                for place, each in enumerate(inputs)
            ]
            result = self.loss(*given)
            loss, *aux = (result[0], *result[1:]) if self.has_aux else (result,)
            gradients = torch.autograd.grad(loss.sum(), [given[place] for place in self.places])
        return (*(each.detach() for each in aux), *gradients)


def has_gradient(module: nn.Module) -> bool:
    """Whether a `Gradient` stands anywhere in `module`."""
    return any(isinstance(part, Gradient) for part in module.modules())


def write_out(
    module: nn.Module, inputs: Sequence[Tensor], dynamic: Sequence[Mapping[int, Any]]
) -> GraphModule:
    """`module` with all gradients in it written out, as a graph of ordinary operations.

    Args:
        module: What to trace; its parameters are constants.
        inputs: Examples, of sizes that differ where they may differ.
        dynamic: For each input the axes whose sizes stay open.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    fakes = [
        mode.from_tensor(
            each,
            symbolic_context=StatelessSymbolicContext(
                dynamic_sizes=[
                    DimDynamic.DYNAMIC if axis in axes else DimDynamic.STATIC
                    for axis in range(each.dim())
                ]
            ),
        )
        for each, axes in zip(inputs, dynamic, strict=True)
    ]
    with mode, enable_python_dispatcher(), _Intercept():
        traced = make_fx(
            module.eval().requires_grad_(False).forward,
            decomposition_table=table(),
            _allow_non_fake_inputs=True,
        )(*fakes)
    restore(traced)
    _tidy(traced)
    return traced


def _tidy(traced: GraphModule) -> None:
    """Remove what changes nothing: reverse mode expands and reshapes to the sizes that are."""
    aten = torch.ops.aten
    shaping = (aten.expand.default, aten.view.default, aten._unsafe_view.default)
    for node in traced.graph.nodes:
        if node.target in shaping:
            before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
            if len(before) == len(after) and statically_known_true(sym_eq(before, after)):
                node.replace_all_uses_with(node.args[0])
        elif node.target is aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()


class _Intercept(TorchFunctionMode):
    """Keeps whole what PyTorch would take apart into slow pieces while sizes are open."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        function = _REPLACED.get(func)
        given = dict(kwargs or {})
        if function is not None:
            result = function(*args, **given)
            if result is not NotImplemented:
                return result
        return func(*args, **given)


def _interpolate(
    input: Tensor,
    size: Any = None,  # noqa: ARG001 - unused, as is what takes no part: the names are torch's
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,  # noqa: FBT001
    recompute_scale_factor: bool | None = None,  # noqa: FBT001
    antialias: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Nearest by a whole factor and bilinear by any become one operation each."""
    if input.dim() != 4 or align_corners or antialias or recompute_scale_factor:
        return NotImplemented
    if mode == "nearest" and scale_factor is not None:
        rows, columns = _pair(scale_factor)
        if rows == columns == int(rows):
            return nearest(input, int(rows))
    if mode == "bilinear" and scale_factor is not None:
        rows, columns = _pair(scale_factor)
        ratio = Fraction(rows).limit_denominator(64)
        if rows == columns == ratio.numerator / ratio.denominator:
            return bilinear(input, ratio.numerator, ratio.denominator)
    return NotImplemented


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Any:
    """Attention with a mask that is added, in the open."""
    if is_causal or enable_gqa or dropout_p:
        return NotImplemented
    if attn_mask is not None and not attn_mask.is_floating_point():
        return NotImplemented
    scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.transpose(-1, -2))
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(scores.softmax(-1), value)


_REPLACED: dict[Any, Callable[..., Any]] = {
    functional.interpolate: _interpolate,
    functional.scaled_dot_product_attention: _attend,
}
