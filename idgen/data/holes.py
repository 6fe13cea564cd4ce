"""A user's mask beside the picture that it is for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from idgen.errors import IdgenError
from idgen.imageio import load_image


def load_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> np.ndarray:
    """A mask file as (height, width) bool, True where it is white: half and more of full brightness.

    Args:
        size: (width, height) that it must have.
    Raises:
        IdgenError: it can not be read, has another size, or covers nothing or everything.
    """
    image = load_image(path)
    check_holes(Image.new("L", size), image.convert("L"), str(Path(path)))
    return np.asarray(image.convert("L")) >= 128


def check_holes(image: Any, mask: Any, name: str = "the mask") -> None:
    """Check pictures and masks in any form that diffusers takes: PIL, arrays (h, w, c) or (n, h, w, c), tensors, lists of these.

    Raises:
        IdgenError: one of the two is missing, sizes differ, or a mask covers nothing or everything.
    """
    if image is None or mask is None:
        raise IdgenError("pass the picture as image= and the mask as mask_image=, white where it is to be filled")
    pictures, masks = _listed(image), _listed(mask)
    if not pictures or not masks:
        raise IdgenError("no picture or no mask given")
    sizes = [_size(picture) for picture in pictures]
    for index, one in enumerate(masks):
        size = _size(one)
        wanted = sizes[index if len(sizes) == len(masks) else 0]
        if size != wanted:
            raise IdgenError(
                f"{name} has {size[0]} x {size[1]} pixels and the picture {wanted[0]} x {wanted[1]}: make a mask of its size"
            )
        covered = _covered(one)
        if not covered.any():
            raise IdgenError(f"{name} covers nothing: paint white what is to be filled")
        if covered.all():
            raise IdgenError(f"{name} covers everything: leave some of the picture to go by, or use `idgen generate`")


def _listed(x: Any) -> list[Any]:
    if isinstance(x, (list, tuple)):
        return list(x)
    return list(x) if isinstance(x, (np.ndarray, Tensor)) and x.ndim == 4 else [x]


def _size(x: Any) -> tuple[int, int]:
    """(width, height)."""
    if isinstance(x, Image.Image):
        return x.size
    if isinstance(x, Tensor):
        return x.shape[-1], x.shape[-2]
    return x.shape[1], x.shape[0]


def _covered(mask: Any) -> np.ndarray:
    """Where diffusers sees the hole."""
    if isinstance(mask, Image.Image):
        return np.asarray(mask.convert("L")) >= 128
    array = mask.detach().float().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    return array >= (0.5 if array.dtype.kind == "f" else 128)
