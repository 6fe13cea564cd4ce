"""Photos and crops -> what e4e looks at: a face in FFHQ's framing, white where the photo ends and where it shows no person.

The authors find 68 points with dlib, cut a square of 512 px without FFHQ's padding, paint background and clothes white with
a face parser (ParseNet) whose mask they soften, and halve the result. Here the five points of a detector stand for the 68: the
square depends on eyes and mouth only. A parser's mask may be given; without one the background stays, and e4e puts some
of it into the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from idgen.adapters.masks import as_mask
from idgen.errors import IdgenError
from idgen.faces.align import ffhq_crop, template
from idgen.faces.detection import select_face
from idgen.faces.encoder import FaceEncoder
from idgen.imageio import load_array

if TYPE_CHECKING:
    from idgen.imageio import ImageLike

SOFTENED = (
    1.1  # standard deviation of the mask's blur, pixels of the square before it is halved: OpenCV's for a 5 x 5 kernel
)
SAMPLES = 4  # samples along a pixel's side while the square is cut


def portraits_of_crops(crops: Tensor, size: int) -> Tensor:
    """ArcFace-aligned crops in FFHQ's wider framing; a white border of an eighth of the side surrounds what they show.

    Args:
        crops: (n, side, side, 3) uint8 RGB, as `Identity.crops`.
        size: side of the result, 256 for the published e4e.

    Returns:
        (n, 3, size, size) RGB in [-1, 1].
    """
    points = template(crops.shape[1])
    return torch.stack([portrait(crop, points, size) for crop in crops.numpy()])


def portraits_of_photos(
    photos: Sequence[ImageLike], masks: Sequence[Any | None], faces: FaceEncoder, size: int, select: str | int
) -> Tensor:
    """One face of each photo, (photos, 3, size, size) RGB in [-1, 1].

    Args:
        masks: for each photo see `portrait`.
        faces: whose detector looks for faces.
        select: which face of each photo, as for `FaceEncoder`.
    Raises:
        IdgenError: a photo can not be read or shows no such face, or a mask is not of its photo's size.
    """
    if not photos or len(masks) != len(photos):
        raise IdgenError(
            f"{len(photos)} photos and {len(masks)} masks given: give at least one photo, and a mask for each"
        )
    made = []
    for index, (photo, mask) in enumerate(zip(photos, masks, strict=True)):
        pixels = load_array(photo)
        face = select_face(faces.detect(pixels), select, (pixels.shape[1], pixels.shape[0]), f"photo {index}")
        made.append(portrait(pixels, face.landmarks, size, mask))
    return torch.stack(made)


def portrait(pixels: np.ndarray, landmarks: np.ndarray, size: int, mask: Any | None = None) -> Tensor:
    """A face cut out as FFHQ's faces are.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) or (68, 2) pixels (x, y).
        size: side of the result.
        mask: (H, W) in [0, 1] (tensor, array, PIL image), white what is kept: skin, hair, what is worn on the head.

    Returns:
        (3, size, size) RGB in [-1, 1].
    Raises:
        IdgenError: landmarks that are no face's, or a mask of another size than the photo.
    """
    square = 255 - _square(255 - pixels, landmarks, size)  # beyond the photo is black, here thus white
    if mask is not None:
        kept = cast(Tensor, as_mask(mask, 1, 1, False))[0, 0]
        if kept.shape != pixels.shape[:2]:
            raise IdgenError(f"a mask of {list(kept.shape)} pixels does not fit a photo of {list(pixels.shape[:2])}")
        levels = (kept * 255).round().byte().numpy()
        cut = Image.fromarray(_square(np.repeat(levels[..., None], 3, 2), landmarks, size))
        weight = np.asarray(cut.filter(ImageFilter.GaussianBlur(SOFTENED)), np.float32) / 255
        square = np.rint(255 - weight * (255 - square.astype(np.float32))).astype(np.uint8)
    halved = np.array(Image.fromarray(square).reduce(2))
    return torch.from_numpy(halved).permute(2, 0, 1).float() / 127.5 - 1


def _square(pixels: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """Twice the final side, black beyond the photo."""
    return ffhq_crop(pixels, landmarks, 2 * size, 2 * size * SAMPLES, enable_padding=False)
