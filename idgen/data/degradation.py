"""Synthetic damage to photos, as ReF-LDM trains and tests with (arXiv 2412.05043, section 4.1): blur, shrink, noise, JPEG.

The published code (github.com/ChiWeiHsiao/ref-ldm `ldm/data`, whose parts come from BasicSR) draws from Python's and numpy's
global generators. Here a `Damage` is drawn from generators that are passed in, in the same order, so that the same seeds
give the same picture; `degrade` computes it with OpenCV, as published, `degradation_torch.degrade_batch` on tensors.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np

from idgen.errors import IdgenError


@dataclass(frozen=True)
class DegradationConfig:
    """Ranges that a damage is drawn from, each uniform.

    Attributes:
        blur_kernel_list: `"iso"` round and `"aniso"` elliptic Gaussians.
        blur_kernel_prob: their shares.
        blur_kernel_size: side of the kernel in pixels, odd.
        blur_sigma: standard deviation in pixels.
        downsample_range: factor by which the picture shrinks.
        noise_range: standard deviation in grey levels of 255.
        jpeg_range: quality.
    """

    blur_kernel_list: tuple[str, ...] = ("iso", "aniso")
    blur_kernel_prob: tuple[float, ...] = (0.5, 0.5)
    blur_kernel_size: int = 41
    blur_sigma: tuple[float, float] = (0, 16)
    downsample_range: tuple[float, float] = (1, 32)
    noise_range: tuple[float, float] = (0, 20)
    jpeg_range: tuple[float, float] = (30, 100)

    def __post_init__(self) -> None:
        if self.blur_kernel_size < 1 or self.blur_kernel_size % 2 == 0:
            raise IdgenError(f"blur_kernel_size is {self.blur_kernel_size}, expected an odd number")
        unknown = set(self.blur_kernel_list) - {"iso", "aniso"}
        if unknown or len(self.blur_kernel_list) != len(self.blur_kernel_prob):
            raise IdgenError("blur_kernel_list takes 'iso' and 'aniso', blur_kernel_prob one share for each")
        if self.downsample_range[0] < 1:
            raise IdgenError(f"downsample_range begins at {self.downsample_range[0]}, expected at least 1")


# What ReF-LDM trains with, and its two test sets.
PRESETS: dict[str, DegradationConfig] = {
    "train": DegradationConfig(),
    "severe": DegradationConfig(blur_sigma=(8, 16), downsample_range=(8, 32)),
    "moderate": DegradationConfig(
        blur_sigma=(0, 8), downsample_range=(1, 8), noise_range=(0, 15), jpeg_range=(60, 100)
    ),
}


@dataclass(frozen=True)
class Damage:
    """One draw, for pictures of one size.

    Attributes:
        kernel: (size, size) float64, sums to 1.
        size: (height, width) of the shrunken picture.
        noise: (height, width, 3) float32, added to the shrunken picture's BGR channels in [0, 1].
        quality: of the JPEG, 0 .. 100.
    """

    kernel: np.ndarray
    size: tuple[int, int]
    noise: np.ndarray
    quality: int


def draw_damage(
    config: DegradationConfig,
    height: int,
    width: int,
    seed: int | None = None,
    generators: tuple[random.Random, np.random.RandomState] | None = None,
) -> Damage:
    """A random damage for pictures of a size.

    Args:
        seed: the published code gives the same picture after `random.seed(seed)` and `np.random.seed(seed)`.
        generators: take the place of the seed, to draw many.
    """
    kinds, draws = generators or (random.Random(seed), np.random.RandomState(seed))
    kind = kinds.choices(config.blur_kernel_list, config.blur_kernel_prob)[0]
    sigma_x = sigma_y = draws.uniform(*config.blur_sigma)
    angle = 0.0
    if kind == "aniso":
        sigma_y, angle = draws.uniform(*config.blur_sigma), draws.uniform(-math.pi, math.pi)
    kernel = gaussian_kernel(config.blur_kernel_size, sigma_x, sigma_y, angle)
    factor = draws.uniform(*config.downsample_range)
    small = (max(int(height // factor), 1), max(int(width // factor), 1))
    level = draws.uniform(*config.noise_range)
    draws.uniform()  # the published code asks here whether the noise is to be grey, which it never is
    noise = draws.randn(*small, 3).astype(np.float32) * level / 255
    return Damage(kernel, small, noise, int(draws.uniform(*config.jpeg_range)))


def gaussian_kernel(size: int, sigma_x: float, sigma_y: float, angle: float = 0.0) -> np.ndarray:
    """A Gaussian (size, size) float64 that sums to 1, its axes turned by `angle` radians."""
    axis = np.arange(size) - size // 2
    x, y = np.meshgrid(axis, axis)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    tiny = 1e-6  # a sigma of 0 is no blur
    kernel = np.exp(-0.5 * ((along / max(sigma_x, tiny)) ** 2 + (across / max(sigma_y, tiny)) ** 2))
    return kernel / kernel.sum()


def degrade(image: np.ndarray, damage: Damage) -> np.ndarray:
    """The damaged photo.

    Args:
        image: uint8 RGB (height, width, 3), of the size that the damage was drawn for.

    Returns:
        uint8 RGB like `image`.
    """
    import cv2

    height, width = image.shape[:2]
    small = compress(shrink(image, damage), damage.quality)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    return (large * 255).round().clip(0, 255).astype(np.uint8)


def shrink(image: np.ndarray, damage: Damage) -> np.ndarray:
    """Blurred, shrunken and noisy: BGR in [0, 1], (*damage.size, 3)."""
    import cv2

    pixels = image[..., ::-1] / 255.0
    blurred = cv2.filter2D(pixels, -1, damage.kernel, borderType=cv2.BORDER_REFLECT_101)
    small = cv2.resize(blurred, damage.size[::-1], interpolation=cv2.INTER_LINEAR)
    return (small + damage.noise).clip(0, 1)


def compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    """A picture (height, width, 3) BGR in [0, 1] after JPEG, float32."""
    import cv2

    levels = (pixels * 255).round().clip(0, 255).astype(np.uint8)
    _, file = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.float32(cv2.imdecode(file, cv2.IMREAD_COLOR)) / 255
