"""StyleGAN2's generator: style codes -> pictures, in plain PyTorch.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958. Facts and parameter names from
rosinality/stylegan2-pytorch, whose layout the files of pSp and e4e have (`decoder.*`): every learned value is stored at unit
variance and scaled when it is used, and the filters and the noise pictures are buffers of the state dict.

W holds one code (512) for all layers, W+ one for each: two at each resolution from 4 to the picture's, 18 at 1024 pixels.
The CUDA extensions of the originals only fuse what is written out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idgen.errors import IdgenError
from idgen.models.published import State, depth, shape

TAPS = (1.0, 3.0, 3.0, 1.0)  # the binomial filter of every blur and upsampling
MAPPING_RATE = (
    0.01  # the mapping network learned at a hundredth of the rate, so its weights are stored 100 times too large
)


def stylegan2_widths(size: int) -> tuple[int, ...]:
    """Channels at 4, 8, ... `size` pixels in the published models ("config F").

    Raises:
        IdgenError: `size` is not a power of two from 8 on.
    """
    if size < 8 or size & (size - 1):
        raise IdgenError(f"StyleGAN2 makes pictures whose side is a power of two from 8 on, not {size}")
    return tuple(min(512, 32768 >> level) for level in range(2, size.bit_length()))


class Generator(nn.Module):
    """Codes of W+ (batch, n_latent, style_dim) -> RGB pictures (batch, 3, size, size), about [-1, 1], not clamped.

    Args:
        widths: channels at 4, 8, 16, ... pixels; their number says how large the picture is.
        style_dim: length of a code.
        mapping_layers: layers of the mapping network.
    """

    def __init__(
        self, widths: Sequence[int] = stylegan2_widths(1024), style_dim: int = 512, mapping_layers: int = 8
    ) -> None:
        super().__init__()
        self.style_dim = style_dim
        self.size = 2 << len(widths)
        self.n_latent = 2 * len(widths)
        layers = [EqualLinear(style_dim, style_dim, rate=MAPPING_RATE, activate=True) for _ in range(mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(widths[0])
        self.conv1 = StyledConv(widths[0], widths[0], style_dim)
        self.to_rgb1 = ToRGB(widths[0], style_dim, upsample=False)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        for into, out in pairwise(widths):
            self.convs.append(StyledConv(into, out, style_dim, upsample=True))
            self.convs.append(StyledConv(out, out, style_dim))
            self.to_rgbs.append(ToRGB(out, style_dim))
        self.noises = nn.Module()
        for index in range(self.n_latent - 1):
            side = 4 << (index + 1) // 2
            self.noises.register_buffer(f"noise_{index}", torch.randn(1, 1, side, side))

    def forward(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures of the codes.

        Args:
            noise: what `random_noise` gives; by default the pictures stored with the weights, so that equal codes make equal
                pictures.

        Raises:
            IdgenError: codes of another shape.
        """
        if w.shape[1:] != (self.n_latent, self.style_dim):
            wanted = f"(batch, {self.n_latent}, {self.style_dim})"
            raise IdgenError(f"this StyleGAN2 takes codes of the shape {wanted}, not {list(w.shape)}")
        if noise is None:
            noise = list(self.noises.buffers())
        x = self.conv1(self.input(len(w)), w[:, 0], noise[0])
        picture = self.to_rgb1(x, w[:, 1])
        for level, to_rgb in enumerate(self.to_rgbs):
            # Levels overlap: a level's third code is the first of the next.
            first = 2 * level + 1
            x = self.convs[2 * level](x, w[:, first], noise[first])
            x = self.convs[2 * level + 1](x, w[:, first + 1], noise[first + 1])
            picture = to_rgb(x, w[:, first + 2], picture)
        return picture

    def map(self, z: Tensor) -> Tensor:
        """Normal noise (batch, style_dim) -> codes of W (batch, style_dim); for `forward`, repeat them over the layers."""
        return self.style(z)

    def random_noise(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """New noise pictures, drawn on the generator's device (the CPU without one): hair and skin that differ."""
        device = generator.device if generator is not None else None
        return [
            torch.randn(batch, *stored.shape[1:], generator=generator, device=device).to(stored)
            for stored in self.noises.buffers()
        ]

    @staticmethod
    def sizes(state: State, what: str) -> dict[str, tuple[int, ...] | int]:
        """The arguments of the `Generator` that published weights belong to.

        Args:
            what: names the weights in the error.

        Raises:
            IdgenError: the weights are no StyleGAN2 generator's.
        """
        later = [
            shape(state, f"convs.{index}.conv.weight", 5, what)[1] for index in range(1, depth(state, "convs."), 2)
        ]
        return {
            "widths": (shape(state, "input.input", 4, what)[1], *later),
            "style_dim": shape(state, "conv1.conv.modulation.weight", 2, what)[1],
            "mapping_layers": depth(state, "style."),
        }


class PixelNorm(nn.Module):
    """(batch, dim) -> the same at a mean square of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """A linear layer with its weights stored at unit variance (Karras et al., arXiv 1710.10196, section 4.1).

    Args:
        rate: how fast it learned against the other layers; scales weight and bias.
        activate: end with `scaled_leaky_relu`.
        bias: what the bias starts from.
    """

    def __init__(self, into: int, out: int, *, rate: float = 1.0, activate: bool = False, bias: float = 0.0) -> None:
        super().__init__()
        self.rate, self.activate = rate, activate
        self.weight = nn.Parameter(torch.randn(out, into) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * (self.rate / math.sqrt(self.weight.shape[1])), self.bias * self.rate)
        return scaled_leaky_relu(x) if self.activate else x


class ConstantInput(nn.Module):
    """The learned 4 x 4 features that every picture grows from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, width, 4, 4))

    def forward(self, batch: int) -> Tensor:
        return self.input.expand(batch, -1, -1, -1)


class Filter(nn.Module):
    """The binomial filter with a gain of 4, as after each insertion of zeros; its taps are part of published files."""

    kernel: Tensor

    def __init__(self, up: int, pad: tuple[int, int]) -> None:
        super().__init__()
        self.up, self.pad = up, pad
        taps = torch.tensor(TAPS)
        self.register_buffer("kernel", 4 * torch.outer(taps, taps) / taps.sum().square())

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, up=self.up, pad=self.pad)


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels are scaled by the style (section 2.2 of the paper).

    Features (batch, into, h, w), codes (batch, style_dim) -> (batch, out, h, w), or twice that side with `upsample`.

    Args:
        side: of the kernel.
        demodulate: divide each output channel by the length of its scaled weights.
    """

    def __init__(
        self, into: int, out: int, side: int, style_dim: int, *, demodulate: bool = True, upsample: bool = False
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.weight = nn.Parameter(torch.randn(1, out, into, side, side))
        self.modulation = EqualLinear(style_dim, into, bias=1.0)
        self.blur = Filter(up=1, pad=(1, 1)) if upsample else None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight[0]
        weight = weight / math.sqrt(weight[0].numel())
        style = self.modulation(w)
        # Scaling the features before and after is the same as scaling the weights, and all samples share one convolution.
        x = x * style[:, :, None, None]
        if self.blur is None:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        else:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        if self.demodulate:
            squares = style.square() @ weight.square().sum((2, 3)).T  # (batch, out)
            x = x * torch.rsqrt(squares + 1e-8)[:, :, None, None]
        return x


class NoiseInjection(nn.Module):
    """Adds noise (1 or batch, 1, h, w), the same to every channel, at a learned strength."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + self.weight * noise


class BiasedLeakyReLU(nn.Module):
    """A bias per channel, then `scaled_leaky_relu`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return scaled_leaky_relu(x + self.bias[:, None, None])


class StyledConv(nn.Module):
    """Modulated convolution, noise, activation."""

    def __init__(self, into: int, out: int, style_dim: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(into, out, 3, style_dim, upsample=upsample)
        self.noise = NoiseInjection()
        self.activate = BiasedLeakyReLU(out)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, w), noise))


class ToRGB(nn.Module):
    """Features -> their part of the picture, added to the smaller picture so far at twice its side."""

    def __init__(self, into: int, style_dim: int, *, upsample: bool = True) -> None:
        super().__init__()
        self.upsample = Filter(up=2, pad=(2, 1)) if upsample else None
        self.conv = ModulatedConv2d(into, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, w: Tensor, picture: Tensor | None = None) -> Tensor:
        part = self.conv(x, w) + self.bias
        return part if picture is None or self.upsample is None else part + self.upsample(picture)


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times sqrt(2) so that the variance stays."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def upfirdn2d(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Insert zeros, pad, convolve each channel with one filter, drop pixels; both axes alike.

    Args:
        x: (batch, channels, h, w).
        kernel: (kh, kw); a true convolution, so it is applied flipped.
        up: each pixel is followed by `up - 1` zeros.
        down: every `down`-th pixel is kept.
        pad: zeros before and after; below 0, pixels that are cut off.

    Returns:
        (batch, channels, (h * up + pad[0] + pad[1] - kh) // down + 1, likewise for w).
    """
    channels, height, width = x.shape[1:]
    if up > 1:
        sparse = x.new_zeros(len(x), channels, height * up, width * up)
        sparse[:, :, ::up, ::up] = x
        x = sparse
    x = F.pad(x, (*pad, *pad))
    weight = kernel.to(x.dtype).flip(0, 1).expand(channels, 1, -1, -1)
    return F.conv2d(x, weight, stride=down, groups=channels)
