"""StyleGAN2 generator in the layout of the rosinality checkpoints (``g_ema``), plain torch ops.

Tero Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958.
Written from the published key lists; only the names of the parameters are theirs.

    z ─ style ─▶ w ─ (truncate) ─▶ latent [B,2n,D] ──┬───────────┬───────────┬──▶ ...
                                                      ▼           ▼           ▼
    input [1,C,4,4] ─▶ conv1 ──────────────────▶ 8×8 block ─▶ 16×16 block ─▶ ...   features
                          └─▶ to_rgb1 ─ ×2 ─▶ + ─ ×2 ─▶ + ─▶ ...                    image

Block 0 is the 4×4 one; block b makes 4·2^b pixels from the features of block b - 1 with two styled
convolutions and adds its colours to the enlarged colours so far. A modulated convolution scales its
input planes by the style and its output planes by the demodulation, so that a batch of styles
needs no grouped weights. An image is in [-1,1], not clipped.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SLOPE: Final = 0.2
BLUR: Final = (1.0, 3.0, 3.0, 1.0)
EPSILON: Final = 1e-8
BASE: Final = 4  # pixels of block 0
LR_MLP: Final = 0.01  # of every published training; a factor that the weights do not show
# What published files hold beside the generator.
CONVS: Final = re.compile(r"convs\.(\d+)\.conv\.weight")
STYLES: Final = re.compile(r"style\.(\d+)\.weight")


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return functional.leaky_relu(x, SLOPE) * math.sqrt(2)


def blur_kernel(taps: Sequence[float] = BLUR) -> Tensor:
    """The low-pass of an enlargement by two, [n,n], its sum 4."""
    row = torch.tensor(taps)
    kernel = torch.outer(row, row)
    return kernel * (4 / kernel.sum())


class Linear(nn.Module):
    """A linear layer whose stored weights have unit variance.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        bias: What the bias starts from.
        rate: Factor of weights and bias, their learning rate relative to the others'.
        activated: Whether `activate` follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: float = 0.0,
        rate: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.gain = rate / math.sqrt(inputs)
        self.rate = rate
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        out = functional.linear(x, self.weight * self.gain, self.bias * self.rate)
        return activate(out) if self.activated else out


class _PixelNorm(nn.Module):
    """Scales every vector to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + EPSILON)


class _Blur(nn.Module):
    """Low-pass behind a transposed 3×3 convolution; leaves an even size."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())

    def forward(self, x: Tensor) -> Tensor:
        planes = x.shape[1]
        weight = self.kernel.flip(0, 1).expand(planes, 1, -1, -1)
        return functional.conv2d(x, weight, padding=1, groups=planes)


class _Upsample(nn.Module):
    """Enlarges by two: zeros in between, then the low-pass, as one transposed convolution."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())

    def forward(self, x: Tensor) -> Tensor:
        planes = x.shape[1]
        weight = self.kernel.expand(planes, 1, -1, -1)
        return functional.conv_transpose2d(x, weight, stride=2, padding=1, groups=planes)


class ModulatedConv(nn.Module):
    """A convolution whose input planes are scaled by a style.

    Args:
        planes_in: Planes of the input.
        planes: Planes of the output.
        size: Edge of the kernel, odd.
        style: Width of the style.
        demodulated: Whether every output plane is scaled back to unit expected variance.
        enlarged: Whether the output has twice the input's size.
    """

    def __init__(
        self,
        planes_in: int,
        planes: int,
        size: int,
        style: int,
        *,
        demodulated: bool = True,
        enlarged: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, planes, planes_in, size, size))
        self.modulation = Linear(style, planes_in, bias=1.0)
        self.gain = 1 / math.sqrt(planes_in * size * size)
        self.demodulated = demodulated
        self.blur = _Blur() if enlarged else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = self.modulation(style)
        weight = self.weight[0] * self.gain
        x = x * scale[:, :, None, None]
        if self.blur is None:
            out = functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
        else:
            out = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        if self.demodulated:
            power = functional.linear(scale.square(), weight.square().sum(dim=(2, 3)))
            out = out * torch.rsqrt(power + EPSILON)[:, :, None, None]
        return out if self.blur is None else self.blur(out)


class _Noise(nn.Module):
    """Adds a weighted map of noise to every plane."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class _Activate(nn.Module):
    """Adds a bias per plane and activates."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(planes))

    def forward(self, x: Tensor) -> Tensor:
        return activate(x + self.bias[:, None, None])


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise (where given) and activation."""

    def __init__(
        self, planes_in: int, planes: int, style: int, *, enlarged: bool = False, noisy: bool = True
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(planes_in, planes, 3, style, enlarged=enlarged)
        self.noise = _Noise() if noisy else None
        self.activate = _Activate(planes)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None = None) -> Tensor:
        out = self.conv(x, style)
        if self.noise is not None and noise is not None:
            out = self.noise(out, noise)
        return self.activate(out)  # type: ignore[no-any-return]


class ToRgb(nn.Module):
    """Features to colours, added to the enlarged colours of the block below."""

    def __init__(self, planes: int, style: int, *, enlarged: bool = True) -> None:
        super().__init__()
        self.conv = ModulatedConv(planes, 3, 1, style, demodulated=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.upsample = _Upsample() if enlarged else None

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        colours = self.conv(x, style) + self.bias
        if skip is None or self.upsample is None:
            return colours  # type: ignore[no-any-return]
        return colours + self.upsample(skip)  # type: ignore[no-any-return]


class _Constant(nn.Module):
    """The learnt input of block 0."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, planes, BASE, BASE))

    def forward(self, batch: int) -> Tensor:
        return self.input.expand(batch, -1, -1, -1)


class Generator(nn.Module):
    """Latents and noise maps to an image.

    Args:
        channels: Planes of each block, the 4×4 one first.
        style_dim: Width of z, w and of each row of the latent.
        n_mlp: Layers of the mapping network.
        lr_mlp: Their relative learning rate, a factor of their weights.
    """

    def __init__(
        self, channels: Sequence[int], style_dim: int, n_mlp: int, lr_mlp: float = LR_MLP
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"stylegan2: got channels {list(channels)!r}, expected one or more.")
        mapping = [Linear(style_dim, style_dim, rate=lr_mlp, activated=True) for _ in range(n_mlp)]
        self.channels = tuple(channels)
        self.style_dim = style_dim
        self.style = nn.Sequential(_PixelNorm(), *mapping)
        self.input = _Constant(channels[0])
        self.conv1 = StyledConv(channels[0], channels[0], style_dim)
        self.to_rgb1 = ToRgb(channels[0], style_dim, enlarged=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for below, planes in itertools.pairwise(channels):
            self.convs.append(StyledConv(below, planes, style_dim, enlarged=True))
            self.convs.append(StyledConv(planes, planes, style_dim))
            self.to_rgbs.append(ToRgb(planes, style_dim))
        self.noises = nn.Module()
        for number, edge in enumerate(self.noise_edges):
            self.noises.register_buffer(f"noise_{number}", torch.randn(1, 1, edge, edge))

    @classmethod
    def from_config(cls, params: Mapping[str, Any]) -> Generator:
        """The generator of a configuration as `config_of` makes it.

        Raises:
            KeyError: A value is missing.
            ValueError: There are no channels.
        """
        channels = [int(planes) for planes in params["channels"]]
        lr_mlp = float(params.get("lr_mlp", LR_MLP))
        return cls(channels, int(params["style_dim"]), int(params["n_mlp"]), lr_mlp)

    @property
    def blocks(self) -> int:
        """How many blocks there are, the 4×4 one included."""
        return len(self.channels)

    @property
    def size(self) -> int:
        """Edge of the image, in pixels."""
        return BASE << (self.blocks - 1)

    @property
    def latents(self) -> int:
        """Rows of a latent."""
        return 2 * self.blocks

    @property
    def noise_edges(self) -> tuple[int, ...]:
        """Edge of every noise map, in pixels: one of block 0, two of each other."""
        pairs = (BASE << block for block in range(1, self.blocks) for _ in range(2))
        return (BASE, *pairs)

    @property
    def stored_noises(self) -> tuple[Tensor, ...]:
        """The noise maps of the checkpoint, each [1,1,edge,edge]."""
        return tuple(self.noises.buffers())

    def map(self, z: Tensor) -> Tensor:
        """The mapping network: z [B,D] to w [B,D]."""
        return self.style(z)  # type: ignore[no-any-return]

    def spread(self, w: Tensor) -> Tensor:
        """The latent [B,2n,D] that uses w [B,D] everywhere."""
        return w.unsqueeze(1).expand(-1, self.latents, -1)

    def forward(
        self,
        latent: Tensor,
        noises: Sequence[Tensor] | None = None,
        features: Tensor | None = None,
        start: int = 0,
    ) -> Tensor:
        """Returns the image [B,3,size,size]; arguments as of `run`."""
        return self.run(latent, noises, features, start)[0]

    def run(
        self,
        latent: Tensor,
        noises: Sequence[Tensor] | None = None,
        features: Tensor | None = None,
        start: int = 0,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the blocks from `start` on.

        Args:
            latent: [B,2n,D], rows of blocks below `start` unused.
            noises: Maps [B or 1,1,edge,edge]; None for the stored ones.
            features: What block ``start - 1`` made; None with `start` 0.
            start: First block that is run; the colours of those below it are left out.

        Returns:
            The image, and the features of every block that was run.
        """
        maps = self.stored_noises if noises is None else noises
        made: list[Tensor] = []
        colours: Tensor | None = None
        if features is None:
            start = max(start, 1)
            features = self.conv1(self.input(latent.shape[0]), latent[:, 0], maps[0])
            colours = self.to_rgb1(features, latent[:, 1])
            made.append(features)
        for block in range(start, self.blocks):
            row = 2 * block - 1
            features = self.convs[row - 1](features, latent[:, row], maps[row])
            features = self.convs[row](features, latent[:, row + 1], maps[row + 1])
            colours = self.to_rgbs[block - 1](features, latent[:, row + 2], colours)
            made.append(features)
        if colours is None:
            raise ValueError(f"start: got {start}, expected less than {self.blocks}.")
        return colours, tuple(made)


def truncate(w: Tensor, mean: Tensor, psi: float) -> Tensor:
    """Pull w [B,D] towards the mean w [D]; 1 leaves it, 0 gives the mean (arXiv 1812.04948)."""
    return mean + psi * (w - mean)


def moments(generator: Generator, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of w before its last activation, over random z.

    There w is nearly Gaussian (Menon et al., "PULSE", arXiv 2003.03808): a latent is searched as
    ``w = leaky_relu(std * latent + mean)``, the activation's gain included in both.
    """
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        z = torch.randn(samples, generator.style_dim, generator=drawn)
        raw = functional.leaky_relu(generator.map(z), 1 / SLOPE)
    return raw.mean(dim=0), raw.std(dim=0)


def latent_of(gaussian: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The latent [B,2n,D] of a Gaussian one, with the moments of `moments`."""
    return functional.leaky_relu(gaussian * std + mean, SLOPE)


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Configuration of the generator whose weights have these names and shapes, or None.

    ``lr_mlp`` is not in the shapes: it is 0.01 in every published training.
    """
    if "input.input" not in shapes or "conv1.conv.modulation.weight" not in shapes:
        return None
    convs = {int(match[1]): shape for key, shape in shapes.items() if (match := CONVS.match(key))}
    channels = [shapes["input.input"][1], *(convs[index][1] for index in sorted(convs)[1::2])]
    return {
        "family": "stylegan2",
        "channels": channels,
        "style_dim": shapes["conv1.conv.modulation.weight"][1],
        "n_mlp": sum(STYLES.match(key) is not None for key in shapes),
        "lr_mlp": LR_MLP,
    }
