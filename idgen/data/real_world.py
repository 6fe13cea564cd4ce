"""Damage as photos from the internet have it: blurred, resized, noisy and compressed, and all of that again.

Real-ESRGAN's second-order degradation (Wang et al., ICCVW 2021, arXiv 2107.10833; github.com/xinntao/Real-ESRGAN, its ranges), an
option for trainings beside ReF-LDM's `degradation`. A `RealDamage` is drawn first, then computed on tensors, on any device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import j1
from torch import Tensor

from idgen.data.degradation_torch import blur
from idgen.data.jpeg import CHROMA_BLOCK, jpeg
from idgen.errors import IdgenError

KERNEL = 21  # pixels; smaller kernels have zeros around
LEAST = 16  # pixels of a side, more than half a kernel
SCALE = 4  # by which a photo is smaller in the end, before it is enlarged again
MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Ranges:
    """What a round is drawn from.

    Attributes:
        blurred: share of pictures that are blurred at all.
        sigma: standard deviation of the blur in pixels.
        up, down: shares that are enlarged and shrunken; the rest keeps its size.
        factor: by how much at most and at least.
        noise: standard deviation of Gaussian noise in grey levels of 255.
        poisson: strength of Poisson noise.
        quality: of the JPEG.
    """

    blurred: float
    sigma: tuple[float, float]
    up: float
    down: float
    factor: tuple[float, float]
    noise: tuple[float, float]
    poisson: tuple[float, float]
    quality: tuple[float, float] = (30, 95)


FIRST = Ranges(1.0, (0.2, 3), 0.2, 0.7, (0.15, 1.5), (1, 30), (0.05, 3))
SECOND = Ranges(0.8, (0.2, 1.5), 0.3, 0.4, (0.3, 1.2), (1, 25), (0.05, 2.5))
SHAPES = ("gaussian", "generalised", "plateau")
SHAPE_SHARES, ROUND_SHARE, SINC_SHARE, LAST_SINC_SHARE = (0.7, 0.15, 0.15), 0.69, 0.1, 0.8
GAUSSIAN_NOISE_SHARE, GREY_NOISE_SHARE = 0.5, 0.4
GENERALISED, PLATEAU = (0.5, 4.0), (1.0, 2.0)


@dataclass(frozen=True)
class Round:
    """One round of a damage.

    Attributes:
        kernel: (KERNEL, KERNEL) float32, sums to 1.
        size: (height, width) of the picture afterwards.
        mode: how it is resized, as torch calls it.
        gaussian: whether the noise is Gaussian, of `level` grey levels of 255, or Poisson, `level` times as strong as light's.
        grey: whether the noise is the same in all colours.
        quality: of the JPEG.
    """

    kernel: np.ndarray
    size: tuple[int, int]
    mode: str
    gaussian: bool
    level: float
    grey: bool
    quality: int


@dataclass(frozen=True)
class RealDamage:
    """One draw, for pictures of one size.

    Attributes:
        rounds: two.
        last: (KERNEL, KERNEL) a filter that rings, or none.
        last_first: whether it and the last resizing come ahead of the last JPEG.
        size: of the picture that is enlarged in the end.
        mode: how the picture gets to that size and back.
        seed: of the noise.
    """

    rounds: tuple[Round, Round]
    last: np.ndarray
    last_first: bool
    size: tuple[int, int]
    mode: str
    seed: int


def draw_real_world(height: int, width: int, draws: np.random.RandomState, scale: int = SCALE) -> RealDamage:
    """A random damage for pictures of a size.

    Raises:
        IdgenError: they are too small for it.
    """
    if min(height, width) < LEAST:
        raise IdgenError(f"pictures of {width} x {height} px are too small: this damage needs {LEAST} px")
    first = _draw_round(FIRST, (height, width), draws)
    second = _draw_round(SECOND, (height / scale, width / scale), draws)
    last = _sinc(draws) if draws.uniform() < LAST_SINC_SHARE else _none()
    return RealDamage(
        (first, second),
        last,
        bool(draws.uniform() < 0.5),
        _side(height / scale, width / scale),
        MODES[draws.randint(3)],
        int(draws.randint(2**31)),
    )


@torch.no_grad()
def degrade_real_world(images: Tensor, damages: Sequence[RealDamage]) -> Tensor:
    """Damaged pictures.

    Args:
        images: (batch, 3, height, width) RGB in [-1, 1].
        damages: one for each, drawn for this size.

    Returns:
        Like `images`.

    Raises:
        IdgenError: there are not as many damages as pictures.
    """
    if len(damages) != len(images):
        raise IdgenError(f"{len(damages)} damages for {len(images)} pictures: draw one for each")
    device, full = images.device, (images.shape[2], images.shape[3])
    chance = [torch.Generator(device).manual_seed(damage.seed) for damage in damages]
    with torch.autocast(device.type, enabled=False):
        pictures = list(((images.float() + 1) / 2).split(1))
        for number in (0, 1):
            rounds = [damage.rounds[number] for damage in damages]
            pictures = _blurred(pictures, [one.kernel for one in rounds])
            pictures = [_resized(one, which.size, which.mode) for one, which in zip(pictures, rounds, strict=True)]
            pictures = [_noisy(one, which, draw) for one, which, draw in zip(pictures, rounds, chance, strict=True)]
            if number == 0:
                pictures = _compressed(pictures, [one.quality for one in rounds])
        # Resized and filtered, then compressed; or the other way round.
        pictures = [
            _finished(one, damage) if damage.last_first else one for one, damage in zip(pictures, damages, strict=True)
        ]
        pictures = _compressed(pictures, [damage.rounds[1].quality for damage in damages])
        pictures = [
            one if damage.last_first else _finished(one, damage) for one, damage in zip(pictures, damages, strict=True)
        ]
        enlarged = [
            _resized(one, full, "bicubic" if damage.mode == "area" else damage.mode)
            for one, damage in zip(pictures, damages, strict=True)
        ]
    return ((torch.cat(enlarged) * 255).round().clamp(0, 255) / 127.5 - 1).to(images.dtype)


def degrade_photo(image: np.ndarray, damage: RealDamage) -> np.ndarray:
    """The same for a photo, uint8 RGB (height, width, 3)."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    made = degrade_real_world(pixels, [damage])
    return ((made[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()


def _draw_round(ranges: Ranges, size: tuple[float, float], draws: np.random.RandomState) -> Round:
    kernel = _draw_kernel(ranges.sigma, draws) if draws.uniform() < ranges.blurred else _none()
    low, high = ranges.factor
    kind = draws.uniform()
    if kind < ranges.up:
        factor = draws.uniform(1, high)
    else:
        factor = draws.uniform(low, 1) if kind < ranges.up + ranges.down else 1.0
    gaussian = bool(draws.uniform() < GAUSSIAN_NOISE_SHARE)
    return Round(
        kernel,
        _side(size[0] * factor, size[1] * factor),
        MODES[draws.randint(3)],
        gaussian,
        float(draws.uniform(*(ranges.noise if gaussian else ranges.poisson))),
        bool(draws.uniform() < GREY_NOISE_SHARE),
        int(draws.uniform(*ranges.quality)),
    )


def _side(height: float, width: float) -> tuple[int, int]:
    return max(round(height), LEAST), max(round(width), LEAST)


def _draw_kernel(sigma: tuple[float, float], draws: np.random.RandomState) -> np.ndarray:
    if draws.uniform() < SINC_SHARE:
        return _sinc(draws)
    size = 2 * draws.randint(3, KERNEL // 2 + 1) + 1
    shape = SHAPES[draws.choice(3, p=SHAPE_SHARES)]
    across = along = draws.uniform(*sigma)
    angle = 0.0
    if draws.uniform() > ROUND_SHARE:
        across, angle = draws.uniform(*sigma), draws.uniform(-math.pi, math.pi)
    x, y = _places(size)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    distance = (u / along) ** 2 + (v / across) ** 2
    if shape == "plateau":
        return _padded(1 / (1 + distance ** draws.uniform(*PLATEAU)))
    return _padded(np.exp(-0.5 * distance ** (1.0 if shape == "gaussian" else draws.uniform(*GENERALISED))))


def _sinc(draws: np.random.RandomState) -> np.ndarray:
    """A round low pass, whose rings photos have that were sharpened or scaled."""
    size = 2 * draws.randint(3, KERNEL // 2 + 1) + 1
    cutoff = draws.uniform(math.pi / 3 if size < 13 else math.pi / 5, math.pi)
    x, y = _places(size)
    distance = np.hypot(x, y)
    distance[size // 2, size // 2] = 1  # the limit there is set below
    kernel = cutoff * j1(cutoff * distance) / (2 * math.pi * distance)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _padded(kernel)


def _places(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = np.arange(size) - size // 2
    x, y = np.meshgrid(axis, axis)
    return x.astype(np.float64), y.astype(np.float64)


def _padded(kernel: np.ndarray) -> np.ndarray:
    return np.pad(kernel / kernel.sum(), (KERNEL - len(kernel)) // 2).astype(np.float32)


def _none() -> np.ndarray:
    return _padded(np.ones((1, 1)))


def _blurred(pictures: list[Tensor], kernels: Sequence[np.ndarray]) -> list[Tensor]:
    device = pictures[0].device
    return [blur(one, torch.from_numpy(kernel)[None].to(device)) for one, kernel in zip(pictures, kernels, strict=True)]


def _resized(picture: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if picture.shape[2:] == size:
        return picture
    corners = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(picture, size, mode=mode, **corners).clamp(0, 1)


def _finished(picture: Tensor, damage: RealDamage) -> Tensor:
    return _blurred([_resized(picture, damage.size, damage.mode)], [damage.last])[0].clamp(0, 1)


def _noisy(picture: Tensor, one: Round, chance: torch.Generator) -> Tensor:
    shown = picture.mean(1, keepdim=True) if one.grey else picture
    if one.gaussian:
        noise = torch.randn(shown.shape, generator=chance, device=picture.device) * one.level / 255
    else:
        # As many photons as the picture has levels of grey, rounded up to a power of two.
        levels = (picture.clamp(0, 1) * 255).round()
        photons = 2.0 ** math.ceil(math.log2(max(len(levels.unique()), 2)))
        clean = (shown.clamp(0, 1) * 255).round() / 255
        noise = (torch.poisson(clean * photons, generator=chance) / photons - clean) * one.level
    return (picture + noise).clamp(0, 1)


def _compressed(pictures: list[Tensor], qualities: Sequence[int]) -> list[Tensor]:
    """All of them at once, each in the corner of one canvas."""
    sizes = torch.tensor([one.shape[2:] for one in pictures], device=pictures[0].device)
    rows, columns = (-(-int(side) // CHROMA_BLOCK) * CHROMA_BLOCK for side in sizes.amax(0))
    canvas = pictures[0].new_zeros(len(pictures), 3, rows, columns)
    for row, one in zip(canvas, pictures, strict=True):
        row[:, : one.shape[2], : one.shape[3]] = one[0]
    made = jpeg(canvas, sizes, torch.tensor(qualities, device=canvas.device))
    return [row[None, :, : one.shape[2], : one.shape[3]] for row, one in zip(made, pictures, strict=True)]
