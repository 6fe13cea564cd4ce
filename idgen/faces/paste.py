"""The way back of `align.ffhq_crop`: a portrait put where it was cut, at any turn and size, its rim feathered."""

from __future__ import annotations

import numpy as np
from PIL import Image

from idgen.faces.align import plan_ffhq

FEATHER = 0.15  # of half a side: hair and background that the portrait changes fade into the photo's
ROUNDNESS = 4  # of the mask: 2 an ellipse, more a square with rounded corners


def portrait_corners(size: tuple[int, int], landmarks: np.ndarray, output_size: int) -> np.ndarray:
    """(4, 2) where `ffhq_crop` cuts: top left, bottom left, bottom right, top right, in pixels counted from the photo's edge.

    Args:
        size: (width, height) of the photo.
        landmarks, output_size: as given to `ffhq_crop`.

    Raises:
        IdgenError: landmarks that are no face, or one outside the photo.
    """
    plan = plan_ffhq(size, landmarks, output_size)
    padding = np.array(plan.pad[:2] if plan.pad is not None else (0, 0))
    shrunk = plan.quad - padding + np.array(plan.crop[:2]) + 0.5
    return shrunk * np.array(size) / np.array(plan.shrunk)


def paste_portrait(photo: Image.Image, portrait: Image.Image, landmarks: np.ndarray) -> Image.Image:
    """The photo with the portrait in the place from which `ffhq_crop(photo, landmarks, portrait.width)` cuts it.

    Pixels outside of that square keep their bits; what of it lies beyond the photo is left out.

    Args:
        photo: RGB; not changed.
        portrait: square, RGB.
        landmarks: (5, 2) or (68, 2) pixels of the photo, the same as for the cut.

    Raises:
        IdgenError: as `portrait_corners`.
    """
    corners = portrait_corners(photo.size, landmarks, portrait.width)
    left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int), photo.size)
    result = photo.copy()
    if left >= right or top >= bottom:
        return result
    across, down = corners[3] - corners[0], corners[1] - corners[0]
    side = max(1, min(portrait.width, round(float(np.hypot(*across)))))
    if side < portrait.width:  # shrunken by the warp alone, it would alias
        portrait = portrait.resize((side, side), Image.Resampling.LANCZOS)
    # From a pixel of the region to one of the portrait.
    inverse = np.linalg.inv(np.stack([across, down], 1) / side)
    shift = inverse @ (np.array([left, top]) - corners[0])
    matrix = (*inverse[0], shift[0], *inverse[1], shift[1])
    size = (int(right - left), int(bottom - top))
    warped = portrait.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    mask = feathered(side).transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    result.paste(warped, (int(left), int(top)), mask)
    return result


def feathered(side: int) -> Image.Image:
    """The weight of a portrait's pixels, 8 bit: whole within, rounded at the corners, nothing at the edge."""
    place = np.abs((np.arange(side) + 0.5) / side * 2 - 1)
    radius = (place[None] ** ROUNDNESS + place[:, None] ** ROUNDNESS) ** (1 / ROUNDNESS)
    ramp = ((1 - radius) / FEATHER).clip(0, 1)
    return Image.fromarray(np.rint(255 * ramp * ramp * (3 - 2 * ramp)).astype(np.uint8))
