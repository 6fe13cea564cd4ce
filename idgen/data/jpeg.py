"""What JPEG does to a picture (ITU-T T.81, as libjpeg does it by default), for batches of tensors of different sizes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idgen.data.resampling import keep_inside, resample

BLOCK = 8
CHROMA_BLOCK = 16  # in pixels of the picture: colour is kept at half the resolution

# Colours of whole numbers lie halfway between two others at times, where libjpeg goes down.
TIE = 1e-4
# Coefficients of whole numbers often lie halfway between two steps; there libjpeg goes up, whatever floats make of it.
HALF = 0.5 + 1e-4

# T.81, tables K.1 and K.2.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def jpeg(images: Tensor, sizes: Tensor, quality: Tensor) -> Tensor:
    """Pictures after JPEG with 4:2:0 colour. There are no gradients through its rounding.

    Args:
        images: (batch, 3, h, w) RGB in [0, 1], each in the top left corner; h and w are multiples of 16.
        sizes: (batch, 2) int64 height and width of each.
        quality: (batch,) 1 .. 100.

    Returns:
        Like `images`; beyond each picture's size, its edge goes on.
    """
    images = keep_inside(images, sizes)
    colours = torch.tensor(TO_YCC).to(images)
    offset = torch.tensor([0.0, 128.0, 128.0]).to(images).view(3, 1, 1)
    ycc = torch.einsum("yc,bchw->byhw", colours, (images * 255).round()) + offset
    ycc = (ycc - TIE).round()
    luma = _through_blocks(ycc[:, :1], _table(LUMINANCE, quality))
    chroma = _enlarge(_through_blocks(_halve(ycc[:, 1:], sizes), _table(CHROMINANCE, quality)), sizes)
    decoded = torch.cat([luma, chroma], 1) - offset
    rgb = torch.einsum("cy,byhw->bchw", torch.linalg.inv(colours), decoded)
    return keep_inside(rgb.round().clamp(0, 255) / 255, sizes)


def _table(base: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Quantisation steps of a quality, (batch, 8, 8)."""
    q = quality.float().clamp(1, 100).view(-1, 1, 1)
    percent = torch.where(q < 50, (5000 / q).floor(), 200 - 2 * q)
    return ((torch.tensor(base).to(q) * percent + 50) / 100).floor().clamp(1, 255)


def _through_blocks(planes: Tensor, table: Tensor) -> Tensor:
    """Blocks' cosine coefficients rounded to the table's steps: planes (batch, c, h, w) in 0 .. 255 to the same."""
    n = torch.arange(BLOCK, device=planes.device, dtype=planes.dtype)
    basis = torch.cos((2 * n + 1) * n[:, None] * math.pi / (2 * BLOCK)) / 2  # (frequency, place)
    basis[0] /= math.sqrt(2)
    blocks = (planes - 128).unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # (batch, c, rows, 8, columns, 8)
    steps = table.view(-1, 1, 1, BLOCK, 1, BLOCK)
    levels = torch.einsum("ui,vj,bcyixj->bcyuxv", basis, basis, blocks) / steps
    rounded = levels.sign() * (levels.abs() + HALF).floor() * steps
    restored = torch.einsum("ui,vj,bcyuxv->bcyixj", basis, basis, rounded)
    return (restored.flatten(4, 5).flatten(2, 3) + 128).round().clamp(0, 255)


def _halve(planes: Tensor, sizes: Tensor) -> Tensor:
    """Means of 2 x 2 pixels; halves are rounded up in every other column, as libjpeg does to avoid a drift.

    Below the picture libjpeg repeats the last row of means, where to its right it takes means of the repeated pixels.
    """
    sums = planes[..., ::2, ::2] + planes[..., 1::2, ::2] + planes[..., ::2, 1::2] + planes[..., 1::2, 1::2]
    bias = 1 + torch.arange(sums.shape[-1], device=sums.device) % 2
    halves = ((sums + bias) / 4).floor()
    rows = torch.arange(halves.shape[2], device=sums.device)[None].minimum((sizes[:, :1] + 1) // 2 - 1)
    return halves.gather(2, rows[:, None, :, None].expand_as(halves))


def _enlarge(planes: Tensor, sizes: Tensor) -> Tensor:
    """Twice the resolution, linearly between the samples; where there are only two columns, by repetition."""
    halves = (sizes + 1) // 2
    smooth = (halves[:, 1] > 2)[:, None]
    places = []
    for axis in (0, 1):
        index = torch.arange(2 * planes.shape[2 + axis], device=planes.device).float()[None]
        linear = (index + 0.5) / 2 - 0.5
        last = halves[:, axis, None].to(linear) - 1
        places.append(torch.where(smooth, linear, (index / 2).floor()).clamp_min(0).minimum(last))
    return resample(planes, *places).round()
