"""What a user passes as photos -> pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from idgen.errors import IdgenError
from idgen.imageio import load_image

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

ASPECT = 1.02  # a pixel or two of a crop's rounding


def as_pixels(photos: ImageLike | Tensor | Sequence[ImageLike], size: int) -> Tensor:
    """Aligned photos -> (photos, 3, size, size) float32 in [-1, 1]; other sizes are resized as the authors do, bicubic.

    Args:
        photos: files, PIL images or (height, width, 3) uint8 arrays, one or several; or a tensor (photos, 3, size, size) in
            [0, 1], as `output_type="pt"` gives it.

    Raises:
        IdgenError: none, unreadable, not square, or a tensor of another shape or range.
    """
    if isinstance(photos, Tensor):
        pixels = photos[None] if photos.ndim == 3 else photos
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size) or not len(pixels):
            raise IdgenError(f"photos as a tensor have the shape (photos, 3, {size}, {size}), not {list(photos.shape)}")
        if not pixels.is_floating_point() or not torch.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise IdgenError("photos as a tensor are floating point in [0, 1]")
        return pixels.float() * 2 - 1
    listed = as_list(photos)
    if not listed:
        raise IdgenError("no photo given: pass at least one")
    return torch.stack([_pixels(photo, size) for photo in listed])


def as_people(references: Any) -> list[Any]:
    """References of one person (a photo or a list of them), or a list of such lists -> one entry per person, in order."""
    if isinstance(references, Tensor):
        return list(references) if references.ndim == 5 else [references]
    if isinstance(references, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in references):
        return list(references)
    return [references]


def as_list(photos: Any) -> list[Any]:
    """One or several -> several."""
    return list(photos) if isinstance(photos, (list, tuple)) else [photos]


def _pixels(photo: ImageLike, size: int) -> Tensor:
    image = load_image(photo)
    if max(image.size) > ASPECT * min(image.size):
        name = str(photo) if isinstance(photo, str | os.PathLike) else "the photo"
        raise IdgenError(
            f"{name} is {image.width} x {image.height} px, and an aligned face is square: `idgen restore` or"
            " idgen.restoration.restore_photo aligns whole photos"
        )
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
