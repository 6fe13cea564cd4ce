"""Linear resizing of a batch whose pictures differ in size, each in the top left corner of its tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def resize(images: Tensor, source: Tensor, target: Tensor, canvas: tuple[int, int]) -> Tensor:
    """OpenCV's INTER_LINEAR: pixels' centres are matched and nothing is averaged, so shrinking aliases as it does there.

    Args:
        images: (batch, c, h, w).
        source, target: (batch, 2) int64 height and width of each picture before and after.
        canvas: (height, width) of the result; beyond a picture's size, its edge goes on.
    """
    places = []
    for axis in (0, 1):
        old, new = source[:, axis, None].to(images), target[:, axis, None].to(images)
        index = torch.arange(canvas[axis], device=images.device).to(images)[None].minimum(new - 1)
        places.append(((index + 0.5) * (old / new) - 0.5).clamp_min(0).minimum(old - 1))
    return resample(images, *places)


def resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Values between pixels: images (batch, c, h, w) at rows (batch, n) and columns (batch, m) -> (batch, c, n, m)."""
    return _along(_along(images, rows, 2), columns, 3)


def keep_inside(images: Tensor, sizes: Tensor) -> Tensor:
    """The pictures with their edges going on beyond their size (batch, 2)."""
    return resize(images, sizes, sizes, (images.shape[2], images.shape[3]))


def _along(images: Tensor, places: Tensor, dim: int) -> Tensor:
    below = places.floor()
    share = places - below
    low = below.long()
    high = (low + 1).clamp_max(images.shape[dim] - 1)
    shape = [1, 1, 1, 1]
    shape[0], shape[dim] = places.shape
    full = list(images.shape)
    full[dim] = places.shape[1]
    first, second = (images.gather(dim, index.view(shape).expand(full)) for index in (low, high))
    return torch.lerp(first, second, share.view(shape).expand(full))
