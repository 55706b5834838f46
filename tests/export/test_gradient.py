"""Gradients as graphs: every operation and small networks against autograd in float64."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jscc.export.gradient import Gradient, has_gradient
from jscc.export.lower import Sizes, lower
from jscc.export.models.attention import attend
from jscc.export.proof import examples, run_graph
from jscc.export.system import StageSpec
from jscc.runtime.ports import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

WIDTH = 6
TOLERANCE = 1e-5  # of the gradient's peak
SIZES = Sizes(multiple=12)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class GlobalGain(nn.Module):
    """Scales features by what their means say, as SNR attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3))).sigmoid()[:, :, None, None]


class Divisive(nn.Module):
    """Divides by the root of a mixture of squares, as GDN does."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(WIDTH, WIDTH, 1, 1) / WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(functional.conv2d(x * x, self.mix) + 1)


class Attend(nn.Module):
    """Self-attention over what pooling leaves of the positions."""

    def __init__(self, how: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, 3 * WIDTH)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        tokens = functional.avg_pool2d(x, 12).flatten(2).transpose(1, 2)
        heads = self.mix(tokens).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        return self.how(*heads.unbind(0))


class Normalise(nn.Module):
    """Normalises over the features of every position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = drawn(nn.LayerNorm(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out


class Modulated(nn.Module):
    """A convolution whose kernel depends on what is differentiated by, as StyleGAN2's do."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3))
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * x.mean((0, 2, 3))[None, :, None, None]
        if self.transposed:
            return functional.conv_transpose2d(x, weight, stride=2)
        return functional.conv2d(x, weight, padding=1)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), value)


def drawn(norm: nn.Module) -> nn.Module:
    """`norm` with other factors than 1 and other offsets than 0."""
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def conv(**settings: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(WIDTH, WIDTH, **settings)  # type: ignore[arg-type]


def up(**settings: object) -> Callable[[], nn.Module]:
    return lambda: nn.ConvTranspose2d(WIDTH, WIDTH, **settings)  # type: ignore[arg-type]


def elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Function(function)


OPERATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "conv3": conv(kernel_size=3, padding=1),
    "conv1": conv(kernel_size=1),
    "conv5_valid": conv(kernel_size=5),
    "conv_stride": conv(kernel_size=3, stride=2, padding=1),
    "conv_stride_4": conv(kernel_size=5, stride=4, padding=2),
    "conv_stride_skips": conv(kernel_size=1, stride=3),
    "conv_stride_even": conv(kernel_size=4, stride=2, padding=1),
    "conv_dilated": conv(kernel_size=3, padding=2, dilation=2),
    "conv_groups": conv(kernel_size=3, padding=1, groups=3),
    "conv_depthwise": conv(kernel_size=3, padding=1, groups=WIDTH, bias=False),
    "conv_wide_padding": conv(kernel_size=3, padding=4),
    "conv_reflect": conv(kernel_size=5, padding=2, padding_mode="reflect"),
    "conv_replicate": conv(kernel_size=3, padding=1, padding_mode="replicate"),
    "transposed": up(kernel_size=5, stride=2, padding=2, output_padding=1),
    "transposed_groups": up(kernel_size=4, stride=2, padding=1, groups=2),
    "conv_modulated": lambda: Modulated(transposed=False),
    "transposed_modulated": lambda: Modulated(transposed=True),
    "group_norm": lambda: drawn(nn.GroupNorm(2, WIDTH)),
    "group_norm_plain": lambda: nn.Sequential(nn.GroupNorm(3, WIDTH, affine=False), nn.SiLU()),
    "layer_norm": Normalise,
    "batch_norm": lambda: drawn(nn.BatchNorm2d(WIDTH)),
    "attention_fused": lambda: Attend(attend),
    "attention_open": lambda: Attend(softmax_attention),
    "silu": elementwise(functional.silu),
    "gelu": elementwise(functional.gelu),
    "gelu_tanh": elementwise(lambda x: functional.gelu(x, approximate="tanh")),
    "relu": elementwise(functional.relu),
    "leaky_relu": elementwise(lambda x: functional.leaky_relu(x, 0.2)),
    "prelu": lambda: nn.PReLU(WIDTH),
    "prelu_shared": nn.PReLU,
    "elu": elementwise(functional.elu),
    "sigmoid": elementwise(torch.sigmoid),
    "tanh": elementwise(torch.tanh),
    "softplus": elementwise(functional.softplus),
    "hardtanh": elementwise(functional.hardtanh),
    "exp": elementwise(lambda x: torch.exp(0.3 * x)),
    "clamp": elementwise(lambda x: x.clamp(-1, 1) * x),
    "division": elementwise(lambda x: x / (x.abs() + 1)),
    "power": elementwise(lambda x: (x * x + 1) ** 0.25),
    "gdn": Divisive,
    "gain": GlobalGain,
    "pixel_shuffle": elementwise(lambda x: functional.pixel_shuffle(x.repeat(1, 2, 1, 1), 2)),
    "pixel_unshuffle": elementwise(lambda x: functional.pixel_unshuffle(x, 2)),
    "nearest": elementwise(lambda x: functional.interpolate(x, scale_factor=2) ** 2),
    "bilinear": elementwise(
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear") ** 2
    ),
    "bilinear_down": elementwise(
        lambda x: functional.interpolate(x, scale_factor=0.25, mode="bilinear") ** 2
    ),
    "avg_pool": elementwise(lambda x: functional.avg_pool2d(x, 3) ** 2),
    "avg_pool_overlapping": elementwise(lambda x: functional.avg_pool2d(x, 3, 2, 1) ** 2),
    "max_pool": elementwise(lambda x: functional.max_pool2d(x, 2) ** 2),
    "max_pool_overlapping": elementwise(lambda x: functional.max_pool2d(x, 3, 2) ** 2),
    "slices": elementwise(lambda x: torch.cat((x[:, :2, 1:], 2 * x[:, 4:, :-1]), 1)),
    "polyphase": elementwise(lambda x: x[:, :, ::2, 1::2] ** 2),
    "norm": elementwise(lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3))),
    "norm_features": elementwise(lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-10)),
}


# Operations are lowered some at a time: a graph costs more than what is in it.
BUNCH = 14
BUNCHES = [list(OPERATIONS)[at : at + BUNCH] for at in range(0, len(OPERATIONS), BUNCH)]
FIXED = (2, 48, 36)  # batch, height, width
# Those whose gradients reckon with sizes, lowered once more with all sizes open.
OPEN = ("conv_stride", "transposed", "conv_reflect", "group_norm", "attention_fused", "nearest",
        "bilinear", "avg_pool", "pixel_shuffle", "norm")  # fmt: skip
PROBE = {"batch": 3, "height": 72, "width": 48}  # neither traced nor proved by lowering


class Losses(nn.Module):
    """One squared error per operation, each of features of its own, added up per image."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.operations = nn.ModuleList(OPERATIONS[name]() for name in names)

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        parts = x.chunk(len(self.operations), dim=1)
        for part, operation in zip(parts, self.operations, strict=True):
            error = operation(part) - 0.1
            total = total + (error * error).reshape(x.shape[0], -1).sum(1)
        return total


def spec_of(loss: nn.Module, shape: tuple[int | str, ...], wrt: str = "x") -> StageSpec:
    return StageSpec(
        name="gradient",
        build=lambda: Gradient(loss.eval(), (wrt,)),
        inputs=(Port("x", "float32", shape),),
        outputs=(Port("grad", "float32", shape),),
        gradients=("grad",),
        counted=True,
    )


def both(loss: nn.Module, shape: tuple[int | str, ...], folder: Path) -> tuple[Array, Array]:
    """The gradient by the lowered graph, and by autograd in float64."""
    spec = spec_of(loss, shape)
    lower(spec, folder, SIZES, "fp32")
    arrays = examples(spec.inputs, PROBE, seed=3)
    graph = run_graph(folder / "gradient.onnx", arrays, ("grad",))["grad"]
    exact = Gradient(copy.deepcopy(loss).double(), ("x",))
    (expected,) = exact(torch.from_numpy(arrays["x"]).double())
    return graph, expected.numpy()


def bunch_of(names: Sequence[str], folder: Path, *, fixed: bool) -> dict[str, tuple[Array, Array]]:
    """Both gradients of every operation of `names`."""
    batch, height, width = FIXED if fixed else ("batch", "height", "width")
    pair = both(Losses(names), (batch, WIDTH * len(names), height, width), folder)
    parts = [np.split(each, len(names), axis=1) for each in pair]
    return dict(zip(names, zip(*parts, strict=True), strict=True))


def assert_agree(graph: Array, expected: Array) -> None:
    assert np.abs(expected).max() > 0
    assert np.abs(graph - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Array, Array]]:
    """Both gradients of an operation; its bunch is lowered when the first of it is asked for."""
    done: dict[str, tuple[Array, Array]] = {}

    def ask(name: str) -> tuple[Array, Array]:
        if name not in done:
            bunch = next(each for each in BUNCHES if name in each)
            done.update(bunch_of(bunch, tmp_path_factory.mktemp("gradient"), fixed=True))
        return done[name]

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_agrees_with_autograd(
    gradients: Callable[[str], tuple[Array, Array]], name: str
) -> None:
    assert_agree(*gradients(name))


@pytest.mark.slow
def test_sizes_stay_open(tmp_path: Path) -> None:
    for graph, expected in bunch_of(OPEN, tmp_path, fixed=False).values():
        assert_agree(graph, expected)


def test_every_weight_is_stored_once(tmp_path: Path) -> None:
    convolutions = (nn.Conv2d(48, 48, 3, padding=1) for _ in range(4))
    loss = nn.Sequential(*convolutions, Function(lambda x: (x * x).mean((1, 2, 3))))
    lower(spec_of(loss, (1, 48, 8, 8), "input"), tmp_path, Sizes(8), "fp32")
    weights = sum(4 * each.numel() for each in loss.parameters())
    assert (tmp_path / "gradient.onnx").stat().st_size < 1.2 * weights


class TwoInputs(nn.Module):
    """The squared product of three inputs, per image, and the product."""

    def forward(self, first: Tensor, second: Tensor, third: Tensor) -> tuple[Tensor, Tensor]:
        product = first * second * third
        return product.square().sum(1), product


def test_gradients_by_several_inputs_follow_further_outputs() -> None:
    first, second, third = torch.rand(3, 2, 5).unbind(0)
    gradient = Gradient(TwoInputs(), ("third", "first"), has_aux=True)
    assert has_gradient(nn.Sequential(gradient))
    with torch.no_grad():  # as the exporter runs it
        product, by_third, by_first = gradient(first, second, third)
    torch.testing.assert_close(product, first * second * third)
    torch.testing.assert_close(by_third, 2 * product * first * second)
    torch.testing.assert_close(by_first, 2 * product * second * third)


@pytest.mark.parametrize("names", [("fourth",), ()])
def test_what_to_differentiate_by_is_an_argument(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected names among .*'first', 'second', 'third'"):
        Gradient(TwoInputs(), names)
