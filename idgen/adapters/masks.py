"""Where in the picture an adapter acts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from idgen.errors import IdgenError


def as_mask(mask: Any | None, people: int, images: int, guidance: bool) -> Tensor | None:
    """A user's mask -> (rows or 1, 1, height, width) float32 in [0, 1], or None.

    Args:
        mask: (height, width) for all, or (people, height, width), in [0, 1] or as bool; tensor, array or PIL image
            (white is where it acts).
    Raises:
        IdgenError: another shape, another number of people, values that are not in [0, 1].
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor):
        values = mask.detach().float()
    else:
        array = np.asarray(mask)
        values = torch.from_numpy(np.array(array, np.float32)) / (255 if array.dtype == np.uint8 else 1)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise IdgenError(f"a mask has the shape (height, width) or (people, height, width), not {list(values.shape)}")
    if len(values) not in (1, people):
        raise IdgenError(f"{len(values)} masks given for {people} people: give one for all or one for each")
    if not torch.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise IdgenError("a mask holds values outside [0, 1], or NaN")
    if len(values) == people and people > 1:
        values = values.repeat_interleave(images, 0)
        values = torch.cat([values, values]) if guidance else values
    return values[:, None]


def check_aspect(mask: Tensor | None, size: tuple[int, int]) -> None:
    """
    Raises:
        IdgenError: the mask is not of the picture's proportions; latents of `size` (height, width) say what those are.
    """
    if mask is None:
        return
    height, width = mask.shape[-2:]
    if abs(height / width - size[0] / size[1]) > 0.05 * size[0] / size[1]:
        raise IdgenError(
            f"the mask is {width} x {height}, and the picture's latents are {size[1]} x {size[0]}: give a mask of the"
            " picture's proportions"
        )
