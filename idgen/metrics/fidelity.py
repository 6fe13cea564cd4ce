"""Figures of the pictures themselves: sharpness against real photos, PSNR and SSIM of a reconstruction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 weights of red, green and blue in luma.
_LUMA = (0.299, 0.587, 0.114)
_WINDOW = 11  # pixels per side of SSIM's window


def laplacian_energy(images: Tensor) -> Tensor:
    """(n,): mean square of the four-neighbour Laplacian of luma; blur drives it to 0.

    Args:
        images: (n, height, width, 3), uint8 or floats in 0..1. Luma is in 0..255.

    Recognisers forgive blur, so this stands beside every identity figure (variance of the Laplacian as a
    focus measure: Pech-Pacheco et al. 2000).
    """
    luma = (_unit_range(images) * torch.tensor(_LUMA)).sum(-1) * 255.0  # (n, height, width)
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    response = F.conv2d(luma[:, None], kernel[None, None])  # no padding: the border is not an edge
    return response.square().mean((1, 2, 3))


def sharpness_ratio(images: Tensor, real: Tensor) -> float:
    """Mean Laplacian energy of `images` over that of `real`; 1 = as sharp as the real photos."""
    return float(laplacian_energy(images).mean() / laplacian_energy(real).mean())


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """(n,) dB: peak signal-to-noise ratio of (n, height, width, 3), uint8 or floats in 0..1."""
    error = (_unit_range(images) - _unit_range(targets)).square().mean((1, 2, 3))
    return -10.0 * torch.log10(error.clamp_min(1e-12))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """(n,) structural similarity of (n, height, width, 3), uint8 or floats in 0..1: the mean over colours and pixels.

    Wang et al. 2004: an 11 x 11 Gaussian window of standard deviation 1.5, means over whole windows only, on each colour
    (scikit-image: `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1`).

    Raises:
        ValueError: pictures of other shapes, or smaller than the window.
    """
    if images.shape != targets.shape:
        raise ValueError(f"pictures of {tuple(images.shape)} and targets of {tuple(targets.shape)} are not of one size")
    if min(images.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW} x {_WINDOW} px, got {tuple(images.shape[1:3])}")
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    taps = torch.exp(-0.5 * (offsets / 1.5) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2

    def blurred(planes: Tensor) -> Tensor:
        return F.conv2d(planes, kernel[None, None])

    values = []
    for picture, target in zip(images, targets, strict=True):  # one at a time: float64 planes are large
        x, y = (_unit_range(part[None])[0].double().permute(2, 0, 1)[:, None] for part in (picture, target))
        mean_x, mean_y = blurred(x), blurred(y)  # (3, 1, height - 10, width - 10)
        var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
        covariance = blurred(x * y) - mean_x * mean_y
        light = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        values.append((light * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2)).mean())
    return torch.stack(values)


def _unit_range(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be (n, height, width, 3), got {tuple(images.shape)}")
    return images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
