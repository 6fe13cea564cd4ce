"""The picture of five facial points that steers InstantID's IdentityNet.

The ControlNet was trained on these pictures as OpenCV draws them, so they are drawn to the pixel as OpenCV would
(`polygon.py`), without needing it. Facts from InstantID `pipeline_stable_diffusion_xl_instantid.py`, `draw_kps`.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from idgen.adapters.instantid.polygon import ellipse_polygon, fill_convex
from idgen.errors import IdgenError

# Left eye, right eye, nose, left and right mouth corner, as seen.
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))  # the limb has the colour of its first point
LIMB_RADIUS = 4
LIMB_BRIGHTNESS = 0.6
POINT_RADIUS = 10
FARTHEST = 10**6  # pixels; beyond, a landmark is a mistake


def draw_keypoints(landmarks: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw faces as points and limbs on black.

    Args:
        landmarks: (5, 2), or (faces, 5, 2), pixels (x, y) in the order of `COLOURS`; may lie beyond the border.
            Their precision matters to the last pixel: detectors give float32.
        size: (width, height) in pixels, as PIL gives it.
    Returns:
        RGB picture; of several faces, points lie over all limbs, and later faces over earlier ones.
    Raises:
        IdgenError: another shape, a coordinate that is not finite or absurdly far out, an empty size.
    """
    faces = np.asarray(landmarks)
    if not np.issubdtype(faces.dtype, np.floating):
        faces = faces.astype(np.float64)
    if faces.shape[-2:] != (5, 2) or faces.ndim not in (2, 3):
        raise IdgenError(f"key points are (5, 2) of a face or (faces, 5, 2), not {list(faces.shape)}")
    if not (np.abs(faces) < FARTHEST).all():  # NaN is not less than anything
        raise IdgenError(f"a key point is not finite, or more than {FARTHEST} pixels away: detect the face again")
    width, height = size
    if min(width, height) < 1:
        raise IdgenError(f"a picture of key points needs a size from (1, 1), not {tuple(size)}")
    faces = faces.reshape(-1, 5, 2)

    canvas = np.zeros((height, width, 3), np.uint8)
    for face in faces:
        for first, last in LIMBS:
            fill_convex(canvas, _limb(face[first], face[last]), COLOURS[first])
    canvas = (canvas * LIMB_BRIGHTNESS).astype(np.uint8)
    rows, columns = np.ogrid[:height, :width]
    for face in faces:
        for (x, y), colour in zip(face, COLOURS, strict=True):
            canvas[(columns - int(x)) ** 2 + (rows - int(y)) ** 2 <= POINT_RADIUS**2] = colour
    return Image.fromarray(canvas)


def _limb(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """A slim ellipse from point to point; its centre, length and angle lose their fractions, as in the original."""
    (dx, dy), (x, y) = first - last, (first + last) / 2
    length = (dx**2 + dy**2) ** 0.5
    angle = math.degrees(math.atan2(dy, dx))
    return ellipse_polygon(int(x), int(y), int(length / 2), LIMB_RADIUS, int(angle))
